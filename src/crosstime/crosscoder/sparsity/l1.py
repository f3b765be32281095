"""ReLU with an L1 penalty on the codes, weighted by decoder norms (Lindsey et al. 2024; arXiv 2509.05291)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.crosscoder.sparsity.rule import Progress, Sparsity


@dataclass(frozen=True)
class L1(Sparsity):
    """f = h, at a price of weight * sum_i f_i sum_m ||d_i,m||. The defaults are those of arXiv 2509.05291."""

    rule: str = field(default="l1", init=False)
    weight: float = 2.0
    """Weight of the penalty once it is warm: larger means fewer features at a time."""
    warmup: float = 0.05
    """Share of the steps, at the start, over which the weight rises linearly from 0."""

    def __post_init__(self) -> None:
        """Raises ValueError for a penalty that cannot be."""
        if not self.weight >= 0:
            raise ValueError(f"sparsity.weight must not be negative; got {self.weight}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"sparsity.warmup is a share of the steps, from 0 to 1; got {self.warmup}")

    @property
    def decoder_norm(self) -> float:
        """The paper's: small, so that the first codes cost little."""
        return 0.08

    def weight_at(self, progress: Progress) -> float:
        """The penalty's weight at a step."""
        return warmed(self.weight, self.warmup, progress)

    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        return h

    def least_code(self, norms: Float[Tensor, "F M"], m: int, threshold: Tensor | None) -> Float[Tensor, " F"]:
        return torch.zeros_like(norms[:, m])

    def logged(self, progress: Progress) -> dict[str, float | int]:
        return {"penalty_weight": self.weight_at(progress)}


def warmed(weight: float, warmup: float, progress: Progress) -> float:
    """A weight that rises linearly from 0 over the first `warmup` of the steps."""
    warm = warmup * progress.steps
    return weight if progress.step >= warm else weight * progress.step / warm
