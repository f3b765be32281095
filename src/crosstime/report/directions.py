"""How much the directions of the features turn between checkpoints, on average, and where they turn most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Turn:
    """The cut of the checkpoints into an earlier and a later group that are least like one another."""

    first_after: int
    """The first checkpoint of the later group."""
    within: float
    """Mean cosine of two checkpoints of one group."""
    across: float
    """Mean cosine of an earlier and a later checkpoint."""


def mean_similarity(similarity: Float[np.ndarray, "F M M"], there: Bool[np.ndarray, "M F"]) -> Float[np.ndarray, "M M"]:
    """Mean cosine of the decoder vectors of two checkpoints, over the features that are present at both.

    NaN where no feature is.
    """
    mean = np.full(similarity.shape[1:], np.nan)
    for m in range(len(mean)):
        both = (there[m] & there).T & np.isfinite(similarity[:, m])
        total = np.where(both, similarity[:, m], 0.0).sum(axis=0)
        mean[m] = np.where(both.any(axis=0), total / np.maximum(both.sum(axis=0), 1), np.nan)
    return mean


def turn(similarity: Float[np.ndarray, "M M"]) -> Turn | None:
    """Where directions turn: the cut with the largest mean cosine within the groups minus that across them.

    None where there are fewer than three checkpoints, or a cosine is missing.
    """
    n = len(similarity)
    if n < 3 or not np.isfinite(similarity).all():
        return None
    turns = [_cut(similarity, first_after) for first_after in range(1, n)]
    return max(turns, key=lambda found: found.within - found.across)


def _cut(similarity: Float[np.ndarray, "M M"], first_after: int) -> Turn:
    later = np.arange(len(similarity)) >= first_after
    same = later[:, None] == later[None, :]
    apart = ~np.eye(len(similarity), dtype=bool)
    return Turn(first_after, float(similarity[same & apart].mean()), float(similarity[~same].mean()))
