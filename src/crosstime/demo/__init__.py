"""The embedded suite: a small real pretraining run with its texts and tasks. CARD.md says where it comes from."""

from __future__ import annotations

from pathlib import Path

from crosstime.tasks.blimp import load_blimp
from crosstime.tasks.task import Task

FOLDER = Path(__file__).parent
SUITE = FOLDER / "suite"
"""One folder per checkpoint, step64 to step3786."""
TRAIN_TEXT = FOLDER / "text" / "train.txt.xz"
HELDOUT_TEXT = FOLDER / "text" / "heldout.txt.xz"
BLIMP = FOLDER / "tasks" / "blimp"
"""The subject-verb and determiner-noun sets of BLiMP."""


def blimp(name: str) -> Task:
    """An embedded BLiMP set, or a group of them: "subject-verb", "plain-subject-verb", "distractor", "determiner-noun".

    Raises:
        InputError: there is no such set (the nearest is named).
    """
    return load_blimp(BLIMP, name)
