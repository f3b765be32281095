"""Adam with gradient clipping inside its fused kernel; steps whose gradient isn't finite are skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils import get_total_norm


class ClippedAdam(torch.optim.Adam):
    """Fused Adam on gradients that are scaled down to the norm `clip` if theirs is larger.

    The fused kernel divides gradients by `grad_scale`, and does nothing if `found_inf` is 1. Both are meant for mixed
    precision; here they save two passes over the gradients, and all waiting for the device.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, clip: float) -> None:
        super().__init__(groups, lr=lr, fused=True)
        self.clip = clip

    def clipped_step(self) -> Bool[Tensor, ""]:
        """Take a step; return whether it was taken, that is, whether the gradient was finite."""
        norm = get_total_norm(p.grad for group in self.param_groups for p in group["params"])
        finite = norm.isfinite()
        self.grad_scale = ((norm + 1e-6) / self.clip).clamp_min(1)
        self.found_inf = (~finite).float()
        self.step()
        return finite
