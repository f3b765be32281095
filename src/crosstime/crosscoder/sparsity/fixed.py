"""Thresholds that were fixed elsewhere: the rule of imported crosscoders whose gate is none of ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.rule import Sparsity


@dataclass(frozen=True)
class FixedThresholds(Sparsity):
    """f_i = h_i where h_i > theta_i, the crosscoder's `threshold` [F]. It cannot be trained."""

    rule: str = field(default="fixed", init=False)

    def first_threshold(self, features: int) -> Tensor:
        """0 for every feature, which lets all active ones pass."""
        return torch.zeros(features)

    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        assert threshold is not None
        return h * (h > threshold)

    def least_code(self, norms: Float[Tensor, "F M"], m: int, threshold: Tensor | None) -> Float[Tensor, " F"]:
        assert threshold is not None
        return threshold

    def check_trainable(self) -> None:
        """Raise InputError: nothing here is learnt."""
        raise InputError('sparsity.rule "fixed" is that of imported crosscoders and cannot be trained: choose another')
