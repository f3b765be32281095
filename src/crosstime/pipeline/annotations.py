"""The annotations of a run: a sheet for annotators out of it, and what they wrote into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from crosstime.attribution.features import FeatureTable
from crosstime.base import artifact
from crosstime.base.errors import InputError
from crosstime.evaluation.contexts import load_contexts
from crosstime.pipeline.engine import Workspace
from crosstime.pipeline.run import Run
from crosstime.report.agreement import Agreement, agreements
from crosstime.report.annotation import Annotation, load_annotations, save_annotations
from crosstime.report.annotation_choice import rows
from crosstime.report.sheet import read_sheets, write_sheet

FOLDER = "annotations"
"""The artifact: annotations.json, and agreement.json, the pairs of annotators."""


def export_sheet(run: Run, out: Path, *, top: int, blind: bool, seed: int) -> None:
    """Write the sheet that annotators fill in (see `annotation.choice.rows`).

    Raises:
        InputError: the run is not so far, `top` exceeds the features that have contexts, or the sheet is there already:
            it may hold somebody's work.
    """
    if out.exists():
        raise InputError(f"{out} is already there, and may have been filled in: choose another name")
    known = run.config.contexts.top_k
    if top > known:
        raise InputError(f"--top {top} asks for more features than have contexts: make contexts.top_k ({known}) larger")
    found = rows(
        FeatureTable.load(_finished(run, "effects", "features.parquet").parent),
        load_contexts(_finished(run, "contexts", "contexts.json")),
        top=top,
        blind=blind,
        seed=seed,
    )
    write_sheet(out, found)


def import_sheets(run: Run, files: Sequence[Path]) -> list[Agreement]:
    """Put what annotators wrote into the run folder, in place of what was there; returns how far they agree.

    Raises:
        InputError: the run is not so far, or a file is wrong (see `annotation.sheet.read_sheets`).
    """
    crosscoder = json.loads(_finished(run, "crosscoder", "config.json").read_text(encoding="utf-8"))
    found = read_sheets(files, crosscoder["features"])
    if not found:
        raise InputError(f"nobody has written anything into {', '.join(map(str, files))}")
    agreed = agreements(found)
    with artifact.writing(run.folder_of(FOLDER), settings={"files": [str(file) for file in files]}, inputs={}) as draft:
        save_annotations(draft / "annotations.json", found)
        (draft / "agreement.json").write_text(json.dumps([asdict(pair) for pair in agreed], indent=1) + "\n")
    return agreed


def read_annotations(run: Workspace) -> list[Annotation]:
    """The annotations of a run; none where there are none yet.

    Raises:
        InputError: they were altered or damaged.
    """
    if artifact.read_manifest(run.folder_of(FOLDER)) is None:
        return []
    artifact.verify(run.folder_of(FOLDER))
    return load_annotations(run.folder_of(FOLDER) / "annotations.json")


def annotations_hash(run: Workspace) -> str:
    """One hash of a run's annotations; empty where there are none."""
    manifest = artifact.read_manifest(run.folder_of(FOLDER))
    return manifest.content if manifest else ""


def _finished(run: Run, folder: str, name: str) -> Path:
    """A file of an artifact, whose hash was right."""
    if artifact.read_manifest(run.folder_of(folder)) is None:
        raise InputError(f"{run.own_folder} has no {folder} yet: `crosstime run {run.folder}` computes it")
    artifact.verify(run.folder_of(folder))
    return run.folder_of(folder) / name
