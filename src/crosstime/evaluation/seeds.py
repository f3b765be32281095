"""One comparison, several seeds: how the quality of its crosscoders varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosstime.base.errors import InputError
from crosstime.evaluation.quality import Quality

QUALITIES = ("l0", "dead", "explained_variance", "delta_ce", "loss_recovered")
PER_CHECKPOINT = QUALITIES[2:]


@dataclass(frozen=True)
class OverSeeds:
    """Quality of S crosscoders that differ in their seed only, unrounded."""

    checkpoints: list[str]
    values: dict[str, np.ndarray]
    """For each of QUALITIES: [S], or [S, M] where it is per checkpoint (units as of `Quality`)."""

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """Means over the seeds: of no axis, or [M]."""
        return {name: np.asarray(values.mean(0)) for name, values in self.values.items()}

    @property
    def std(self) -> dict[str, np.ndarray]:
        """Standard deviations of the sample (ddof = 1): of no axis, or [M]."""
        return {name: np.asarray(values.std(0, ddof=1)) for name, values in self.values.items()}


def over_seeds(qualities: Sequence[Quality]) -> OverSeeds:
    """Put the qualities of crosscoders of several seeds together.

    Raises:
        InputError: fewer than two, or of other checkpoints, another number of features, or other amounts of text.
    """
    if len(qualities) < 2:
        raise InputError(f"a spread over seeds needs at least 2 crosscoders; got {len(qualities)}")
    first = qualities[0]
    for other in qualities[1:]:
        for what, ours, theirs in (
            ("checkpoints", first.checkpoints, other.checkpoints),
            ("number of features", len(first.frequency), len(other.frequency)),
            ("held-out tokens", first.n_tokens, other.n_tokens),
        ):
            if ours != theirs:
                raise InputError(f"the crosscoders are not of one comparison: {what} {ours} and {theirs}")
    values = {name: np.array([getattr(quality, name) for quality in qualities], float) for name in QUALITIES}
    return OverSeeds(first.checkpoints, values)
