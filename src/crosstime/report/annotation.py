"""What a person says of a feature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Annotation:
    """One annotator's words on one feature."""

    feature: int
    annotator: str
    description: str = ""
    """Free text."""
    languages: tuple[str, ...] = ()
    """In which languages it fires, each once, sorted."""
    category: str = ""
    """One of a few kinds that the annotators agreed on; the agreement is measured on these."""


def save_annotations(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write annotations to a JSON file: a list of objects with the fields of `Annotation`."""
    text = json.dumps([asdict(annotation) for annotation in annotations], indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_annotations(path: Path) -> list[Annotation]:
    """Read what `save_annotations` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Annotation(**{**row, "languages": tuple(row["languages"])}) for row in rows]
