"""Crosscoders that differ only in their seed: the spread of their quality, and how similar their features are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.diagnostics import scaled_decoder
from crosstime.evaluation.quality import Quality

QUALITIES = ("l0", "dead", "explained_variance", "delta_ce", "loss_recovered")
PER_CHECKPOINT = QUALITIES[2:]


@dataclass(frozen=True)
class OverSeeds:
    """Quality of S crosscoders that differ only in their seed, unrounded.

    Example:
        >>> import numpy as np
        >>> over = OverSeeds(["step64", "step3786"], {"l0": np.array([10.0, 12.0]), "dead": np.array([3.0, 5.0])})
        >>> float(over.mean["l0"]), round(float(over.std["l0"]), 3)
        (11.0, 1.414)
    """

    checkpoints: list[str]
    values: dict[str, np.ndarray]
    """For each of QUALITIES: [S], or [S, M] if it is per checkpoint; units as in `Quality`."""

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """Means over the seeds: scalars, or [M]."""
        return {name: np.asarray(values.mean(0)) for name, values in self.values.items()}

    @property
    def std(self) -> dict[str, np.ndarray]:
        """Sample standard deviations (ddof = 1): scalars, or [M]."""
        return {name: np.asarray(values.std(0, ddof=1)) for name, values in self.values.items()}


def over_seeds(qualities: Sequence[Quality]) -> OverSeeds:
    """Combine the qualities of crosscoders that differ only in their seed.

    Raises:
        InputError: There are fewer than two, or they differ in checkpoints, number of features or amount of text.

    Example:
        >>> import numpy as np
        >>> one, half = np.ones(2), np.full(2, 0.5)
        >>> frequency = np.array([0.5, 0.5])
        >>> over = over_seeds([Quality(["a", "b"], 100, l0, 0, frequency, half, one, one, one) for l0 in (1.0, 2.0)])
        >>> float(over.mean["l0"]), over.mean["explained_variance"].tolist()
        (1.5, [0.5, 0.5])
    """
    if len(qualities) < 2:
        raise InputError(f"a spread over seeds needs at least 2 crosscoders; got {len(qualities)}")
    first = qualities[0]
    for other in qualities[1:]:
        for what, a, b in (
            ("checkpoints", first.checkpoints, other.checkpoints),
            ("number of features", len(first.frequency), len(other.frequency)),
            ("held-out tokens", first.n_tokens, other.n_tokens),
        ):
            if a != b:
                raise InputError(f"the crosscoders differ in more than their seed: {what} {a} and {b}")
    values = {name: np.array([getattr(quality, name) for quality in qualities], float) for name in QUALITIES}
    return OverSeeds(first.checkpoints, values)


@torch.no_grad()
def matched_cosines(one: Crosscoder, other: Crosscoder) -> Float[np.ndarray, " F"]:
    """Return for each feature of one crosscoder its cosine with the matching feature of the other.

    A feature's vector is the concatenation of its decoder vectors at all checkpoints, in scaled units. Features are
    matched one to one so that the sum of the cosines is largest (Hungarian method), which takes seconds for 8,000
    features and grows with the cube of their number.

    Raises:
        InputError: The crosscoders differ in checkpoints, width or number of features.

    Example:
        >>> import crosstime as ct, torch
        >>> config = ct.CrosscoderConfig(("step64", "step3786"), layer=0, width=4, features=3)
        >>> one, other = ct.Crosscoder(config), ct.Crosscoder(config)
        >>> _ = torch.nn.init.normal_(one.W_dec)
        >>> _ = other.load_state_dict(one.state_dict())
        >>> _ = other.W_dec.data.copy_(one.W_dec.data.flip(0))  # the same features in another order
        >>> ct.matched_cosines(one, other).round(3).tolist()
        [1.0, 1.0, 1.0]
    """
    a, b = one.config, other.config
    if (a.checkpoints, a.features, a.width) != (b.checkpoints, b.features, b.width):
        raise InputError(
            f"can't match the features of crosscoders over {list(a.checkpoints)} ({a.features} features of width "
            f"{a.width}) and {list(b.checkpoints)} ({b.features} features of width {b.width}): they must agree in these"
        )
    vectors = [normalize(scaled_decoder(c).flatten(1), dim=1) for c in (one, other)]
    cosine = (vectors[0] @ vectors[1].to(vectors[0].device).T).cpu().numpy()
    return cosine[linear_sum_assignment(cosine, maximize=True)]


def stability(crosscoders: Sequence[Crosscoder]) -> float:
    """Return the mean cosine of matched features over all pairs of crosscoders; 1 if all have the same features."""
    return float(np.mean([matched_cosines(a, b).mean() for a, b in combinations(crosscoders, 2)]))
