"""The shape of an accuracy over training: where it rises, and where it falls below chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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

    rises: tuple[Segment, ...]
    """The largest rise, and a second of nearly its size if there is one: in order of training, neighbours joined."""
    dip: Dip | None
    first: float
    last: float

    @property
    def emerges(self) -> bool:
        """Whether the largest rise leads from near chance to a clear preference."""
        largest = max(self.rises, key=lambda segment: segment.rise, default=None)
        return largest is not None and largest.before < 0.7 and largest.after >= 0.75


def pooled(accuracy: Float[np.ndarray, "C T"], n_pairs: Sequence[int]) -> Float[np.ndarray, " C"]:
    """Accuracy over all pairs of several tasks; tasks that are NaN at a checkpoint do not count there."""
    weights = np.where(np.isnan(accuracy), 0.0, np.asarray(n_pairs, dtype=float))
    total = weights.sum(axis=1)
    return np.where(total > 0, np.nansum(accuracy * weights, axis=1) / np.maximum(total, 1), np.nan)


def shape(accuracy: Float[np.ndarray, " C"], n_pairs: int, grid: Sequence[int]) -> Shape:
    """Describes a trajectory.

    Args:
        accuracy: by checkpoint, in order of training. NaN where a checkpoint was not measured.
        n_pairs: minimal pairs behind each value.
        grid: the checkpoints (indices) between which rises are measured: those that the crosscoder compares, and
            both ends, so that a rise and the features that carry it are told about the same stretch of training.
    """
    known = np.flatnonzero(~np.isnan(accuracy))
    if len(known) == 0:
        return Shape((), None, math.nan, math.nan)
    points = sorted({int(known[0]), int(known[-1]), *(i for i in grid if not math.isnan(accuracy[i]))})
    first, last = float(accuracy[known[0]]), float(accuracy[known[-1]])
    return Shape(_rises(accuracy, n_pairs, points), _dip(accuracy, n_pairs, known), first, last)


def chance_band(n_pairs: int) -> float:
    """Half the width of the band around chance in which 95 % of coin-flipping models land."""
    return 1.96 * math.sqrt(CHANCE * (1 - CHANCE) / n_pairs)


def _rises(accuracy: Float[np.ndarray, " C"], n_pairs: int, points: Sequence[int]) -> tuple[Segment, ...]:
    segments = [Segment(a, b, float(accuracy[a]), float(accuracy[b])) for a, b in pairwise(points)]
    real = sorted((s for s in segments if _is_rise(s, n_pairs)), key=lambda s: -s.rise)
    kept = sorted((s for s in real[:2] if s.rise >= 0.6 * real[0].rise), key=lambda s: s.start)
    if len(kept) == 2 and kept[0].end == kept[1].start:
        return (Segment(kept[0].start, kept[1].end, kept[0].before, kept[1].after),)
    return tuple(kept)


def _is_rise(segment: Segment, n_pairs: int) -> bool:
    """Two-proportion z-test; conservative, since both accuracies are of the same pairs."""
    variance = sum(p * (1 - p) / n_pairs for p in (segment.before, segment.after))
    z = segment.rise / math.sqrt(max(variance, 1e-12))
    return segment.rise >= SMALLEST_RISE and bool(z > norm.isf(SIGNIFICANCE))


def _dip(accuracy: Float[np.ndarray, " C"], n_pairs: int, known: np.ndarray) -> Dip | None:
    lowest = int(known[np.argmin(accuracy[known])])
    value, last = float(accuracy[lowest]), float(accuracy[known[-1]])
    p_value = min(1.0, len(known) * float(binom.cdf(round(value * n_pairs), n_pairs, CHANCE)))
    if p_value > SIGNIFICANCE or CHANCE - value < SMALLEST_RISE:
        return None
    above = float(binom.sf(round(last * n_pairs) - 1, n_pairs, CHANCE))
    return Dip(lowest, value, p_value, last, above < SIGNIFICANCE)
