"""The table of features, task by task, as arrays; and a feature's class and lifecycle in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from crosstime.attribution.features import FLOOR, FeatureTable
from crosstime.report import words

LIFECYCLE_WORDS = {
    "emerged": "emerged: absent at the first checkpoint, present at the last",
    "maintained": "maintained: present at the first checkpoint and at the last",
    "dropped": "dropped: present at the first checkpoint, absent at the last",
    "transient": "transient: present only between the first checkpoint and the last",
    "negligible": "negligible: an effect too small to count",
    "undefined": "undefined: no effect on this task",
}


@dataclass(frozen=True)
class TaskFeatures:
    """All features on one task."""

    task: str
    checkpoints: list[str]
    feature: Int[np.ndarray, " F"]
    classes: list[str]
    lifecycle: list[str]
    frequency: Float[np.ndarray, " F"]
    ie: Float[np.ndarray, "M F"]
    ie_low: Float[np.ndarray, "M F"]
    ie_high: Float[np.ndarray, "M F"]
    rel_ie: Float[np.ndarray, "M F"]
    rel_ie_low: Float[np.ndarray, "M F"]
    rel_ie_high: Float[np.ndarray, "M F"]
    decoder_norm: Float[np.ndarray, "M F"]
    rel_dec: Float[np.ndarray, "M F"]
    sign_consistency: Float[np.ndarray, "M F"]
    """Share of the prompts with an effect whose effect has the sign of the mean."""

    @cached_property
    def strength(self) -> Float[np.ndarray, " F"]:
        """The largest |IE| of each feature over the checkpoints."""
        return np.nan_to_num(np.abs(self.ie)).max(axis=0)

    @cached_property
    def share(self) -> Float[np.ndarray, "M F"]:
        """|IE| over the sum of |IE| of all features, by checkpoint."""
        size = np.nan_to_num(np.abs(self.ie))
        return size / np.maximum(size.sum(axis=1, keepdims=True), 1e-30)

    def strongest(self, limit: int) -> Int[np.ndarray, " N"]:
        """Rows of the features with the largest |IE| at any checkpoint; features without any effect are left out."""
        order = np.argsort(-self.strength, kind="stable")[:limit]
        return order[self.strength[order] > 0]

    def top(self, checkpoint: int, k: int) -> list[int]:
        """Rows of the `k` features with the largest |IE| at a checkpoint."""
        order = np.argsort(-self.share[checkpoint], kind="stable")[:k]
        return [int(row) for row in order if self.share[checkpoint, row] > 0]

    @cached_property
    def counts(self) -> Bool[np.ndarray, " F"]:
        """Features with an effect large enough for a class."""
        return np.array([life not in ("negligible", "undefined") for life in self.lifecycle], dtype=bool)

    def pairwise(self, before: int, after: int) -> Float[np.ndarray, " F"]:
        """RelIE of two checkpoints alone, |IE_after| / (|IE_before| + |IE_after|).

        NaN where the effect is negligible at both: below `FLOOR` of the sum over all features.
        """
        size = np.abs(self.ie[[before, after]])
        counted = (self.share[[before, after]] >= FLOOR).any(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(counted, size[1] / size.sum(axis=0), np.nan)

    def count_for(self, checkpoint: int, part: float) -> int:
        """How many features, the strongest first, make up a part of the sum of |IE| at a checkpoint; 0 without any."""
        share = np.sort(self.share[checkpoint])[::-1]
        if share.sum() == 0:
            return 0
        return int(np.searchsorted(np.cumsum(share), part) + 1)


def by_task(table: FeatureTable) -> dict[str, TaskFeatures]:
    """Split the feature table by task, in its order."""
    return {task: _of_task(table, task) for task in table.tasks}


def _of_task(table: FeatureTable, task: str) -> TaskFeatures:
    return TaskFeatures(
        task=task,
        checkpoints=table.checkpoints,
        feature=table.features(task).astype(np.int64),
        classes=table.column(task, "class"),
        lifecycle=table.column(task, "lifecycle"),
        frequency=np.array(table.column(task, "frequency"), np.float64),
        **{name: table.array(task, name) for name in _MEASURES},
    )


_MEASURES = ("ie", "ie_low", "ie_high", "rel_ie", "rel_ie_low", "rel_ie_high")
_MEASURES += ("decoder_norm", "rel_dec", "sign_consistency")


def pairs(n: int) -> list[tuple[int, int]]:
    """The pairs of checkpoints that are compared: all of them up to three, the neighbours from four on."""
    neighbours = [(m, m + 1) for m in range(n - 1)]
    return [*neighbours, (0, 2)] if n == 3 else neighbours


def class_members(label: str, checkpoints: Sequence[str]) -> list[str]:
    """The checkpoints that a class names: one for `specific:A`, several for `shared:A+B`, none otherwise.

    A checkpoint's name may itself hold a `+`, so names are matched whole.
    """
    kind, _, rest = label.partition(":")
    if kind == "specific":
        return [name for name in checkpoints if name == rest]
    if kind == "shared":
        return [name for name in checkpoints if f"+{name}+" in f"+{rest}+"]
    return []


@dataclass(frozen=True, order=True)
class ClassGroup:
    """Classes that are counted and chosen as one, in the order in which they are listed."""

    rank: int
    place: tuple[int, ...]
    words: str
    label: str = ""
    """The class, where it is the only one of its group."""


def class_group(label: str, checkpoints: Sequence[str]) -> ClassGroup:
    """The group of a class.

    From four checkpoints on there are too many ways to share, so that those are told by how many checkpoints share:
    their number, or a quarter of all numbers where there are more than eight.
    """
    kinds = ("specific", "shared", "other", "negligible", "undefined")
    rank = next((i for i, kind in enumerate(kinds) if label.startswith(kind)), len(kinds))
    members = class_members(label, checkpoints)
    n = len(checkpoints)
    if not label.startswith("shared") or n < 4 or not 1 < len(members) < n:
        place = tuple(checkpoints.index(name) for name in members)
        return ClassGroup(rank, (n,) if len(members) == n > 3 else place, class_words(label, checkpoints), label)
    if n <= 8:
        return ClassGroup(rank, (len(members),), f"shared by {len(members)} checkpoints")
    quarter = math.ceil(n / 4)
    first = (len(members) - 1) // quarter * quarter
    low, high = max(2, first + 1), min(first + quarter, n - 1)
    return ClassGroup(
        rank, (high,), f"shared by {low} to {high} checkpoints" if low < high else f"shared by {low} checkpoints"
    )


def class_words(label: str, checkpoints: Sequence[str]) -> str:
    """A class as a reader says it: "specific to step256", "shared by step256 and step1000", "no clear class".

    From four checkpoints on, more than two of them are told by their ends: "shared from step256 to step2000".
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
        return f"by {words.listed(members)}"
    first, last = checkpoints.index(members[0]), checkpoints.index(members[-1])
    if last - first + 1 == len(members):
        return f"from {members[0]} to {members[-1]}"
    return f"by {len(members)} checkpoints, {members[0]} to {members[-1]}"
