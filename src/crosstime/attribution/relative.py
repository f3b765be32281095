"""Relative measures: how a feature's effect, or its decoder norm, is shared out between the checkpoints.

RelIE and RelDec of arXiv 2509.05291, one against all and pairwise, for any number of checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from crosstime.base.errors import InputError

SPECIFIC = 0.7
"""A feature belongs to one checkpoint when more than this share is there (the paper's bound)."""
SHARED = 0.3
"""A feature is shared by checkpoints that hold at least this share (the paper's bound)."""

NoEffect = Literal["undefined", "shared"]

LIFECYCLES = ("emerged", "maintained", "dropped", "transient", "negligible", "undefined")
"""What `lifecycle` may say of a feature."""


def share_of_no_effect(no_effect: NoEffect) -> float:
    """The share that stands for that of a feature without effect.

    Raises:
        InputError: an unknown word.
    """
    match no_effect:
        case "undefined":
            return np.nan
        case "shared":
            return 0.5
        case _:
            raise InputError(f"unknown no_effect {no_effect!r}: choose undefined or shared")


def relative(values: Float[np.ndarray, "M F"], no_effect: NoEffect = "undefined") -> Float[np.ndarray, "M F"]:
    """Return |v_m| / sum over checkpoints of |v|: columns sum to 1.

    Where all values are 0 the column is NaN ("undefined"), or, as in the paper's public code, 0.5 everywhere
    ("shared"); that code's option to drop such features is `values[:, values.any(0)]`. With two checkpoints the second
    row is the paper's two-way RelIE or RelDec. With values independent of the checkpoint every entry is 1/M.
    """
    size = np.abs(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = size / size.sum(0)
    share[:, ~size.any(0)] = share_of_no_effect(no_effect)
    return share


def pairwise(
    values: Float[np.ndarray, "M F"], no_effect: NoEffect = "undefined"
) -> dict[tuple[int, int], Float[np.ndarray, " F"]]:
    """|v_n| / (|v_m| + |v_n|) for every two checkpoints m < n: the later one's share, by the indices (m, n).

    It is NaN where both values are 0; under "shared" 0.5 where the values of all checkpoints are 0. With three
    checkpoints the paper's pairwise RelIE or RelDec is the entries (0, 1), (1, 2) and (0, 2).
    """
    size, nowhere = np.abs(values), ~np.any(values, axis=0)
    shares = {}
    for m, n in combinations(range(len(size)), 2):
        with np.errstate(invalid="ignore", divide="ignore"):
            shares[m, n] = size[n] / (size[m] + size[n])
        shares[m, n][nowhere] = share_of_no_effect(no_effect)
    return shares


def level(share: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """The paper's class of a single share: 1 above 0.7, 0 below 0.3, else 0.5, which NaN is too."""
    return np.select([share > SPECIFIC, share < SHARED], [1.0, 0.0], 0.5)


def negligible(ie: Float[np.ndarray, "M F"], floor: float) -> Bool[np.ndarray, " F"]:
    """Features whose |IE| is, at every checkpoint, below `floor` times the sum of all features' |IE| there.

    Their RelIE is a ratio of noises, so they get no class.
    """
    size = np.abs(ie)
    return (size < floor * size.sum(1, keepdims=True)).all(0)


def sharing(rel: Float[np.ndarray, "M F"], no_class: Bool[np.ndarray, " F"], names: Sequence[str]) -> list[str]:
    """Which checkpoints a feature belongs to, by its RelIE.

    "specific:A" above 0.7 at A; else "shared:A+B" over those that hold at least 0.3 (the paper's bounds; from four
    checkpoints on 0.9/M, since 0.3 would be more than an equal share), if there are two; else "other". "undefined"
    without an effect anywhere, "negligible" where `no_class`.
    """
    share = min(SHARED, 0.9 / len(names))

    def one(row: np.ndarray, too_small: bool) -> str:
        if np.isnan(row).any():
            return "undefined"
        if too_small:
            return "negligible"
        if row.max() > SPECIFIC:
            return f"specific:{names[int(row.argmax())]}"
        among = [name for name, value in zip(names, row, strict=True) if value >= share]
        return f"shared:{'+'.join(among)}" if len(among) > 1 else "other"

    return [one(row, bool(small)) for row, small in zip(rel.T, no_class, strict=True)]


def lifecycle(rel: Float[np.ndarray, "M F"], no_class: Bool[np.ndarray, " F"]) -> list[str]:
    """What became of a feature between the first and the last checkpoint, by its RelIE.

    A feature is present at a checkpoint that holds at least 0.3 of an equal share (0.3/M). "emerged": not at the
    first but at the last; "dropped": at the first but not at the last; "maintained": at both; "transient": at
    neither, only between them. "undefined" and "negligible" as in `sharing`.
    """
    present = rel >= 0.3 / len(rel)
    words = np.array([["transient", "emerged"], ["dropped", "maintained"]])
    found = words[present[0].astype(int), present[-1].astype(int)].astype("<U10")
    found[no_class] = "negligible"
    found[np.isnan(rel).any(0)] = "undefined"
    return found.tolist()
