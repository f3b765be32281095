"""JumpReLU, a threshold a feature, gated at each checkpoint by itself (Rajamanoharan et al. 2024; Ge et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstime.crosscoder.sparsity.l1 import Penalised
from crosstime.crosscoder.sparsity.rule import Codes, Progress
from crosstime.crosscoder.sparsity.scratch import Scratch


@dataclass(frozen=True)
class JumpReLU(Penalised):
    """Checkpoint m writes f_i where f_i ||d_i,m|| > theta_i: a feature whose decoder is small there stays silent there.

    The penalty is the tanh-quadratic one of Ge et al. 2025 (arXiv 2509.17196): with
    q_i = mean over rows and checkpoints of tanh(stretch f_i,m ||d_i,m||), weight * sum_i q_i (1 + q_i / frequency).
    The crosscoder's `threshold` [F] holds log theta; its gradient is the straight-through one, of a window around it.
    """

    rule: str = field(default="jumprelu", init=False)
    weight: float = 0.3
    warmup: float = 0.1
    stretch: float = 4.0
    """Steepness of the tanh: above it, a feature pays for firing and not for how strongly."""
    frequency: float = 0.01
    """How often a feature may fire before its price grows with the square of that."""
    threshold: float = 0.1
    """theta of every feature at the start."""
    window: float = 4.0
    """Width of the window around theta in which the threshold feels a gradient."""
    threshold_lr: float = 0.1
    """Learning rate of the thresholds, in parts of that of the weights."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that cannot be."""
        super().__post_init__()
        for name in ("stretch", "frequency", "threshold", "window", "threshold_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sparsity.{name} must be positive; got {getattr(self, name)}")

    @property
    def gated(self) -> bool:
        return True

    @property
    def threshold_lr_share(self) -> float:
        return self.threshold_lr

    def first_threshold(self, features: int) -> Tensor:
        """log theta of every feature, learnt."""
        return nn.Parameter(torch.full((features,), math.log(self.threshold)))

    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        """A feature fires where it does so at any checkpoint, which is that of its largest decoder norm."""
        return self.at(h, norms.amax(1), threshold)

    def at(
        self, f: Float[Tensor, "*b F"], norms: Float[Tensor, " F"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        assert threshold is not None
        return f * (f * norms > threshold.exp())

    def least_code(self, norms: Float[Tensor, "F M"], m: int, threshold: Tensor | None) -> Float[Tensor, " F"]:
        assert threshold is not None
        return threshold.exp() / norms[:, m]

    def codes(
        self,
        h: Float[Tensor, "B F"],
        norms: Float[Tensor, "F M"],
        threshold: Tensor | None,
        progress: Progress,
        scratch: Scratch,
    ) -> Codes:
        assert threshold is not None
        return _GatedCodes(self, h.float(), norms, threshold, self.weight_at(progress))


class _GatedCodes(Codes):
    """Codes of every checkpoint by itself; autograd finds the gradients of gates and penalty."""

    def __init__(
        self,
        rule: JumpReLU,
        h: Float[Tensor, "B F"],
        norms: Float[Tensor, "F M"],
        threshold: Tensor,
        weight: float,
    ) -> None:
        self.slope = None
        self._leaves = [tensor.detach().requires_grad_() for tensor in (h, norms, threshold)]
        h, norms, threshold = self._leaves
        with torch.enable_grad():
            theta = threshold.exp()
            gated = [_Gate.apply(h, norms[:, m], theta, rule.window) for m in range(norms.shape[1])]
            prices = [torch.tanh(rule.stretch * f * norms[:, m]).mean(0) for m, f in enumerate(gated)]
            often = torch.stack(prices).mean(0)
            self._penalty = weight * (often * (1 + often / rule.frequency)).sum()
        self._gated, self.written = gated, [f.detach() for f in gated]
        self.penalty = self._penalty.detach()
        self.shared = torch.stack(self.written).amax(0)
        self.sums = self.shared.sum(0)

    def backward(
        self, gradients: Sequence[Float[Tensor, "B F"]]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "F M"] | None, Float[Tensor, " F"] | None]:
        given = [gradient.float() for gradient in gradients]
        h, norms, threshold = torch.autograd.grad(
            [*self._gated, self._penalty], self._leaves, [*given, torch.ones_like(self._penalty)]
        )
        return h, norms, threshold


class _Gate(torch.autograd.Function):
    """f where f ||d|| > theta, else 0; theta's gradient is -theta / (window ||d||) near the edge, and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, norms: Tensor, theta: Tensor, window: float) -> Tensor:
        size = f * norms
        ctx.save_for_backward(size, norms, theta)
        ctx.window = window
        return f * (size > theta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (gradient,) = gradients
        size, norms, theta = ctx.saved_tensors
        near = ((size - theta).abs() < ctx.window / 2) & (size > 0)
        # A checkpoint whose decoder vanished writes nothing and moves no threshold.
        per_unit = torch.where(norms > 0, -theta / (ctx.window * norms.clamp_min(1e-12)), 0.0)
        return gradient * (size > theta), None, (gradient * near).sum(0) * per_unit, None
