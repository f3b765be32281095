"""Adam that clips the gradient, and passes over steps whose gradient is not finite, while it takes its step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils import get_total_norm


class ClippedAdam(torch.optim.Adam):
    """Fused Adam on gradients that are scaled down to norm `clip` where they are larger.

    The fused kernel divides gradients by `grad_scale`, and does nothing where `found_inf` is 1: both are made for mixed
    precision and save two passes over the gradients here, and every wait for the device.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, clip: float) -> None:
        super().__init__(groups, lr=lr, fused=True)
        self.clip = clip

    def clipped_step(self) -> Bool[Tensor, ""]:
        """Take a step; gives whether it was taken, which it is not where the gradient is not finite."""
        norm = get_total_norm(p.grad for group in self.param_groups for p in group["params"])
        finite = norm.isfinite()
        self.grad_scale = ((norm + 1e-6) / self.clip).clamp_min(1)
        self.found_inf = (~finite).float()
        self.step()
        return finite
