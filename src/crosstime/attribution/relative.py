"""Relative measures: the shares of checkpoints in a feature's effect (RelIE) or decoder norm (RelDec), and classes.

Those of arXiv 2509.05291, one against all and pairwise, for any number of checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from crosstime.base.registry import Registry

SPECIFIC = 0.7
"""A feature is specific to a checkpoint that has more than this share (the paper's bound)."""
SHARED = 0.3
"""A feature is shared by checkpoints that have at least this share (the paper's bound)."""
PRESENT = 0.3
"""A feature is present at a checkpoint that has at least this part of an equal share: PRESENT / M."""


@dataclass(frozen=True)
class NoEffect:
    """A convention for the share of a feature that has no effect at any checkpoint."""

    name: str
    share: float


NO_EFFECT: Registry[NoEffect] = Registry("convention for features without effect")
NO_EFFECT.add(NoEffect("undefined", np.nan))
NO_EFFECT.add(NoEffect("shared", 0.5))  # that of the paper's public code

LIFECYCLES = ("emerged", "maintained", "dropped", "transient", "negligible", "undefined")
"""All values of `lifecycle`."""


def relative(values: Float[np.ndarray, "M F"], no_effect: str = "undefined") -> Float[np.ndarray, "M F"]:
    """Return |v_m| / sum over checkpoints of |v|: columns sum to 1.

    Where all values are 0 the column is NaN ("undefined"), or, as in the paper's public code, 0.5 everywhere
    ("shared"); that code's option to drop such features is `values[:, values.any(0)]`. With two checkpoints the second
    row is the paper's two-way RelIE or RelDec. With values independent of the checkpoint every entry is 1/M.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> ct.relative(np.array([[1.0, -3.0], [1.0, 1.0]])).tolist()
        [[0.5, 0.75], [0.5, 0.25]]
    """
    size = np.abs(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = size / size.sum(0)
    share[:, ~size.any(0)] = NO_EFFECT[no_effect].share
    return share


def pairwise(
    values: Float[np.ndarray, "M F"], no_effect: str = "undefined"
) -> dict[tuple[int, int], Float[np.ndarray, " F"]]:
    """Return |v_n| / (|v_m| + |v_n|), the later checkpoint's share, for every two checkpoints m < n.

    NaN where both values are 0; under "shared" 0.5 where the values of all checkpoints are 0. With three checkpoints
    the paper's pairwise RelIE or RelDec is the entries (0, 1), (1, 2) and (0, 2).

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> ct.pairwise(np.array([[3.0], [1.0], [0.0]]))[0, 1].tolist()
        [0.25]
    """
    size, nowhere = np.abs(values), ~np.any(values, axis=0)
    shares = {}
    for m, n in combinations(range(len(size)), 2):
        with np.errstate(invalid="ignore", divide="ignore"):
            shares[m, n] = size[n] / (size[m] + size[n])
        shares[m, n][nowhere] = NO_EFFECT[no_effect].share
    return shares


def level(share: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Return the paper's class of a single share: 1 above 0.7, 0 below 0.3, else (and for NaN) 0.5."""
    return np.select([share > SPECIFIC, share < SHARED], [1.0, 0.0], 0.5)


def negligible(ie: Float[np.ndarray, "M F"], floor: float) -> Bool[np.ndarray, " F"]:
    """Find features whose |IE| is below `floor` times the sum of all features' |IE| at every checkpoint.

    Their RelIE is a ratio of noise, so they get no class.
    """
    size = np.abs(ie)
    return (size < floor * size.sum(1, keepdims=True)).all(0)


def sharing(rel: Float[np.ndarray, "M F"], no_class: Bool[np.ndarray, " F"], names: Sequence[str]) -> list[str]:
    """Classify features by the checkpoints that share their effect, given RelIE.

    "specific:A" above 0.7 at A; else "shared:A+B" over those with at least 0.3 (the paper's bounds; from four
    checkpoints on 0.9/M, since 0.3 would be more than an equal share) if there are at least two; else "other".
    "undefined" without any effect, "negligible" where `no_class`.
    """
    share = min(SHARED, 0.9 / len(names))

    def classify(shares: np.ndarray, too_small: bool) -> str:
        if np.isnan(shares).any():
            return "undefined"
        if too_small:
            return "negligible"
        if shares.max() > SPECIFIC:
            return f"specific:{names[int(shares.argmax())]}"
        members = [name for name, value in zip(names, shares, strict=True) if value >= share]
        return f"shared:{'+'.join(members)}" if len(members) > 1 else "other"

    return [classify(shares, bool(small)) for shares, small in zip(rel.T, no_class, strict=True)]


def lifecycle(rel: Float[np.ndarray, "M F"], no_class: Bool[np.ndarray, " F"]) -> list[str]:
    """Classify features by their presence at the first and the last checkpoint, given RelIE.

    A feature is present at a checkpoint that has at least 0.3 of an equal share (0.3/M). "emerged": present at the last
    but not the first; "dropped": at the first but not the last; "maintained": at both; "transient": at neither, only
    between them. "undefined" and "negligible" as in `sharing`.
    """
    present = rel >= PRESENT / len(rel)
    names = np.array([["transient", "emerged"], ["dropped", "maintained"]])
    lifecycles = names[present[0].astype(int), present[-1].astype(int)].astype("<U10")
    lifecycles[no_class] = "negligible"
    lifecycles[np.isnan(rel).any(0)] = "undefined"
    return lifecycles.tolist()
