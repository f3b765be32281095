"""Columns of a table that stand for checkpoints, as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from crosstime.base.errors import InputError


def by_checkpoint(table: pa.Table, kind: str, checkpoints: Sequence[str]) -> Float[np.ndarray, "N M"]:
    """The columns KIND_NAME of the checkpoints, side by side.

    Raises:
        InputError: one is missing.
    """
    missing = [name for name in checkpoints if f"{kind}_{name}" not in table.column_names]
    if missing:
        raise InputError(f"the table has no column '{kind}_{missing[0]}': it is of other checkpoints")
    return np.stack([table[f"{kind}_{name}"].to_numpy().astype(np.float64) for name in checkpoints], axis=1)
