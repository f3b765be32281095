"""The shape of an accuracy over training: where it rises, and where it falls below chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import binom, norm

CHANCE = 0.5
SMALLEST_RISE = 0.03
SIGNIFICANCE = 0.001


@dataclass(frozen=True)
class Segment:
    """A stretch between two checkpoints (indices into the trajectory)."""

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
    """A rise, and where in training most of it happens."""

    whole: Segment
    """From the low to the later high that lie furthest apart."""
    steepest: Segment
    """The shortest stretch of training (in log tokens) that holds half of the whole."""

    @property
    def emerges(self) -> bool:
        """Whether it leads from near chance to a clear preference."""
        return self.whole.before < 0.6 and self.whole.after >= 0.75


@dataclass(frozen=True)
class Dip:
    """Accuracy significantly below chance: the model prefers the wrong answer."""

    lowest: int
    accuracy: float
    p_value: float
    """One-sided binomial test of the lowest accuracy against chance, corrected for the number of checkpoints."""
    last: float
    recovered: bool
    """Whether the last checkpoint is significantly above chance."""


@dataclass(frozen=True)
class Shape:
    """What there is to say of one trajectory."""

    rise: Rise | None
    dip: Dip | None
    last: float


def positions(tokens: Sequence[int | None]) -> list[float]:
    """Where checkpoints stand in training: log10 of the tokens seen, or their order where one of them is unknown.

    Zero tokens stand a little before the first checkpoint that has seen any.
    """
    positive = [count for count in tokens if count]
    if any(count is None for count in tokens) or not positive:
        return [float(i) for i in range(len(tokens))]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    return [math.log10(count) if count else low - max(0.14 * (high - low), 0.25) for count in tokens]


def pooled(accuracy: Float[np.ndarray, "C T"], n_pairs: Sequence[int]) -> Float[np.ndarray, " C"]:
    """Accuracy over all pairs of several tasks; tasks that are NaN at a checkpoint do not count there."""
    weights = np.where(np.isnan(accuracy), 0.0, np.asarray(n_pairs, dtype=float))
    total = weights.sum(axis=1)
    return np.where(total > 0, np.nansum(accuracy * weights, axis=1) / np.maximum(total, 1), np.nan)


def shape(accuracy: Float[np.ndarray, " C"], n_pairs: int, places: Sequence[float]) -> Shape:
    """Describes a trajectory.

    Args:
        accuracy: by checkpoint, in order of training. NaN where a checkpoint was not measured.
        n_pairs: minimal pairs behind each value.
        places: where the checkpoints stand in training (see `positions`).
    """
    known = [int(i) for i in np.flatnonzero(~np.isnan(accuracy))]
    if not known:
        return Shape(None, None, math.nan)
    return Shape(_rise(accuracy, n_pairs, places, known), _dip(accuracy, n_pairs, known), float(accuracy[known[-1]]))


def chance_band(n_pairs: int) -> float:
    """Half the width of the band around chance in which 95 % of coin-flipping models land."""
    return 1.96 * math.sqrt(CHANCE * (1 - CHANCE) / n_pairs)


def _rise(
    accuracy: Float[np.ndarray, " C"], n_pairs: int, places: Sequence[float], known: Sequence[int]
) -> Rise | None:
    segments = [Segment(a, b, float(accuracy[a]), float(accuracy[b])) for a, b in combinations(known, 2)]
    whole = max(segments, key=lambda segment: segment.rise, default=None)
    if whole is None or not _is_rise(whole, n_pairs, len(segments)):
        return None
    half = [segment for segment in segments if segment.rise >= 0.5 * whole.rise - 1e-9]
    steepest = min(half, key=lambda segment: (round(places[segment.end] - places[segment.start], 6), -segment.rise))
    return Rise(whole, steepest)


def _is_rise(segment: Segment, n_pairs: int, n_looked_at: int) -> bool:
    """Two-proportion z-test, corrected for the choice; conservative, since both accuracies are of the same pairs."""
    variance = sum(p * (1 - p) / n_pairs for p in (segment.before, segment.after))
    z = segment.rise / math.sqrt(max(variance, 1e-12))
    return segment.rise >= SMALLEST_RISE and bool(z > norm.isf(SIGNIFICANCE / n_looked_at))


def _dip(accuracy: Float[np.ndarray, " C"], n_pairs: int, known: Sequence[int]) -> Dip | None:
    lowest = min(known, key=lambda i: float(accuracy[i]))
    value, last = float(accuracy[lowest]), float(accuracy[known[-1]])
    p_value = min(1.0, len(known) * float(binom.cdf(round(value * n_pairs), n_pairs, CHANCE)))
    if p_value > SIGNIFICANCE or CHANCE - value < SMALLEST_RISE:
        return None
    above = float(binom.sf(round(last * n_pairs) - 1, n_pairs, CHANCE))
    return Dip(lowest, value, p_value, last, above < SIGNIFICANCE)
