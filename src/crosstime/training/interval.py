"""What happened between two lines of the training log."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

from crosstime.training.step import StepStats


class Interval:
    """How long it took, and what the steps of each crosscoder measured."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, Sums] = {}
        self.collection_seconds = 0.0
        self.begin = time.perf_counter()

    def add(self, name: str, stats: StepStats) -> None:
        """Add what a step of one crosscoder measured."""
        self.sums.setdefault(name, Sums()).add(stats)

    def speed(self, batch_size: int, flop: float) -> Speed:
        """How fast it was until now.

        Args:
            batch_size: rows of a step.
            flop: FLOP of a step's matrix products.
        """
        seconds = time.perf_counter() - self.begin
        return Speed(
            tokens=self.steps * batch_size / seconds,
            collection_share=self.collection_seconds / seconds,
            flop=self.steps * flop / (seconds - self.collection_seconds),
        )


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast an interval was."""

    tokens: float
    """Rows a second, however many crosscoders learn from them: one row is one token, seen by every checkpoint."""
    collection_share: float
    """Of the time."""
    flop: float
    """FLOP/s of the crosscoders' matrix products, in the time that was left by the harvest."""


class Sums:
    """Sums over the steps of one crosscoder. They stay on the device until they are read."""

    def __init__(self) -> None:
        self.steps = 0
        self.stats: StepStats | None = None

    def add(self, stats: StepStats) -> None:
        """Add a step."""
        self.steps += 1
        if self.stats is None:
            self.stats = stats
        else:
            self.stats = StepStats(
                **{f.name: getattr(self.stats, f.name) + getattr(stats, f.name) for f in dataclasses.fields(StepStats)}
            )

    def means(self, checkpoints: Sequence[str]) -> dict[str, Any]:
        """Means over the steps that were taken; NaN where none was."""
        assert self.stats is not None
        error, variance = self.stats.squared_error.cpu(), self.stats.variance.cpu()
        explained = 1 - error / variance
        taken = int(self.stats.taken)
        share = 1 / taken if taken else math.nan
        return {
            "loss": float(error.sum() + self.stats.penalty.cpu() + self.stats.auxiliary.cpu()) * share,
            "squared_error": float(error.sum()) * share,
            "penalty": float(self.stats.penalty) * share,
            "auxiliary": float(self.stats.auxiliary) * share,
            "l0": float(self.stats.l0) * share,
            "skipped_steps": self.steps - taken,
            "explained_variance": float(1 - error.sum() / variance.sum()),
            "explained_variance_by_checkpoint": dict(zip(checkpoints, explained.tolist(), strict=True)),
        }
