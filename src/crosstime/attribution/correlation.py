"""Rank correlation, of many samples at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats


def spearman(x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
    """Spearman's rank correlation of each row of x with that of y; ties get their mean rank.

    NaN where one of the two is constant.
    """
    if x.shape[1] == 0:
        return np.full(len(x), np.nan)
    x, y = (ranks - ranks.mean(1, keepdims=True) for ranks in (stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
