"""The sheet that annotators fill in: a CSV file for any spreadsheet, or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError, nearest
from crosstime.report.annotation import Annotation
from crosstime.report.cells import guarded, unguarded

TO_FILL = ("description", "languages", "category", "annotator")
NEEDED = ("feature_id", *TO_FILL)
DELIMITERS = ",;\t"
"""Spreadsheets write semicolons where the comma is the decimal sign."""
BOM = "utf-8-sig"
"""With a byte-order mark, without which spreadsheets take UTF-8 for something else."""

Row = tuple[str, dict[str, Any]]
"""Where a row stands, "file:line", and its cells."""


def write_sheet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns that are to be filled in, empty, after those that the rows have.

    Raises:
        InputError: there are no rows, or the file is neither .csv nor .json.
    """
    if not rows:
        raise InputError("there is nothing to annotate: no feature has an effect on any task")
    filled = [{**row, **dict.fromkeys(TO_FILL, "")} for row in rows]
    if _suffix(path) == ".json":
        path.write_text(json.dumps(filled, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    with path.open("w", encoding=BOM, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(filled[0])
        writer.writerows([guarded(str(cell)) for cell in row.values()] for row in filled)


def read_sheets(paths: Sequence[Path], features: int) -> list[Annotation]:
    """Read what annotators filled in; rows in which they wrote nothing are passed over.

    A row without an annotator's name counts as of one called as its file. Columns but those of `NEEDED` are ignored.

    Args:
        paths: .csv files, with commas, semicolons or tabs between the cells, or .json files.
        features: F, the size of the dictionary.

    Raises:
        InputError: a file is not of its kind or not UTF-8, its header lacks a column, a feature is unknown, or an
            annotator has two rows on one feature; the message says where, as "file:line".
    """
    places: dict[tuple[int, str], str] = {}
    annotations = []
    for path in paths:
        for place, row in _json_rows(path) if _suffix(path) == ".json" else _csv_rows(path):
            annotation = _annotation(place, row, path.stem, features)
            if not (annotation.description or annotation.languages or annotation.category):
                continue
            whose = annotation.feature, annotation.annotator
            if whose in places:
                raise InputError(f"{place}: {whose[1]!r} has annotated feature {whose[0]} already, at {places[whose]}")
            places[whose] = place
            annotations.append(annotation)
    return annotations


def _annotation(place: str, row: Mapping[str, Any], file_name: str, features: int) -> Annotation:
    text = {name: str(row[name] or "").strip() for name in TO_FILL}
    listed = row["languages"]
    languages = listed if isinstance(listed, list) else text["languages"].replace(";", ",").split(",")
    return Annotation(
        feature=_feature(place, row["feature_id"], features),
        annotator=text["annotator"] or file_name,
        description=text["description"],
        languages=tuple(sorted({str(name).strip() for name in languages} - {""})),
        category=text["category"],
    )


def _feature(place: str, cell: Any, features: int) -> int:
    text = str(cell).strip()
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{place}: feature_id must be the number of a feature, not {text[:40]!r}")
    if int(text) >= features:
        raise InputError(f"{place}: there is no feature {text[:40]}: the crosscoder has features 0 to {features - 1}")
    return int(text)


def _csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file; `line` counts lines of the file, of which a row with line breaks in it takes several."""
    text = _text(path)
    # Not str.splitlines, which also cuts at characters that may stand in a cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.partition("\n")[0]), strict=True)
    header, start = None, 1
    try:
        for cells in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if header is None:
                header = [unguarded(cell).strip() for cell in cells]
                _check_columns(place, header)
            elif len(cells) > len(header):
                raise InputError(f"{place}: {len(cells)} cells under a header of {len(header)}")
            elif any(cell.strip() for cell in cells):
                row = dict(zip(header, map(unguarded, cells), strict=False))
                yield place, {**dict.fromkeys(NEEDED, ""), **row}
    except csv.Error as error:
        raise InputError(f"{path}:{start}: this is no row of a CSV file ({error})") from None
    if header is None:
        raise InputError(f"{path}:1: the file is empty")


def _delimiter(header: str) -> str:
    """The one that cuts the header into most cells."""
    return max(DELIMITERS, key=header.count)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        objects = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: this is not JSON ({error.msg})") from None
    if not isinstance(objects, list) or not all(isinstance(row, dict) for row in objects):
        raise InputError(f"{path}:1: this must be a list of objects, as `crosstime annotate export` writes it")
    for n, row in enumerate(objects, 1):
        place = f"{path}: object {n}"
        _check_columns(place, list(row))
        yield place, row


def _check_columns(place: str, columns: Sequence[str]) -> None:
    for name in NEEDED:
        if name not in columns:
            raise InputError(f"{place}: there is no column `{name}`{nearest(name, columns)}")
        if columns.count(name) > 1:
            raise InputError(f"{place}: there are two columns `{name}`")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise InputError(f"{path} must be called .csv or .json")
    return suffix


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(BOM)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: save it as CSV UTF-8") from None
