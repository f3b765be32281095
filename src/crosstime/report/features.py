"""The table of features, task by task, as arrays; and a feature's class and lifecycle in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

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
    """All features on one task. `F M` arrays are by feature and checkpoint."""

    task: str
    checkpoints: list[str]
    feature: Int[np.ndarray, " F"]
    classes: list[str]
    lifecycle: list[str]
    frequency: Float[np.ndarray, " F"]
    ie: Float[np.ndarray, "F M"]
    ie_low: Float[np.ndarray, "F M"]
    ie_high: Float[np.ndarray, "F M"]
    rel_ie: Float[np.ndarray, "F M"]
    rel_ie_low: Float[np.ndarray, "F M"]
    rel_ie_high: Float[np.ndarray, "F M"]
    decoder_norm: Float[np.ndarray, "F M"]
    rel_dec: Float[np.ndarray, "F M"]

    @cached_property
    def strength(self) -> Float[np.ndarray, " F"]:
        """The largest |IE| of each feature over the checkpoints."""
        return np.nan_to_num(np.abs(self.ie)).max(axis=1)

    @cached_property
    def share(self) -> Float[np.ndarray, "F M"]:
        """|IE| over the sum of |IE| of all features, by checkpoint."""
        size = np.nan_to_num(np.abs(self.ie))
        return size / np.maximum(size.sum(axis=0), 1e-30)

    def strongest(self, limit: int) -> Int[np.ndarray, " N"]:
        """Rows of the features with the largest |IE| at any checkpoint; features without any effect are left out."""
        order = np.argsort(-self.strength, kind="stable")[:limit]
        return order[self.strength[order] > 0]

    def top(self, checkpoint: int, k: int) -> list[int]:
        """Rows of the `k` features with the largest |IE| at a checkpoint."""
        order = np.argsort(-self.share[:, checkpoint], kind="stable")[:k]
        return [int(row) for row in order if self.share[row, checkpoint] > 0]

    def count_for(self, checkpoint: int, part: float) -> int:
        """How many features, the strongest first, make up a part of the sum of |IE| at a checkpoint; 0 without any."""
        share = np.sort(self.share[:, checkpoint])[::-1]
        if share.sum() == 0:
            return 0
        return int(np.searchsorted(np.cumsum(share), part) + 1)


def by_task(table: pa.Table, checkpoints: Sequence[str]) -> dict[str, TaskFeatures]:
    """Splits the table of `features.parquet` by task, in the table's order.

    Raises:
        ValueError: a column is missing for one of the checkpoints.
    """
    kinds = ("ie", "ie_low", "ie_high", "rel_ie", "rel_ie_low", "rel_ie_high", "decoder_norm", "rel_dec")
    missing = [f"{k}_{name}" for k in kinds for name in checkpoints if f"{k}_{name}" not in table.column_names]
    if missing:
        raise ValueError(f"the table of features has no column {missing[0]!r}: it is of other checkpoints")
    tasks = list(dict.fromkeys(table["task"].to_pylist()))
    return {task: _of_task(table.filter(pc.field("task") == task), task, checkpoints) for task in tasks}


def _of_task(table: pa.Table, task: str, checkpoints: Sequence[str]) -> TaskFeatures:
    def column(name: str) -> np.ndarray:
        return table[name].to_numpy().astype(np.float64)

    def by_checkpoint(kind: str) -> np.ndarray:
        return np.stack([column(f"{kind}_{name}") for name in checkpoints], axis=1)

    return TaskFeatures(
        task=task,
        checkpoints=list(checkpoints),
        feature=table["feature"].to_numpy().astype(np.int64),
        classes=table["class"].to_pylist(),
        lifecycle=table["lifecycle"].to_pylist(),
        frequency=column("frequency"),
        ie=by_checkpoint("ie"),
        ie_low=by_checkpoint("ie_low"),
        ie_high=by_checkpoint("ie_high"),
        rel_ie=by_checkpoint("rel_ie"),
        rel_ie_low=by_checkpoint("rel_ie_low"),
        rel_ie_high=by_checkpoint("rel_ie_high"),
        decoder_norm=by_checkpoint("decoder_norm"),
        rel_dec=by_checkpoint("rel_dec"),
    )


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


def class_order(label: str, checkpoints: Sequence[str]) -> tuple[int, list[int], str]:
    """Sorts classes: specific ones in order of training, shared ones, those without a checkpoint."""
    kinds = ("specific", "shared", "other", "negligible", "undefined")
    rank = next((i for i, kind in enumerate(kinds) if label.startswith(kind)), len(kinds))
    return rank, [checkpoints.index(name) for name in class_members(label, checkpoints)], label


def class_words(label: str, checkpoints: Sequence[str]) -> str:
    """A class as a reader says it: "specific to step256", "shared by step256 and step1000", "no clear class"."""
    members = class_members(label, checkpoints)
    if label.startswith("specific:") and members:
        return f"specific to {members[0]}"
    if label.startswith("shared:") and members:
        return (
            "shared by all checkpoints"
            if len(members) == len(checkpoints) > 2
            else f"shared by {words.listed(members)}"
        )
    return {"other": "no clear class", "negligible": "negligible effect", "undefined": "no effect"}.get(label, label)
