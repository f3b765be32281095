"""ReLU with an L1 penalty on the codes, weighted by decoder norms (Lindsey et al. 2024; arXiv 2509.05291)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.rule import Progress, Sparsity


@dataclass(frozen=True)
class Penalised(Sparsity):
    """A rule that adds a penalty to the loss, whose weight rises from 0 at the start."""

    weight: float = 2.0
    """Weight of the penalty once it is warm: larger means fewer features at a time."""
    warmup: float = 0.05
    """Share of the steps, at the start, over which the weight rises linearly from 0."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"sparsity.weight must not be negative; got {self.weight}")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"sparsity.warmup is a share of the steps, from 0 to 1; got {self.warmup}")

    def weight_at(self, progress: Progress) -> float:
        """The penalty's weight at a step."""
        warm = self.warmup * progress.steps
        return self.weight if progress.step >= warm else self.weight * progress.step / warm

    def logged(self, progress: Progress) -> dict[str, float | int]:
        return {"penalty_weight": self.weight_at(progress)}


@dataclass(frozen=True)
class L1(Penalised):
    """f = h, at a price of weight * sum_i f_i sum_m ||d_i,m||. The defaults are those of arXiv 2509.05291."""

    rule: str = field(default="l1", init=False)

    @property
    def decoder_norm(self) -> float:
        """The paper's: small, so that the first codes cost little."""
        return 0.08

    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        return h

    def least_code(self, norms: Float[Tensor, "F M"], m: int, threshold: Tensor | None) -> Float[Tensor, " F"]:
        return torch.zeros_like(norms[:, m])
