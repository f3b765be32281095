"""Exact effects of single features on one task, beside the estimates that chose them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from scipy import stats

COLUMNS = ("ie", "exact", "exact_low", "exact_high", "rel_exact", "rel_exact_low", "rel_exact_high")


@dataclass(frozen=True)
class TaskExact:
    """The features that were ablated one by one. `K M` arrays are by feature and checkpoint."""

    checkpoints: list[str]
    feature: Int[np.ndarray, " K"]
    ie: Float[np.ndarray, "K M"]
    exact: Float[np.ndarray, "K M"]
    exact_low: Float[np.ndarray, "K M"]
    exact_high: Float[np.ndarray, "K M"]
    rel_exact: Float[np.ndarray, "K M"]
    rel_exact_low: Float[np.ndarray, "K M"]
    rel_exact_high: Float[np.ndarray, "K M"]

    @cached_property
    def rel_ie(self) -> Float[np.ndarray, "K M"]:
        """RelIE by the estimates; NaN where a feature has none."""
        size = np.abs(self.ie)
        with np.errstate(invalid="ignore", divide="ignore"):
            return size / size.sum(axis=1, keepdims=True)

    @cached_property
    def row(self) -> dict[int, int]:
        """Feature -> its row."""
        return {feature: i for i, feature in enumerate(self.feature.tolist())}

    def correlations(self) -> list[tuple[float, float]]:
        """By checkpoint, Spearman's rank correlation of (IE and exact effect, RelIE and exact RelIE)."""
        pairs = ((self.ie, self.exact), (self.rel_ie, self.rel_exact))
        return [tuple(spearman(a[:, m], b[:, m]) for a, b in pairs) for m in range(len(self.checkpoints))]


def by_task(table: pa.Table, checkpoints: Sequence[str]) -> Mapping[str, TaskExact]:
    """Splits the table of `exact.parquet` by task.

    Raises:
        ValueError: a task's rows are not all its features at all checkpoints, feature by feature.
    """
    return {
        task: _of_task(table.filter(pc.field("task") == task), task, checkpoints)
        for task in pc.unique(table["task"]).to_pylist()
    }


def _of_task(table: pa.Table, task: str, checkpoints: Sequence[str]) -> TaskExact:
    n = len(checkpoints)
    if table["checkpoint"].to_pylist() != list(checkpoints) * (len(table) // n):
        raise ValueError(f"the exact effects on {task!r} are not of the checkpoints {', '.join(checkpoints)}, in order")
    values = {name: table[name].to_numpy().astype(np.float64).reshape(-1, n) for name in COLUMNS}
    return TaskExact(checkpoints=list(checkpoints), feature=table["feature"].to_numpy()[::n].astype(np.int64), **values)


def spearman(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> float:
    """Spearman's rank correlation where both are known; NaN where there is nothing to rank."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return math.nan
    return float(stats.spearmanr(a[known], b[known]).statistic)
