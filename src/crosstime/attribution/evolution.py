"""How the features of the largest and the smallest effects came to be so: their effects over all checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from crosstime.base.errors import InputError


@dataclass(frozen=True)
class Evolution:
    """One feature's indirect effects over the checkpoints, and why it is looked at."""

    feature: int
    chosen: tuple[str, ...]
    """Its groups: "largest at first", "smallest at first", "largest at last", "smallest at last"."""
    ie: np.ndarray
    """[M] indirect effects, signed."""


def evolution(ie: Float[np.ndarray, "M F"], k: int = 5) -> list[Evolution]:
    """The features of the k largest and the k smallest signed IE at the first and at the last checkpoint.

    As the paper plots them (arXiv 2509.05291), but a feature with no effect is in no group, and "largest" are effects
    above zero only, "smallest" those below.

    Args:
        ie: indirect effects, as of `Effects.ie`.
        k: features of each group at most; together they are up to 4 k.

    Returns:
        each feature once, in the order of the groups.

    Raises:
        InputError: k is less than 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    chosen: dict[int, list[str]] = {}
    for place, effects in (("first", ie[0]), ("last", ie[-1])):
        for word, sign in (("largest", 1), ("smallest", -1)):
            order = np.argsort(-sign * effects, kind="stable")[:k]
            for feature in order[sign * effects[order] > 0]:
                chosen.setdefault(int(feature), []).append(f"{word} at {place}")
    return [Evolution(feature, tuple(groups), ie[:, feature]) for feature, groups in chosen.items()]
