"""Classes, lifecycles and decoder labels of features, as the page words them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosstime.report.format import join_names

LIFECYCLE_WORDS = {
    "emerged": "emerged: absent at the first checkpoint, present at the last",
    "maintained": "maintained: present at the first checkpoint and at the last",
    "dropped": "dropped: present at the first checkpoint, absent at the last",
    "transient": "transient: present only at checkpoints between the first and the last",
    "negligible": "negligible: the effect is too small to classify",
    "undefined": "undefined: no effect on this task",
}

LABEL_WORDS = {
    "early": "the decoder is absent at the last checkpoint",
    "persistent": "the decoder is present at the first and the last checkpoint, in a similar direction",
    "late": "the decoder is absent at the first checkpoint and present at the last",
    "rotated": "the decoder is present at the first and the last checkpoint, in directions more than 60° apart",
    "artefact": "the decoder is absent at a checkpoint whose activations contain the feature: caused by the penalty",
    "unclear": "the feature fires too rarely, or its decoder is too far from the least-squares one, to be labelled",
}
"""The meaning of each decoder label, in the order in which the page lists them."""


def pairs(n: int) -> list[tuple[int, int]]:
    """Return the pairs of checkpoints to compare: all pairs of up to three, only neighbours of four or more."""
    neighbours = [(m, m + 1) for m in range(n - 1)]
    return [*neighbours, (0, 2)] if n == 3 else neighbours


def class_members(label: str, checkpoints: Sequence[str]) -> list[str]:
    """Return the checkpoints that a class names: one for `specific:A`, several for `shared:A+B`, else none.

    A checkpoint's name may itself contain a `+`, so names are matched whole.
    """
    kind, _, rest = label.partition(":")
    if kind == "specific":
        return [name for name in checkpoints if name == rest]
    if kind == "shared":
        return [name for name in checkpoints if f"+{name}+" in f"+{rest}+"]
    return []


def class_words(label: str, checkpoints: Sequence[str]) -> str:
    """Word a class: "specific to step256", "shared by step256 and step1000", "no clear class".

    With four or more checkpoints, a class of more than two is given by its ends: "shared from step256 to step2000".
    """
    members = class_members(label, checkpoints)
    if label.startswith("specific:") and members:
        return f"specific to {members[0]}"
    if label.startswith("shared:") and members:
        return f"shared {_sharing(members, checkpoints)}"
    return {"other": "no clear class", "negligible": "negligible effect", "undefined": "no effect"}.get(label, label)


def _sharing(members: Sequence[str], checkpoints: Sequence[str]) -> str:
    if len(members) == len(checkpoints) > 2:
        return "by all checkpoints"
    if len(members) == 2 or len(checkpoints) < 4:
        return f"by {join_names(members)}"
    first, last = checkpoints.index(members[0]), checkpoints.index(members[-1])
    if last - first + 1 == len(members):
        return f"from {members[0]} to {members[-1]}"
    return f"by {len(members)} checkpoints, {members[0]} to {members[-1]}"


@dataclass(frozen=True, order=True)
class ClassGroup:
    """Classes that are counted and filtered as one, sorted in the order in which the page lists them."""

    rank: int
    position: tuple[int, ...]
    words: str
    label: str = ""
    """The class, if it is the only one of the group."""


def class_group(label: str, checkpoints: Sequence[str]) -> ClassGroup:
    """Return the group of a class.

    With four or more checkpoints there are too many ways to share, so shared classes are grouped by the number of
    their checkpoints, and with more than eight by a quarter of the numbers.
    """
    kinds = ("specific", "shared", "other", "negligible", "undefined")
    rank = next((i for i, kind in enumerate(kinds) if label.startswith(kind)), len(kinds))
    members = class_members(label, checkpoints)
    n = len(checkpoints)
    if not label.startswith("shared") or n < 4 or not 1 < len(members) < n:
        position = tuple(checkpoints.index(name) for name in members)
        return ClassGroup(rank, (n,) if len(members) == n > 3 else position, class_words(label, checkpoints), label)
    if n <= 8:
        return ClassGroup(rank, (len(members),), f"shared by {len(members)} checkpoints")
    quarter = math.ceil(n / 4)
    first = (len(members) - 1) // quarter * quarter
    low, high = max(2, first + 1), min(first + quarter, n - 1)
    numbers = f"{low} to {high}" if low < high else f"{low}"
    return ClassGroup(rank, (high,), f"shared by {numbers} checkpoints")
