"""Changes over training: the rise and fall of accuracies, the features present, and the turn of decoder directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, norm

from crosstime.attribution.relative import SHARED

CHANCE = 0.5
SMALLEST_RISE = 0.03
SIGNIFICANCE = 0.001

# --------------------------------------------------------------------------------- accuracy


@dataclass(frozen=True)
class Segment:
    """The accuracy at two checkpoints, given by their numbers."""

    start: int
    end: int
    before: float
    after: float

    @property
    def rise(self) -> float:
        """Accuracy gained."""
        return self.after - self.before


@dataclass(frozen=True)
class Rise:
    """A significant rise of the accuracy."""

    whole: Segment
    """From a low to the later high with the largest difference."""
    steepest: Segment
    """The shortest part of training (in log tokens) that holds half of the rise."""

    @property
    def emerges(self) -> bool:
        """Whether the accuracy rises from near chance to a clear preference."""
        return self.whole.before < 0.6 and self.whole.after >= 0.75


@dataclass(frozen=True)
class Dip:
    """An accuracy significantly below chance: the model prefers the wrong answer."""

    lowest: int
    accuracy: float
    p_value: float
    """One-sided binomial test of the lowest accuracy against chance, corrected for the number of checkpoints."""
    last: float
    recovered: bool
    """Whether the last accuracy is significantly above chance."""


@dataclass(frozen=True)
class Shape:
    """The rise and dip of an accuracy over training, if any, and the last accuracy."""

    rise: Rise | None
    dip: Dip | None
    last: float

    @property
    def order(self) -> tuple[int, float, float]:
        """Sort key: rises by the end of their steepest part, larger ones first; then dips; then flat trajectories."""
        if self.dip is not None and not self.dip.recovered:
            return 1, float(self.dip.lowest), self.dip.accuracy
        if self.rise is not None:
            return 0, float(self.rise.steepest.end), -self.rise.whole.rise
        return 2, 0.0, 0.0 if math.isnan(self.last) else -self.last


def positions(tokens: Sequence[int | None]) -> list[float]:
    """Return positions on the axis of training: log10 of the tokens seen, or the order if some are unknown.

    Zero tokens lie a little before the first checkpoint that has seen any.
    """
    positive = [count for count in tokens if count]
    if any(count is None for count in tokens) or not positive:
        return [float(i) for i in range(len(tokens))]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    return [math.log10(count) if count else low - max(0.14 * (high - low), 0.25) for count in tokens]


def pooled(accuracy: Float[np.ndarray, "C T"], n_pairs: Sequence[int]) -> Float[np.ndarray, " C"]:
    """Pool accuracies over the pairs of several tasks, leaving out tasks that are NaN at a checkpoint."""
    weights = np.where(np.isnan(accuracy), 0.0, np.asarray(n_pairs, dtype=float))
    total = weights.sum(axis=1)
    return np.where(total > 0, np.nansum(accuracy * weights, axis=1) / np.maximum(total, 1), np.nan)


def shape(accuracy: Float[np.ndarray, " C"], n_pairs: int, places: Sequence[float]) -> Shape:
    """Find the rise and the dip of an accuracy.

    Args:
        accuracy: By checkpoint, in order of training; NaN if not measured.
        n_pairs: Minimal pairs behind each value.
        places: Positions of the checkpoints in training (see `positions`).
    """
    measured = [int(i) for i in np.flatnonzero(~np.isnan(accuracy))]
    if not measured:
        return Shape(None, None, math.nan)
    last = float(accuracy[measured[-1]])
    return Shape(_rise(accuracy, n_pairs, places, measured), _dip(accuracy, n_pairs, measured), last)


def chance_band(n_pairs: int) -> float:
    """Return half the width of the band around chance that holds 95 % of models that guess."""
    return 1.96 * math.sqrt(CHANCE * (1 - CHANCE) / n_pairs)


def _rise(
    accuracy: Float[np.ndarray, " C"], n_pairs: int, places: Sequence[float], measured: Sequence[int]
) -> Rise | None:
    segments = [Segment(a, b, float(accuracy[a]), float(accuracy[b])) for a, b in combinations(measured, 2)]
    whole = max(segments, key=lambda segment: segment.rise, default=None)
    if whole is None or not _is_significant(whole, n_pairs, len(segments)):
        return None
    half = [segment for segment in segments if segment.rise >= 0.5 * whole.rise - 1e-9]
    steepest = min(half, key=lambda segment: (round(places[segment.end] - places[segment.start], 6), -segment.rise))
    return Rise(whole, steepest)


def _is_significant(segment: Segment, n_pairs: int, comparisons: int) -> bool:
    """Two-proportion z-test, Bonferroni-corrected; conservative, since both accuracies are of the same pairs."""
    variance = sum(p * (1 - p) / n_pairs for p in (segment.before, segment.after))
    z = segment.rise / math.sqrt(max(variance, 1e-12))
    return segment.rise >= SMALLEST_RISE and bool(z > norm.isf(SIGNIFICANCE / comparisons))


def _dip(accuracy: Float[np.ndarray, " C"], n_pairs: int, measured: Sequence[int]) -> Dip | None:
    lowest = min(measured, key=lambda i: float(accuracy[i]))
    value, last = float(accuracy[lowest]), float(accuracy[measured[-1]])
    p_value = min(1.0, len(measured) * float(binom.cdf(round(value * n_pairs), n_pairs, CHANCE)))
    if p_value > SIGNIFICANCE or CHANCE - value < SMALLEST_RISE:
        return None
    above = float(binom.sf(round(last * n_pairs) - 1, n_pairs, CHANCE))
    return Dip(lowest, value, p_value, last, above < SIGNIFICANCE)


# --------------------------------------------------------------------------------- features present


@dataclass(frozen=True)
class Population:
    """Numbers of features, by checkpoint."""

    present: Int[np.ndarray, " M"]
    new: Int[np.ndarray, " M"]
    """Present here but not at the previous checkpoint; 0 at the first."""
    gone: Int[np.ndarray, " M"]
    """Present at the previous checkpoint but not here; 0 at the first."""


def present(relative: Float[np.ndarray, "M F"]) -> Bool[np.ndarray, "M F"]:
    """Whether a feature is present at a checkpoint, as in its lifecycle: at least 0.3 of an equal RelIE or RelDec.

    A feature whose RelIE or RelDec is undefined is present nowhere.
    """
    return np.nan_to_num(relative) >= SHARED / len(relative)


def population(is_present: Bool[np.ndarray, "M F"]) -> Population:
    """Count the features that are present, new and gone at each checkpoint."""
    before = np.concatenate([is_present[:1], is_present[:-1]])
    return Population(is_present.sum(1), (is_present & ~before).sum(1), (before & ~is_present).sum(1))


# --------------------------------------------------------------------------------- directions of decoder vectors


@dataclass(frozen=True)
class Turn:
    """The division of the checkpoints into an earlier and a later group whose decoder directions differ most."""

    first_after: int
    """The first checkpoint of the later group."""
    within: float
    """Mean cosine of two checkpoints of the same group."""
    across: float
    """Mean cosine of an earlier and a later checkpoint."""


def mean_similarity(cosine: Float[np.ndarray, "M M F"], is_present: Bool[np.ndarray, "M F"]) -> np.ndarray:
    """Return the mean cosine [M, M] of two checkpoints' decoder vectors, over the features present at both; or NaN."""
    mean = np.full(cosine.shape[:2], np.nan)
    for m in range(len(mean)):
        both = is_present[m] & is_present & np.isfinite(cosine[m])
        total = np.where(both, cosine[m], 0.0).sum(axis=1)
        mean[m] = np.where(both.any(axis=1), total / np.maximum(both.sum(axis=1), 1), np.nan)
    return mean


def find_turn(similarity: Float[np.ndarray, "M M"]) -> Turn | None:
    """Find the cut with the largest mean cosine within the groups minus that across them.

    None with fewer than three checkpoints, or if a cosine is missing.
    """
    n = len(similarity)
    if n < 3 or not np.isfinite(similarity).all():
        return None
    return max((_cut(similarity, first_after) for first_after in range(1, n)), key=lambda cut: cut.within - cut.across)


def _cut(similarity: Float[np.ndarray, "M M"], first_after: int) -> Turn:
    later = np.arange(len(similarity)) >= first_after
    same = later[:, None] == later[None, :]
    different = ~np.eye(len(similarity), dtype=bool)
    return Turn(first_after, float(similarity[same & different].mean()), float(similarity[~same].mean()))
