"""What decoder and data say of every feature: its label in words, and what speaks against an absent decoder."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from crosstime.evaluation.diagnostics import PRESENT, Diagnostics

LABEL_WORDS = {
    "early": "the decoder is absent at the last checkpoint",
    "persistent": "the decoder is present at the first checkpoint and at the last, in much the same direction",
    "late": "the decoder is absent at the first checkpoint and present at the last",
    "rotated": "the decoder is present at the first checkpoint and at the last, in directions over 60° apart",
    "artefact": "the decoder is absent at a checkpoint where the data hold the feature: the sparsity penalty did that",
    "unclear": "it fires too rarely, or its decoder is too far from the least-squares one, to say anything",
}
"""What each of the labels means, in the order in which they are listed."""


def against_absence(
    found: Diagnostics,
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """(features whose decoder is absent somewhere, the largest nu_error, and the largest nu_reconstruction there)."""
    absent = found.relative_norm < PRESENT
    measured = (found.nu_error, found.nu_reconstruction)
    error, reconstruction = (np.where(absent & np.isfinite(nu), nu, -np.inf).max(axis=0) for nu in measured)
    kept = np.flatnonzero(np.isfinite(error) & np.isfinite(reconstruction))
    return kept, error[kept], reconstruction[kept]
