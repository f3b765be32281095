"""Rank correlation, of many samples at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats


def spearman(x: Float[np.ndarray, "*r n"], y: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """Spearman's rank correlation along the last axis, ties given their mean rank; NaN where a side is constant."""
    if x.shape[-1] == 0:
        return np.full(x.shape[:-1], np.nan)
    ranks = [stats.rankdata(values, axis=-1) for values in (x, y)]
    centred = [r - r.mean(-1, keepdims=True) for r in ranks]
    with np.errstate(invalid="ignore"):
        return (centred[0] * centred[1]).sum(-1) / np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
