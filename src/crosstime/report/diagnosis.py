"""What decoder and data say of every feature, as arrays; and its label in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from crosstime.report.arrays import by_checkpoint

LABEL_WORDS = {
    "emerged": "the decoder is absent at the first checkpoint and present at the last",
    "maintained": "the decoder is present at the first checkpoint and at the last, in much the same direction",
    "dropped": "the decoder is absent at the last checkpoint",
    "rotated": "the decoder is present at the first checkpoint and at the last, in directions over 60° apart",
    "artefact": "the decoder is absent at a checkpoint where the data hold the feature: the sparsity penalty did that",
    "undefined": "it fires too rarely, or its decoder is too far from the least-squares one, to say anything",
}
"""Label of `diagnostics.parquet` -> what it means, in the order in which they are listed."""

ABSENT = 0.2
"""Share of a decoder's largest norm below which it says that its feature is absent."""
SHRUNK = 0.2
"""nu_error from which the data hold a feature all the same."""
DECOUPLED = 0.5
"""nu_reconstruction from which other features stand for it."""


@dataclass(frozen=True)
class Diagnosis:
    """All features, in the order of the dictionary."""

    label: list[str]
    reference: list[str]
    """The checkpoint of each feature's largest decoder norm."""
    twin: list[int | None]
    """The feature that its concept was split off to."""
    strength: Float[np.ndarray, "F M"]
    """Decoder norm over the largest."""
    nu_error: Float[np.ndarray, "F M"]
    nu_reconstruction: Float[np.ndarray, "F M"]

    def refuted(self) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """(features whose decoder is absent somewhere, and the largest nu_error and nu_reconstruction where it is)."""
        absent = self.strength < ABSENT
        error, reconstruction = (
            np.where(absent & np.isfinite(nu), nu, -np.inf).max(axis=1)
            for nu in (self.nu_error, self.nu_reconstruction)
        )
        kept = np.flatnonzero(np.isfinite(error) & np.isfinite(reconstruction))
        return kept, error[kept], reconstruction[kept]


def diagnosis(table: pa.Table, checkpoints: Sequence[str]) -> Diagnosis:
    """The table of `diagnostics.parquet`.

    Raises:
        ValueError: a column is missing for one of the checkpoints, or the features are not in order.
    """
    if not np.array_equal(table["feature"].to_numpy(), np.arange(len(table))):
        raise ValueError("the table of diagnostics does not hold every feature once, in order")
    return Diagnosis(
        label=table["label"].to_pylist(),
        reference=table["reference"].to_pylist(),
        twin=table["twin"].to_pylist(),
        strength=by_checkpoint(table, "strength", checkpoints),
        nu_error=by_checkpoint(table, "nu_error", checkpoints),
        nu_reconstruction=by_checkpoint(table, "nu_reconstruction", checkpoints),
    )
