"""Export the annotation sheet of a run, and import the filled-in sheets."""

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
from crosstime.report.annotation import (
    Agreement,
    Annotation,
    agreements,
    features_to_annotate,
    load_annotations,
    read_sheets,
    save_annotations,
    write_sheet,
)

FOLDER = "annotations"
"""The artifact: annotations.json and agreement.json."""


def export_sheet(run: Run, out: Path, *, top: int, blind: bool, seed: int) -> None:
    """Write the sheet for the annotators (see `features_to_annotate`).

    Raises:
        InputError: the run hasn't reached that stage, `top` exceeds the number of features that have contexts, or the
            sheet already exists and may have been filled in.
    """
    if out.exists():
        raise InputError(f"{out} already exists and may have been filled in: choose another name")
    limit = run.config.contexts.top_k
    if top > limit:
        raise InputError(f"--top {top}: contexts were collected for the top {limit} features: raise contexts.top_k")
    rows = features_to_annotate(
        FeatureTable.load(_file(run, "effects", "features.parquet").parent),
        load_contexts(_file(run, "contexts", "contexts.json")),
        top=top,
        blind=blind,
        seed=seed,
    )
    write_sheet(out, rows)


def import_sheets(run: Run, files: Sequence[Path]) -> list[Agreement]:
    """Replace the annotations of a run by those in the sheets, and return the agreement of the annotators.

    Raises:
        InputError: the run hasn't reached that stage, or a file is invalid (see `read_sheets`).
    """
    crosscoder = json.loads(_file(run, "crosscoder", "config.json").read_text(encoding="utf-8"))
    annotations = read_sheets(files, crosscoder["features"])
    if not annotations:
        raise InputError(f"no annotations found in {', '.join(map(str, files))}")
    agreed = agreements(annotations)
    with artifact.writing(run.folder_of(FOLDER), settings={"files": [str(file) for file in files]}, inputs={}) as draft:
        save_annotations(draft / "annotations.json", annotations)
        (draft / "agreement.json").write_text(json.dumps([asdict(pair) for pair in agreed], indent=1) + "\n")
    return agreed


def read_annotations(run: Workspace) -> list[Annotation]:
    """Return the annotations of a run, or an empty list.

    Raises:
        DamagedArtifact: they were altered or damaged.
    """
    if artifact.read_manifest(run.folder_of(FOLDER)) is None:
        return []
    artifact.verify(run.folder_of(FOLDER))
    return load_annotations(run.folder_of(FOLDER) / "annotations.json")


def annotations_hash(run: Workspace) -> str:
    """Return one hash of a run's annotations, or an empty string."""
    manifest = artifact.read_manifest(run.folder_of(FOLDER))
    return manifest.content if manifest else ""


def _file(run: Run, folder: str, name: str) -> Path:
    """The path of a file of an artifact, after its hash was checked."""
    if artifact.read_manifest(run.folder_of(folder)) is None:
        raise InputError(f"{run.own_folder} has no {folder} yet: run `crosstime run {run.folder}` first")
    artifact.verify(run.folder_of(folder))
    return run.folder_of(folder) / name
