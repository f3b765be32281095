"""A small real pretraining run with its texts and tasks, bundled with crosstime. CARD.md documents it."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SUITE = FOLDER / "suite"
"""One folder per checkpoint, step64 to step3786."""
TRAIN_TEXT = FOLDER / "text" / "train.txt.xz"
HELDOUT_TEXT = FOLDER / "text" / "heldout.txt.xz"
BLIMP = FOLDER / "tasks" / "blimp"
"""The subject-verb and determiner-noun sets of BLiMP."""
