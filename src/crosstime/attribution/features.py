"""The feature table: effects, classes and decoder norms of every feature on every task (features.parquet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int

from crosstime.attribution.effects import Effects
from crosstime.attribution.relative import lifecycle, negligible, relative, sharing
from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder

FLOOR = 1e-3
"""Share of a checkpoint's summed |IE| below which an effect is too small to give a feature a class."""


@dataclass(frozen=True)
class CheckpointTable:
    """A long table: one row per task, feature and checkpoint, sorted in this order.

    Tasks are in the order of attribution, features ascending, checkpoints in the order of training. A task without rows
    has no features.

    Raises:
        InputError: the rows are in another order, or a feature lacks a checkpoint.
    """

    table: pa.Table

    def __post_init__(self) -> None:
        m = max(1, len(self.checkpoints))
        columns = [_index(self.table, "task", self.tasks), _index(self.table, "checkpoint", self.checkpoints)]
        columns.append(self.table["feature"].to_numpy())
        if self.table.num_rows % m == 0:
            task, checkpoint, feature = (column.reshape(-1, m) for column in columns)
            step = np.diff(task[:, 0]), np.diff(feature[:, 0])
            same = (task == task[:, :1]).all() and (feature == feature[:, :1]).all()
            ascending = ((step[0] > 0) | ((step[0] == 0) & (step[1] > 0))).all()
            if same and ascending and (checkpoint == np.arange(m)).all():
                return
        raise InputError(
            "the table isn't sorted by task, feature and checkpoint: it needs one row per task, feature and checkpoint "
            f"({', '.join(self.checkpoints)})"
        )

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks, in order."""
        return self.table["task"].unique().to_pylist()

    @cached_property
    def checkpoints(self) -> list[str]:
        """The checkpoints, in order."""
        return self.table["checkpoint"].unique().to_pylist()

    def features(self, task: str) -> Int[np.ndarray, " F"]:
        """Return the ids of the features on a task, ascending."""
        return self._rows(task)["feature"].to_numpy()[:: len(self.checkpoints)]

    def array(self, task: str, column: str) -> Float[np.ndarray, "M F"]:
        """Return a numeric column on a task, by checkpoint and feature, as float64."""
        values = self._rows(task)[column].to_numpy().astype(np.float64)
        return np.ascontiguousarray(values.reshape(-1, len(self.checkpoints)).T)

    def column(self, task: str, column: str) -> list[Any]:
        """Return a column that doesn't depend on the checkpoint, one value per feature."""
        rows = self._rows(task)
        return rows[column].take(np.arange(0, rows.num_rows, len(self.checkpoints))).to_pylist()

    def _rows(self, task: str) -> pa.Table:
        return self.table.slice(*self._spans.get(task, (0, 0)))

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        """Task -> its first row and its number of rows."""
        counts = np.bincount(_index(self.table, "task", self.tasks), minlength=len(self.tasks))
        starts = np.cumsum(counts) - counts
        return dict(zip(self.tasks, zip(starts.tolist(), counts.tolist(), strict=True), strict=True))


class FeatureTable(CheckpointTable):
    """All features on all attributed tasks.

    The table's columns are task, feature, checkpoint; class (see `relative.sharing`), lifecycle (see
    `relative.lifecycle`) and frequency (share of held-out tokens on which the feature fires), which are repeated for
    each checkpoint; ie, rel_ie and their bounds (ie_low, ie_high, rel_ie_low, rel_ie_high); sign_consistency (share of
    the prompts with an effect whose effect has the sign of ie); decoder_norm and rel_dec.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> columns = {"ie": np.array([[0.1, 0.0], [0.3, 0.5]]), "class": ["shared:step64+step3786", "other"]}
        >>> table = ct.FeatureTable(long_table("agreement", ["step64", "step3786"], np.array([3, 7]), columns))
        >>> table.array("agreement", "ie")[1].tolist(), table.column("agreement", "class")[1]
        ([0.3, 0.5], 'other')
        >>> table.table.slice(0, 1).to_pylist()[0]["checkpoint"]
        'step64'
    """

    @classmethod
    @torch.no_grad()
    def from_effects(
        cls, effects: Sequence[Effects], crosscoder: Crosscoder, frequency: Float[np.ndarray, " F"]
    ) -> FeatureTable:
        """Build the table from the effects on each task.

        Args:
            effects: Effects of one crosscoder, one per task.
            crosscoder: F features over M checkpoints.
            frequency: Share of held-out tokens on which each feature fires (`Quality.frequency`).
        """
        norms = crosscoder.decoder_norms().float().cpu().numpy()
        decoder = {"decoder_norm": norms, "rel_dec": relative(norms).astype(np.float32)}
        tables = []
        for one in effects:
            small = negligible(one.ie, FLOOR)
            columns = {
                "class": sharing(one.rel_ie, small, one.checkpoints),
                "lifecycle": lifecycle(one.rel_ie, small),
                "frequency": frequency.astype(np.float32),
                **{name: getattr(one, name).astype(np.float32) for name in _MEASURES},
                **decoder,
            }
            tables.append(long_table(one.task, one.checkpoints, np.arange(len(frequency)), columns))
        return cls(pa.concat_tables(tables))

    def save(self, folder: Path) -> None:
        """Write features.parquet into an existing folder."""
        pq.write_table(self.table, folder / "features.parquet")

    @classmethod
    def load(cls, folder: Path) -> FeatureTable:
        """Read what `save` wrote."""
        return cls(pq.read_table(folder / "features.parquet"))


_MEASURES = ("ie", "ie_low", "ie_high", "rel_ie", "rel_ie_low", "rel_ie_high", "sign_consistency")


def long_table(
    task: str, checkpoints: Sequence[str], features: Int[np.ndarray, " F"], columns: Mapping[str, Any]
) -> pa.Table:
    """Build the rows of a `CheckpointTable` for one task.

    Args:
        task: Name of the task.
        checkpoints: Names of M checkpoints.
        features: Ids of F features, ascending.
        columns: Arrays [M, F], or one value per feature, which is repeated for each checkpoint.
    """
    n, m = len(features), len(checkpoints)
    feature_of_row = np.repeat(np.arange(n), m)
    table: dict[str, Any] = {
        "task": pa.array([task] * (n * m), pa.string()),
        "feature": pa.array(np.asarray(features, np.int32)[feature_of_row]),
        "checkpoint": pa.array(list(checkpoints) * n, pa.string()),
    }
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim == 2:
            table[name] = pa.array(values.T.reshape(-1))
        else:
            table[name] = pa.array(values).take(feature_of_row)
    return pa.table(table)


def _index(table: pa.Table, column: str, names: Sequence[str]) -> Int[np.ndarray, " rows"]:
    """The number of each row's value among the names."""
    return pc.call_function("index_in", [table[column]], pc.SetLookupOptions(pa.array(names, pa.string()))).to_numpy()
