"""How many features are there at each checkpoint, and how many of them are new or gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from crosstime.report.features import TaskFeatures

PRESENT = 0.3
"""A feature is present at a checkpoint that holds so much of an equal share: PRESENT / M, as in its lifecycle."""


@dataclass(frozen=True)
class Population:
    """Counts of features, by checkpoint."""

    present: Int[np.ndarray, " M"]
    arrived: Int[np.ndarray, " M"]
    """Present here and not at the checkpoint before; 0 at the first."""
    left: Int[np.ndarray, " M"]
    """Not present here, but at the checkpoint before; 0 at the first."""


def present(relative: Float[np.ndarray, "M F"]) -> Bool[np.ndarray, "M F"]:
    """Where a feature is present, by its RelIE or RelDec; nowhere where that is undefined."""
    return np.nan_to_num(relative) >= PRESENT / len(relative)


def by_decoder(features: TaskFeatures) -> Population:
    """Of the features that fire on held-out text, by RelDec."""
    return population(present(features.rel_dec) & (features.frequency > 0))


def by_effect(features: TaskFeatures) -> Population:
    """Of the features with an effect large enough for a class, by RelIE."""
    return population(present(features.rel_ie) & features.counts)


def population(there: Bool[np.ndarray, "M F"]) -> Population:
    """Counts what is there."""
    before = np.concatenate([there[:1], there[:-1]])
    return Population(there.sum(axis=1), (there & ~before).sum(axis=1), (before & ~there).sum(axis=1))
