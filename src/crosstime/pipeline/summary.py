"""The headline numbers of a run, read from its artifacts: for people as a table, for scripts as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosstime.attribution.relative import LIFECYCLES
from crosstime.base import artifact
from crosstime.base.units import align_columns, format_tokens, jsonable
from crosstime.pipeline.engine import State, Workspace

_QUALITIES = {
    "explained_variance": "explained variance",
    "loss_recovered": "loss recovered",
    "delta_ce": "added loss (nats)",
}
_CORRELATIONS = {"exact_correlation": "exact effects", "validation": "ablation ratio"}
_MEASURES = {"ie": "IE", "rel_ie": "RelIE", "rel_dec": "RelDec"}


def headline(run: Workspace, folders: Mapping[str, str]) -> dict[str, Any]:
    """What `crosstime show --json` prints. A value is null where it is not computed yet, or not a number.

    Args:
        run: of one crosscoder.
        folders: the artifact folder of each stage, by the stage's name, in order.

    Raises:
        InputError: an artifact that holds one of the numbers is damaged.
    """
    return {
        "checkpoints": _checkpoints(run),
        **_quality(run.folder_of("evaluation")),
        "labels": _labels(run.folder_of("diagnostics")),
        **_effects(run.folder_of("effects")),
        **_ablation(run.folder_of("ablation")),
        "seconds": seconds(run, folders),
        "report": _report(run.folder_of("report")),
    }


def seconds(run: Workspace, folders: Mapping[str, str]) -> dict[str, float]:
    """Wall time of each stage whose artifact is there; arguments as of `headline`."""
    manifests = {name: artifact.read_manifest(run.folder_of(folder)) for name, folder in folders.items()}
    return {name: manifest.seconds for name, manifest in manifests.items() if manifest}


def statuses(found: Mapping[str, Mapping[str, State]]) -> str:
    """The state of each stage, for a terminal; of each crosscoder where they differ.

    Args:
        found: by the crosscoder's name, then by the stage's.
    """
    rows = []
    for stage in next(iter(found.values())):
        names: dict[str, list[str]] = {}
        for name, of_stages in found.items():
            state = of_stages[stage]
            names.setdefault(state.status + (f": {state.reason}" if state.reason else ""), []).append(name)
        told = [text if len(names) == 1 else f"{', '.join(alike)}: {text}" for text, alike in names.items()]
        rows.append((stage, "; ".join(told)))
    return align_columns(rows)


def table(numbers: dict[str, Any]) -> str:
    """The headline numbers, aligned, for a terminal."""
    lines = [("report", numbers["report"] or "not yet written")]
    if numbers["checkpoints"]:
        names = [checkpoint["name"] for checkpoint in numbers["checkpoints"]]
        tokens = [format_tokens(checkpoint["tokens"]) for checkpoint in numbers["checkpoints"]]
        rows = [("checkpoints", names), ("tokens seen", tokens)]
        for key, label in _QUALITIES.items():
            if numbers[key]:
                rows.append((label, [_number(numbers[key].get(name)) for name in names]))
        width = max(len(cell) for _, cells in rows for cell in cells)
        lines += [(label, "  ".join(cell.rjust(width) for cell in cells)) for label, cells in rows]
    if numbers["l0"] is not None:
        lines += [("L0", _number(numbers["l0"], 1)), ("dead features", _percent(numbers["dead_fraction"]))]
    if numbers["labels"]:
        lines.append(
            ("features by decoder", ", ".join(f"{n:,} {label}" for label, n in numbers["labels"].items() if n))
        )
    if numbers["features"]:
        counts = [f"{numbers['features'][kind]:,} {kind}" for kind in LIFECYCLES[:3]]
        lines += [
            ("features, on any task", ", ".join(counts)),
            ("completeness gap", _percent(numbers["completeness_gap"], 2)),
        ]
    if numbers["ablation_correlation"] is not None:
        lines.append(("IE and ablation", f"Spearman {_number(numbers['ablation_correlation'])}"))
    for key, label in _CORRELATIONS.items():
        if numbers[key]:
            values = [f"{_number(value)} with {word}" for word, value in _correlations(numbers[key])]
            lines.append((label, f"Spearman {', '.join(values)}"))
    return align_columns(lines)


def comparison(numbers: Mapping[str, dict[str, Any]]) -> str:
    """The headline numbers of several crosscoders side by side, for a terminal.

    Args:
        numbers: what `headline` gives for each, by its name.
    """
    figures = {name: _figures(of_one) for name, of_one in numbers.items()}
    labels = dict.fromkeys(label for of_one in figures.values() for label in of_one)
    rows = [(label, *(of_one.get(label, "-") for of_one in figures.values())) for label in labels]
    reports = align_columns(
        [(f"report {name}", of_one["report"] or "not yet written") for name, of_one in numbers.items()]
    )
    if not rows:
        return reports
    return f"{align_columns([('', *figures), *rows], right=range(1, len(figures) + 1))}\n\n{reports}"


def _figures(numbers: dict[str, Any]) -> dict[str, str]:
    """The headline numbers of one crosscoder one by one, by what they are."""
    found: dict[str, str] = {}
    if numbers["l0"] is not None:
        found |= {"L0": _number(numbers["l0"], 1), "dead features": _percent(numbers["dead_fraction"])}
    for key, label in _QUALITIES.items():
        found |= {f"{label}, {name}": _number(value) for name, value in (numbers[key] or {}).items()}
    found |= {f"{label} by decoder": f"{n:,}" for label, n in (numbers["labels"] or {}).items() if n}
    if numbers["features"]:
        found |= {f"{kind}, on any task": f"{numbers['features'][kind]:,}" for kind in LIFECYCLES[:3]}
        found["completeness gap"] = _percent(numbers["completeness_gap"], 2)
    if numbers["ablation_correlation"] is not None:
        found["IE and ablation, Spearman"] = _number(numbers["ablation_correlation"])
    for key, label in _CORRELATIONS.items():
        found |= {f"{label} and {word}, Spearman": _number(value) for word, value in _correlations(numbers[key] or {})}
    return found


def _correlations(values: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Each measure, and how it goes with what was measured by ablation."""
    return [(word, values[key]) for key, word in _MEASURES.items() if key in values]


def _checkpoints(run: Workspace) -> list[dict[str, Any]] | None:
    compared = _json(run.folder_of("selection"), "checkpoints.json")
    sources = _json(run.folder_of("suite"), "sources.json")
    tokens = {row["name"]: row["tokens"] for row in sources or ()}
    return compared and [{"name": row["name"], "tokens": tokens.get(row["name"])} for row in compared]


def _quality(folder: Path) -> dict[str, Any]:
    metrics = _json(folder, "metrics.json")
    if metrics is None:
        return dict.fromkeys(("l0", "dead_fraction", *_QUALITIES))
    by_checkpoint = {key: dict(zip(metrics["checkpoints"], metrics[key], strict=True)) for key in _QUALITIES}
    return {"l0": metrics["l0"], "dead_fraction": metrics["dead_fraction"], **by_checkpoint}


def _labels(folder: Path) -> dict[str, int] | None:
    found = _json(folder, "summary.json")
    return found and found["labels"]


def _effects(folder: Path) -> dict[str, Any]:
    tasks = _json(folder, "tasks.json")
    if tasks is None:
        return {"completeness_gap": None, "features": None}
    gaps = [gap for task in tasks for gap in task["gap"] if gap is not None]
    features = pq.read_table(folder / "features.parquet", columns=["feature", "lifecycle", "class"])
    lifecycles, classes = _features_by(features, "lifecycle"), _features_by(features, "class")
    return {
        "completeness_gap": max(gaps, default=None),
        "features": {**{kind: lifecycles.get(kind, 0) for kind in LIFECYCLES}, "classes": classes},
    }


def _features_by(features: pa.Table, column: str) -> dict[str, int]:
    """How many features have each value of the column on at least one task; the most frequent first."""
    counts = features.group_by(column).aggregate([("feature", "count_distinct")])
    pairs = zip(counts[column].to_pylist(), counts["feature_count_distinct"].to_pylist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _ablation(folder: Path) -> dict[str, Any]:
    """Rank correlations; those that need exact effects are null where none were measured."""
    summary = _json(folder, "summary.json")
    found = {"ablation_correlation": summary and summary["correlation"], "exact_correlation": None, "validation": None}
    if summary and (folder / "exact.json").is_file():
        exact = _json(folder, "exact.json")
        found["exact_correlation"] = {key: _mean([row[key] for row in exact]) for key in ("ie", "rel_ie")}
        means = [row for row in pq.read_table(folder / "validation.parquet").to_pylist() if row["first"] is None]
        found["validation"] = (
            jsonable({key: means[-1][key] for key in ("top_k", "rel_ie", "rel_dec")}) if means else None
        )
    return found


def _report(folder: Path) -> str | None:
    return str((folder / "index.html").resolve()) if artifact.read_manifest(folder) else None


def _json(folder: Path, name: str) -> Any:
    """The content of an artifact's JSON file, or None where there is no artifact."""
    if artifact.read_manifest(folder) is None:
        return None
    artifact.verify(folder)
    return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=lambda _: None)


def _mean(values: list[float | None]) -> float | None:
    """The mean of those that are numbers."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
