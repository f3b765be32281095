"""ReLU with an L1 penalty weighted by decoder norms (Lindsey et al. 2024; arXiv 2509.05291)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from crosstime.base.errors import SettingError
from crosstime.crosscoder.sparsity.rule import DecoderNorms, Features, PerFeature, Sparsity, TrainingProgress


@dataclass(frozen=True)
class PenaltyRule(Sparsity):
    """Base of rules that add a sparsity penalty to the loss."""

    weight: float = 2.0
    """Coefficient of the penalty after warm-up: larger means fewer active features."""
    warmup: float = 0.05
    """Share of the steps, at the start, over which the coefficient rises linearly from 0."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise SettingError("weight", f"must not be negative, but is {self.weight}")
        if not 0 <= self.warmup <= 1:
            raise SettingError("warmup", f"must be a share of the steps, from 0 to 1, not {self.warmup}")

    def penalty_coefficient(self, progress: TrainingProgress) -> float:
        """Return the coefficient at a step: a linear warm-up, then constant."""
        warmup_steps = self.warmup * progress.steps
        return self.weight if progress.step >= warmup_steps else self.weight * progress.step / warmup_steps

    def scheduled_values(self, progress: TrainingProgress) -> dict[str, float | int]:
        return {"penalty_coefficient": self.penalty_coefficient(progress)}


@dataclass(frozen=True)
class L1(PenaltyRule):
    """ReLU activations with the penalty weight * sum_i f_i sum_m ||d_m,i||. Defaults follow arXiv 2509.05291.

    Example:
        >>> from crosstime import L1
        >>> L1(weight=0.5)
        L1(rule='l1', weight=0.5, warmup=0.05)
    """

    rule: str = field(default="l1", init=False)
    initial_decoder_norm: ClassVar[float] = 0.08  # the paper's: small, so that the penalty is small at first

    def select(self, h: Features, norms: DecoderNorms, threshold: Tensor | None) -> Features:
        return h

    def activation_threshold(self, norms: DecoderNorms, m: int, threshold: Tensor | None) -> PerFeature:
        return torch.zeros_like(norms[m])
