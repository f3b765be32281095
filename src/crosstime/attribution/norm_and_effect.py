"""Does a feature have its effect where its decoder is large? RelDec against RelIE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from crosstime.attribution.correlation import spearman
from crosstime.attribution.relative import relative
from crosstime.base.errors import InputError


@dataclass(frozen=True)
class NormAndEffect:
    """RelDec and RelIE of N features side by side: a scatter plot for each of M checkpoints."""

    features: np.ndarray
    """[N] their numbers."""
    rel_dec: np.ndarray
    """[M, N]"""
    rel_ie: np.ndarray
    """[M, N]"""

    @property
    def correlation(self) -> np.ndarray:
        """[M] Spearman's rank correlation of the two at each checkpoint; NaN where one of them is constant.

        Of two checkpoints both give the same number.
        """
        known = ~np.isnan(self.rel_dec + self.rel_ie).any(0)
        return spearman(self.rel_dec[:, known], self.rel_ie[:, known])


def norm_and_effect(
    rel_dec: Float[np.ndarray, "M F"], ie: Float[np.ndarray, "M F"], k: int | None = 100
) -> NormAndEffect:
    """RelDec and RelIE of the features that matter for a task (arXiv 2509.05291).

    Args:
        rel_dec: shares of the decoder norms, as of `relative(crosscoder.decoder_norms().T)`.
        ie: indirect effects on one task, as of `Effects.ie`.
        k: take the k features of largest |IE| at any checkpoint; None for every feature that has an effect.

    Raises:
        InputError: k is less than 1.
    """
    if k is not None and k < 1:
        raise InputError(f"k must be at least 1, or None for all; got {k}")
    size = np.abs(ie)
    strong = np.argsort(-size, axis=1, kind="stable")[:, :k]
    features = np.intersect1d(strong, np.flatnonzero(size.any(0)))
    return NormAndEffect(features, rel_dec[:, features], relative(ie[:, features]))
