"""Annotation of features by people: the sheet that they fill in, what they wrote, and how far they agree."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from crosstime.attribution.ablation import strongest
from crosstime.attribution.features import FeatureTable
from crosstime.base.errors import InputError, nearest
from crosstime.evaluation.contexts import Context, FeatureContexts

CONTEXTS = 5
"""Contexts shown of each feature."""
PROMOTED = 8
"""Promoted tokens shown of each feature."""
TO_FILL = ("description", "languages", "category", "annotator")
REQUIRED = ("feature_id", *TO_FILL)
DELIMITERS = ",;\t"
"""Spreadsheets write semicolons where the comma is the decimal sign."""
BOM = "utf-8-sig"
"""With a byte-order mark, without which spreadsheets don't recognise UTF-8."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet would run as a formula, and what would be mistaken for a guarded form of it."""


@dataclass(frozen=True)
class Annotation:
    """One annotator's remarks on one feature."""

    feature: int
    annotator: str
    description: str = ""
    """Free text."""
    languages: tuple[str, ...] = ()
    """Languages in which the feature fires, each once, sorted."""
    category: str = ""
    """One of a few categories agreed on beforehand; agreement is measured on these."""


def save_annotations(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write annotations to a JSON file: a list of objects with the fields of `Annotation`."""
    text = json.dumps([asdict(annotation) for annotation in annotations], indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_annotations(path: Path) -> list[Annotation]:
    """Read what `save_annotations` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Annotation(**{**row, "languages": tuple(row["languages"])}) for row in rows]


# --------------------------------------------------------------------------------- the features to annotate


def features_to_annotate(
    features: FeatureTable,
    contexts: Mapping[int, FeatureContexts],
    *,
    top: int = 10,
    blind: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Choose the features with the largest |IE| at any checkpoint on any task, and describe each in one row.

    Args:
        features: Effects, classes and decoder norms.
        contexts: Where features fire, by feature; a feature without contexts gets empty cells.
        top: Features taken per task and checkpoint.
        blind: Leave out what reveals when the feature was active (task, class, RelIE), and shuffle the rows.
        seed: Seed of the shuffling.

    Returns:
        One row per feature: feature_id; contexts, one per line, with «» around the token of the largest activation;
        promoted, the tokens promoted at the checkpoint with the largest decoder norm. Unless blind, also task, class
        and rel_ie, for the task with the feature's largest |IE|; the rows are then sorted by this |IE|, largest first.

    Raises:
        InputError: `top` is below 1.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, not {top}")
    rows = []
    for feature, task in _strongest(features, top).items():
        i = int(np.searchsorted(features.features(task), feature))
        norms = features.array(task, "decoder_norm")[:, i]
        rows.append(_described(feature, contexts.get(feature), features.checkpoints[int(norms.argmax())]))
        if not blind:
            rows[-1] |= _measured(features, task, i)
    if blind:
        random.Random(seed).shuffle(rows)
    return rows


def _strongest(features: FeatureTable, top: int) -> dict[int, str]:
    """Return the chosen features, largest |IE| first, each with the task of this |IE|."""
    tasks: dict[int, tuple[float, str]] = {}
    for task in features.tasks:
        ie, ids = features.array(task, "ie"), features.features(task).tolist()
        for i in set().union(*(strongest(row, top) for row in ie)):
            size = float(np.abs(ie[:, i]).max())
            if size > tasks.get(ids[i], (0.0, ""))[0]:
                tasks[ids[i]] = size, task
    order = sorted(tasks, key=lambda feature: (-tasks[feature][0], feature))
    return {feature: tasks[feature][1] for feature in order}


def _described(feature: int, contexts: FeatureContexts | None, checkpoint: str) -> dict[str, Any]:
    shown = contexts.contexts[:CONTEXTS] if contexts else []
    promoted = contexts.promoted.get(checkpoint, [])[:PROMOTED] if contexts else []
    return {
        "feature_id": feature,
        "contexts": "\n".join(map(_marked, shown)),
        "promoted": ", ".join(f"“{_one_line(token)}”" for token, _ in promoted),
    }


def _marked(context: Context) -> str:
    """The text on one line, with «» around the token of the largest activation."""
    tokens, p = context.tokens, context.peak
    before, peak, after = (_one_line("".join(part)) for part in (tokens[:p], tokens[p : p + 1], tokens[p + 1 :]))
    space = " " * (len(peak) - len(peak.lstrip(" ")))
    return f"{before}{space}«{peak.lstrip(' ')}»{after}"


def _one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "↵")


def _measured(features: FeatureTable, task: str, i: int) -> dict[str, Any]:
    rel_ie = zip(features.checkpoints, features.array(task, "rel_ie")[:, i], strict=True)
    return {
        "task": task,
        "class": features.column(task, "class")[i],
        "rel_ie": ", ".join(f"{name} {value:.2f}" for name, value in rel_ie),
    }


# --------------------------------------------------------------------------------- the sheet


def write_sheet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV or JSON file, followed by the empty columns for the annotators.

    Raises:
        InputError: there are no rows, or the file is neither .csv nor .json.
    """
    if not rows:
        raise InputError("there is nothing to annotate: no feature has an effect on any task")
    sheet = [{**row, **dict.fromkeys(TO_FILL, "")} for row in rows]
    if _suffix(path) == ".json":
        path.write_text(json.dumps(sheet, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    with path.open("w", encoding=BOM, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(sheet[0])
        writer.writerows([guard(str(cell)) for cell in row.values()] for row in sheet)


def read_sheets(paths: Sequence[Path], features: int) -> list[Annotation]:
    """Read filled-in sheets, skipping rows that nobody wrote in.

    A row without an annotator's name is attributed to the name of its file. Columns not in `REQUIRED` are ignored.

    Args:
        paths: .csv files, with commas, semicolons or tabs between the cells, or .json files.
        features: F, the number of features of the crosscoder.

    Raises:
        InputError: a file has the wrong format or isn't UTF-8, its header lacks a column, a feature is unknown, or an
            annotator has two rows on one feature; the message gives the place as "file:line".
    """
    places: dict[tuple[int, str], str] = {}
    annotations = []
    for path in paths:
        for place, row in _json_rows(path) if _suffix(path) == ".json" else _csv_rows(path):
            annotation = _annotation(place, row, path.stem, features)
            if not (annotation.description or annotation.languages or annotation.category):
                continue
            key = annotation.feature, annotation.annotator
            if key in places:
                raise InputError(f"{place}: {key[1]!r} already annotated feature {key[0]}, at {places[key]}")
            places[key] = place
            annotations.append(annotation)
    return annotations


def guard(text: str) -> str:
    """Prefix an apostrophe to text that a spreadsheet would otherwise run as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguard(cell: str) -> str:
    """Undo `guard`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


_Row = tuple[str, dict[str, Any]]
"""The place of a row, as "file:line", and its cells."""


def _annotation(place: str, row: Mapping[str, Any], file_name: str, features: int) -> Annotation:
    text = {name: str(row[name] or "").strip() for name in TO_FILL}
    cell = row["languages"]
    languages = cell if isinstance(cell, list) else text["languages"].replace(";", ",").split(",")
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


def _csv_rows(path: Path) -> Iterator[_Row]:
    """Read a CSV file; a row with line breaks in its cells counts as several lines."""
    text = _text(path)
    # Not str.splitlines, which also splits at characters that may occur in a cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.partition("\n")[0]), strict=True)
    header, start = None, 1
    try:
        for cells in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if header is None:
                header = [unguard(cell).strip() for cell in cells]
                _check_columns(place, header)
            elif len(cells) > len(header):
                raise InputError(f"{place}: {len(cells)} cells, but the header has {len(header)}")
            elif any(cell.strip() for cell in cells):
                row = dict(zip(header, map(unguard, cells), strict=False))
                yield place, {**dict.fromkeys(REQUIRED, ""), **row}
    except csv.Error as error:
        raise InputError(f"{path}:{start}: not a row of a CSV file ({error})") from None
    if header is None:
        raise InputError(f"{path}:1: the file is empty")


def _delimiter(header: str) -> str:
    """The delimiter that splits the header into most cells."""
    return max(DELIMITERS, key=header.count)


def _json_rows(path: Path) -> Iterator[_Row]:
    try:
        objects = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: invalid JSON ({error.msg})") from None
    if not isinstance(objects, list) or not all(isinstance(row, dict) for row in objects):
        raise InputError(f"{path}:1: expected a list of objects, as `crosstime annotate export` writes it")
    for n, row in enumerate(objects, 1):
        place = f"{path}: object {n}"
        _check_columns(place, list(row))
        yield place, row


def _check_columns(place: str, columns: Sequence[str]) -> None:
    for name in REQUIRED:
        if name not in columns:
            raise InputError(f"{place}: there is no column `{name}`{nearest(name, columns)}")
        if columns.count(name) > 1:
            raise InputError(f"{place}: there are two columns `{name}`")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise InputError(f"{path}: the name of a sheet must end in .csv or .json")
    return suffix


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(BOM)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8 at byte {error.start}: save it as CSV UTF-8") from None


# --------------------------------------------------------------------------------- agreement


@dataclass(frozen=True)
class Agreement:
    """How far two annotators agree on the categories of features."""

    annotators: tuple[str, str]
    features: int
    """Number of features to which both gave a category."""
    same: float
    """Share of them with the same category."""
    kappa: float | None
    """Cohen's kappa: 1 for full agreement, 0 for chance. None if both used a single, common category throughout."""


def agreements(annotations: Sequence[Annotation]) -> list[Agreement]:
    """Return the agreement of every two annotators with common features, ignoring the case of categories."""
    by_annotator: dict[str, dict[int, str]] = {}
    for annotation in annotations:
        if annotation.category:
            by_annotator.setdefault(annotation.annotator, {})[annotation.feature] = annotation.category.casefold()
    result = []
    for a, b in combinations(sorted(by_annotator), 2):
        shared = sorted(by_annotator[a].keys() & by_annotator[b].keys())
        if shared:
            first, second = ([by_annotator[name][feature] for feature in shared] for name in (a, b))
            same = sum(x == y for x, y in zip(first, second, strict=True)) / len(shared)
            result.append(Agreement((a, b), len(shared), same, cohens_kappa(first, second)))
    return result


def cohens_kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Return Cohen's kappa (Cohen 1960): (p - q) / (1 - q).

    p is the share of equal categories, q the share expected if each annotator drew from their own frequencies. None if
    q is 1, where there was nothing to agree on, and for empty lists.
    """
    n, counts_a, counts_b = len(a), Counter(a), Counter(b)
    # In whole numbers, so that a q of 1 is recognised exactly.
    observed = n * sum(x == y for x, y in zip(a, b, strict=True))
    expected = sum(counts_a[category] * counts_b[category] for category in counts_a)
    return None if expected == n * n else (observed - expected) / (n * n - expected)
