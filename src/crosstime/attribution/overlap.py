"""Do tasks (or languages) share their strongest features, and more than by chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom

from crosstime.base.errors import InputError


@dataclass(frozen=True)
class Overlap:
    """How the top features of T tasks overlap at each of M checkpoints.

    Chance: of the features with an effect on either task, both tops are drawn at random. Features with an effect on
    neither could be in no top, and to count them would make every overlap look large.
    """

    checkpoints: list[str]
    tasks: list[str]
    size: np.ndarray
    """[M, T] top features of each task: k, or fewer where fewer have an effect."""
    shared: np.ndarray
    """[M, T, T] features in both tops."""
    jaccard: np.ndarray
    """[M, T, T] shared over those in either; NaN where both tops are empty."""
    expected: np.ndarray
    """[M, T, T] shared by chance, on average; NaN on the diagonal."""
    p_value: np.ndarray
    """[M, T, T] probability that chance shares as many or more; NaN on the diagonal. Not corrected for many pairs."""


def overlap(ie: Mapping[str, Float[np.ndarray, "M F"]], checkpoints: Sequence[str], k: int = 10) -> Overlap:
    """Compare the k strongest features, by |IE|, of every two tasks at every checkpoint (as arXiv 2509.05291 does).

    Args:
        ie: indirect effects of each task, by its name, as of `Effects.ie`, from one crosscoder.
        checkpoints: their names.
        k: how many features are strong.

    Raises:
        InputError: k is less than 1, or the effects are not of one crosscoder over these checkpoints.
    """
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    shapes = {effects.shape for effects in ie.values()}
    if len(shapes) != 1 or next(iter(shapes))[0] != len(checkpoints):
        raise InputError(f"effects of shapes {sorted(shapes)} are not of one crosscoder over {list(checkpoints)}")
    size = np.abs(np.stack(list(ie.values()), 1))  # [M, T, F]
    # The ranks of the features by |IE|, largest first; equal effects by number.
    rank = np.argsort(np.argsort(-size, axis=-1, kind="stable"), axis=-1)
    active = size > 0
    top = active & (rank < k)
    shared, union = _counts(top)
    _, either = _counts(active)
    n_top = top.sum(-1)
    ours, theirs = n_top[:, :, None], n_top[:, None]
    itself = np.eye(len(ie), dtype=bool)
    return Overlap(
        checkpoints=list(checkpoints),
        tasks=list(ie),
        size=n_top,
        shared=shared,
        jaccard=_share(shared, union),
        expected=np.where(itself, np.nan, _share(ours * theirs, either, none=0.0)),
        p_value=np.where(itself, np.nan, hypergeom.sf(shared - 1, np.maximum(either, 1), ours, theirs)),
    )


def _counts(sets: Bool[np.ndarray, "M T F"]) -> tuple[Int[np.ndarray, "M T T"], Int[np.ndarray, "M T T"]]:
    """How many features are in both of two sets, and how many in either."""
    members = sets.astype(np.float32)  # whose products are fast, and exact for counts
    both = np.rint(members @ members.swapaxes(1, 2)).astype(np.int64)
    size = sets.sum(-1)
    return both, size[:, :, None] + size[:, None] - both


def _share(
    part: Int[np.ndarray, "M T T"], whole: Int[np.ndarray, "M T T"], none: float = np.nan
) -> Float[np.ndarray, "M T T"]:
    return np.divide(part, whole, out=np.full(part.shape, none), where=whole > 0)
