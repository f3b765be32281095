"""Comparisons over checkpoints and tasks: strongest effects over training, overlap of tasks, RelDec against RelIE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom

from crosstime.attribution.relative import relative
from crosstime.attribution.statistics import spearman
from crosstime.base.errors import InputError
from crosstime.base.settings import check_at_least


@dataclass(frozen=True)
class Evolution:
    """One feature's indirect effects over the checkpoints, and the groups for which it was chosen.

    Example:
        >>> import numpy as np
        >>> float(Evolution(7, ("largest at last",), np.array([0.0, 1.5])).ie.max())
        1.5
    """

    feature: int
    groups: tuple[str, ...]
    """Of "largest at first", "smallest at first", "largest at last" and "smallest at last"."""
    ie: np.ndarray
    """[M] Indirect effects, signed."""


def evolution(ie: Float[np.ndarray, "M F"], k: int = 5) -> list[Evolution]:
    """Choose the features with the k largest and k smallest signed IE at the first and at the last checkpoint.

    As arXiv 2509.05291 plots them, but a feature without effect is in no group; "largest" effects are above zero and
    "smallest" below.

    Args:
        ie: Indirect effects (`Effects.ie`).
        k: Features per group at most, so up to 4 k in total.

    Returns:
        Each feature once, in the order of the groups.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> [(one.feature, one.groups) for one in ct.evolution(np.array([[0.5, 0, -1], [0.1, 2, 0]]), k=1)]
        [(0, ('largest at first',)), (2, ('smallest at first',)), (1, ('largest at last',))]
    """
    check_at_least(1, k=k)
    groups: dict[int, list[str]] = {}
    for place, effects in (("first", ie[0]), ("last", ie[-1])):
        for word, sign in (("largest", 1), ("smallest", -1)):
            order = np.argsort(-sign * effects, kind="stable")[:k]
            for feature in order[sign * effects[order] > 0]:
                groups.setdefault(int(feature), []).append(f"{word} at {place}")
    return [Evolution(feature, tuple(names), ie[:, feature]) for feature, names in groups.items()]


@dataclass(frozen=True)
class Overlap:
    """How much the top features of T tasks overlap at each of M checkpoints, and how much they would by chance.

    By chance means that both tops are drawn at random from the features with an effect on either task. Features without
    effect on both can't be in a top; counting them would make every overlap look large.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> ie = {"number": np.eye(4)[:1], "gender": np.eye(4)[:1]}
        >>> ct.overlap(ie, ["step1000"], k=1).jaccard.tolist()
        [[[1.0, 1.0], [1.0, 1.0]]]
    """

    checkpoints: list[str]
    tasks: list[str]
    size: np.ndarray
    """[M, T] Top features of each task: k, or fewer if fewer have an effect."""
    shared: np.ndarray
    """[M, T, T] Features in both tops."""
    jaccard: np.ndarray
    """[M, T, T] Shared features over features in either top; NaN if both are empty."""
    expected: np.ndarray
    """[M, T, T] Mean number of shared features by chance; NaN on the diagonal."""
    p_value: np.ndarray
    """[M, T, T] Probability that as many or more are shared by chance, not corrected for the number of pairs; NaN on
    the diagonal."""


def overlap(ie: Mapping[str, Float[np.ndarray, "M F"]], checkpoints: Sequence[str], k: int = 10) -> Overlap:
    """Compare the k strongest features, by |IE|, of every two tasks at every checkpoint (as in arXiv 2509.05291).

    Args:
        ie: Indirect effects of each task (`Effects.ie`), of one crosscoder.
        checkpoints: Names of its checkpoints.
        k: Number of top features.

    Raises:
        InputError: The effects aren't of one crosscoder over these checkpoints.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> ie = {"number": np.array([[3.0, 2, 0, 1]]), "gender": np.array([[1.0, 5, 2, 0]])}
        >>> found = ct.overlap(ie, ["step1000"], k=2)
        >>> int(found.shared[0, 0, 1]), float(found.expected[0, 0, 1])
        (1, 1.0)
    """
    check_at_least(1, k=k)
    shapes = {effects.shape for effects in ie.values()}
    if len(shapes) != 1 or next(iter(shapes))[0] != len(checkpoints):
        raise InputError(f"effects of shapes {sorted(shapes)} aren't of one crosscoder over {list(checkpoints)}")
    size = np.abs(np.stack(list(ie.values()), 1))  # [M, T, F]
    # Ranks of the features by |IE|, largest first; ties by number.
    rank = np.argsort(np.argsort(-size, axis=-1, kind="stable"), axis=-1)
    active = size > 0
    top = active & (rank < k)
    shared, union = _intersections_and_unions(top)
    _, either_active = _intersections_and_unions(active)
    n_top = top.sum(-1)
    n_first, n_second = n_top[:, :, None], n_top[:, None]
    diagonal = np.eye(len(ie), dtype=bool)
    return Overlap(
        checkpoints=list(checkpoints),
        tasks=list(ie),
        size=n_top,
        shared=shared,
        jaccard=_ratio(shared, union),
        expected=np.where(diagonal, np.nan, _ratio(n_first * n_second, either_active, if_zero=0.0)),
        p_value=np.where(diagonal, np.nan, hypergeom.sf(shared - 1, np.maximum(either_active, 1), n_first, n_second)),
    )


def _intersections_and_unions(
    sets: Bool[np.ndarray, "M T F"],
) -> tuple[Int[np.ndarray, "M T T"], Int[np.ndarray, "M T T"]]:
    """Count the features in both, and in either, of every two sets."""
    members = sets.astype(np.float32)  # products are fast, and exact for counts
    both = np.rint(members @ members.swapaxes(1, 2)).astype(np.int64)
    size = sets.sum(-1)
    return both, size[:, :, None] + size[:, None] - both


def _ratio(
    part: Int[np.ndarray, "M T T"], whole: Int[np.ndarray, "M T T"], if_zero: float = np.nan
) -> Float[np.ndarray, "M T T"]:
    return np.divide(part, whole, out=np.full(part.shape, if_zero), where=whole > 0)


@dataclass(frozen=True)
class NormAndEffect:
    """RelDec and RelIE of N features at each of M checkpoints.

    Example:
        >>> import numpy as np
        >>> shares = np.array([[0.25, 0.5, 1.0]])
        >>> NormAndEffect(np.arange(3), rel_dec=shares, rel_ie=shares).correlation.tolist()
        [1.0]
    """

    features: np.ndarray
    """[N] Feature ids."""
    rel_dec: np.ndarray
    """[M, N]"""
    rel_ie: np.ndarray
    """[M, N]"""

    @property
    def correlation(self) -> np.ndarray:
        """[M] Spearman's rank correlation of the two at each checkpoint; NaN if one of them is constant.

        With two checkpoints, both give the same number.
        """
        defined = ~np.isnan(self.rel_dec + self.rel_ie).any(0)
        return spearman(self.rel_dec[:, defined], self.rel_ie[:, defined])


def norm_and_effect(
    rel_dec: Float[np.ndarray, "M F"], ie: Float[np.ndarray, "M F"], k: int | None = 100
) -> NormAndEffect:
    """Compare where a feature's decoder is large with where its effect is, as in arXiv 2509.05291.

    Args:
        rel_dec: Shares of the decoder norms (`relative` of `Crosscoder.decoder_norms`).
        ie: Indirect effects on one task (`Effects.ie`).
        k: Take the k features of largest |IE| at any checkpoint; None for every feature with an effect.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> norms, ie = np.array([[1, 2, 3.0], [3, 2, 1]]), np.array([[1, 5, 9.0], [9, 5, 1]])
        >>> ct.norm_and_effect(ct.relative(norms), ie).correlation.tolist()
        [1.0, 1.0]
    """
    check_at_least(1, k=k)
    size = np.abs(ie)
    strong = np.argsort(-size, axis=1, kind="stable")[:, :k]
    features = np.intersect1d(strong, np.flatnonzero(size.any(0)))
    return NormAndEffect(features, rel_dec[:, features], relative(ie[:, features]))
