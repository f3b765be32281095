"""JumpReLU, a threshold a feature, gated at each checkpoint by itself (Rajamanoharan et al. 2024; Ge et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.l1 import Penalised
from crosstime.crosscoder.sparsity.rule import Codes, Progress, where_positive
from crosstime.crosscoder.sparsity.scratch import Scratch

CACHED_VALUES = 1 << 18
"""Codes that a CPU works on at once: what is made of them stays in its cache."""


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
        super().__post_init__()
        for name in ("stretch", "frequency", "threshold", "window", "threshold_lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"sparsity.{name} must be positive; got {getattr(self, name)}")

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
        return _GatedCodes(self, h, norms, threshold.exp(), self.weight_at(progress), scratch)


class _GatedCodes(Codes):
    """Codes of every checkpoint by itself.

    The gradient of theta is -theta / (window ||d||) times that of the codes within the window, and 0 elsewhere. Gates,
    penalty and gradients are worked out in float32 for some rows at a time, so nothing of the size of the codes is kept
    but these and their gradients.
    """

    def __init__(
        self,
        rule: JumpReLU,
        h: Float[Tensor, "B F"],
        norms: Float[Tensor, "F M"],
        theta: Float[Tensor, " F"],
        weight: float,
        scratch: Scratch,
    ) -> None:
        self._rule, self._h, self._theta = rule, h, theta
        self._norms = norms.T
        self.slope = None
        self.written = [scratch.empty(f"gated {m}", h.shape, h) for m in range(norms.shape[1])]
        often = torch.zeros_like(theta)
        for rows in self._parts():
            part = h[rows].float()
            for f, norm in zip(self.written, self._norms, strict=True):
                gated = part * (part * norm > theta)
                f[rows] = gated
                often += torch.tanh(gated.mul_(rule.stretch * norm)).sum(0)
        often /= len(h) * len(self.written)
        self.penalty = weight * (often * (1 + often / rule.frequency)).sum()
        self._price = weight * (1 + 2 * often / rule.frequency) * rule.stretch / (len(h) * len(self.written))
        self.shared = reduce(torch.maximum, self.written)
        self.sums = self.shared.sum(0).float()

    def backward(
        self, gradients: Sequence[Float[Tensor, "B F"]]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "F M"] | None, Float[Tensor, " F"] | None]:
        h_gradient = gradients[0]
        norms_gradient, theta_gradient = torch.zeros_like(self._norms), torch.zeros_like(self._theta)
        for rows in self._parts():
            part = self._h[rows].float()
            total = torch.zeros_like(part)
            for m, (f, norm) in enumerate(zip(self.written, self._norms, strict=True)):
                gated = f[rows].float()
                price = (1 - torch.tanh(gated * (self._rule.stretch * norm)).square_()).mul_(self._price)
                norms_gradient[m] += (price * gated).sum(0)
                gradient = price.mul_(norm).add_(gradients[m][rows])
                near = ((part * norm - self._theta).abs_() < self._rule.window / 2) & (part * norm > 0)
                # A checkpoint whose decoder vanished writes nothing and moves no threshold.
                per_unit = torch.where(norm > 0, -self._theta / (self._rule.window * norm.clamp_min(1e-12)), 0.0)
                theta_gradient += (gradient * near).sum(0) * per_unit
                total += where_positive(gradient, gated, out=gradient)
            h_gradient[rows] = total
        return h_gradient, norms_gradient.T, theta_gradient * self._theta

    def _parts(self) -> Iterator[slice]:
        """Rows whose values fit a CPU's cache; elsewhere, as many as need no more memory than a matrix of codes."""
        at_once = max(1, CACHED_VALUES // self._h.shape[1]) if self._h.device.type == "cpu" else len(self._h) // 8 + 1
        return (slice(start, start + at_once) for start in range(0, len(self._h), at_once))
