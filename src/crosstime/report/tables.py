"""The small tables and the key numbers of the page, as text ready to print."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from crosstime.attribution.comparisons import norm_and_effect
from crosstime.attribution.effects import LARGE_GAP, TaskTotals
from crosstime.attribution.relative import SPECIFIC
from crosstime.base.units import format_tokens
from crosstime.evaluation.quality import Quality
from crosstime.report.classes import LABEL_WORDS, ClassGroup, class_group, pairs
from crosstime.report.data import ReportData, TaskFeatures
from crosstime.report.format import DASH, format_fixed, format_number, format_percent, format_share

SMALL_COST = 0.5
"""Cost of zero ablation in nats below which loss recovered is meaningless: there is almost nothing to recover."""


@dataclass(frozen=True)
class KeyNumber:
    """One cell of the strip of key numbers."""

    label: str
    value: str
    note: str = ""
    warn: bool = False


@dataclass(frozen=True)
class Cell:
    """A number in a table."""

    text: str
    bar: float = math.nan
    """Length of the bar under it, 0 to 1; NaN for none."""
    tone: Literal["", "weak", "warn"] = ""
    """How the number is printed: grey if it says little, red for a warning."""
    note: str = ""


Rows = list[tuple[str, list[Cell]]]
"""(name of the row, cells)."""


def key_numbers(data: ReportData) -> list[KeyNumber]:
    """Return the strip of key numbers, as far as the run has them."""
    n_surveyed = len(data.survey.checkpoints) if data.survey else len(data.checkpoints)
    numbers = [KeyNumber("Checkpoints", str(len(data.checkpoints)), f"of {n_surveyed} surveyed")]
    if data.quality is not None:
        numbers += _quality_numbers(data.quality, data.run.n_features)
    else:
        numbers.append(KeyNumber("Features", f"{data.run.n_features:,}", f"in layer {data.run.layer}"))
    lives = lifecycles(data)
    if lives:
        value = " / ".join(f"{lives[kind]:,}" for kind in ("emerged", "maintained", "dropped"))
        numbers.append(KeyNumber("Emerged / maintained / dropped", value, "features, on any task"))
    gaps = [gap for task in data.totals for gap in task.gap.tolist() if not math.isnan(gap)]
    if gaps:
        worst = max(gaps)
        value = format_percent(worst, 2)
        numbers.append(KeyNumber("Completeness gap", value, "of the total effect, at worst", worst > LARGE_GAP))
    return numbers


def _quality_numbers(quality: Quality, n_features: int) -> list[KeyNumber]:
    explained, recovered = np.asarray(quality.explained_variance), np.asarray(quality.loss_recovered)
    names = quality.checkpoints
    dead = f"{quality.dead:,} in {format_tokens(quality.n_tokens)} tokens"
    return [
        KeyNumber("L0", f"{quality.l0:.1f}", f"of {n_features:,} features per token"),
        KeyNumber("Explained variance", _range(explained), _lowest(explained, names)),
        KeyNumber("Loss recovered", _range(recovered), _lowest(recovered, names)),
        KeyNumber("Dead features", format_percent(quality.dead_fraction, 1), dead),
    ]


def _range(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return DASH
    # Three decimals close to 1, and never rounded up to a perfect score.
    low, high = (
        f"{math.floor(1000 * value) / 1000:.3f}"[1:] if 0.995 <= value < 1 else format_share(value)
        for value in (finite.min(), finite.max())
    )
    return low if low == high else f"{low}{DASH}{high}"


def _lowest(values: np.ndarray, names: Sequence[str]) -> str:
    if not np.isfinite(values).any() or len(names) < 2:
        return ""
    return f"lowest at {names[int(np.nanargmin(values))]}"


def lifecycles(data: ReportData) -> Counter[str]:
    """Return lifecycle -> number of features that have it on at least one task."""
    tasks = data.tasks.values()
    return Counter(life for _, life in {pair for t in tasks for pair in zip(t.feature, t.lifecycle, strict=True)})


def quality_rows(data: ReportData) -> Rows:
    """Return by checkpoint: explained variance; CE of the model, spliced and with zeros; delta CE; loss recovered."""
    quality, rows = data.quality, []
    if quality is None:
        return []
    for m, name in enumerate(quality.checkpoints):
        explained, recovered = float(quality.explained_variance[m]), float(quality.loss_recovered[m])
        cost = float(quality.ce_zero[m] - quality.ce_clean[m])
        note = f"Zero ablation costs only {format_number(cost)} nats: this ratio is meaningless"
        weak: dict[str, Any] = {"tone": "weak", "note": note} if cost < SMALL_COST else {}
        losses = (quality.ce_clean[m], quality.ce_spliced[m], quality.ce_zero[m], quality.delta_ce[m])
        cells = [Cell(format_number(float(loss), 3)) for loss in losses]
        cells = [Cell(f"{explained:.3f}", explained), *cells, Cell(format_number(recovered, 3), recovered, **weak)]
        rows.append((name, cells))
    return rows


def completeness_tables(data: ReportData) -> list[tuple[TaskTotals, Rows]]:
    """Return the totals of each task in the order of the page, and by checkpoint: total, features, error, gap."""
    order = [*data.tasks, *(one.task for one in data.totals)]
    totals = sorted(data.totals, key=lambda one: order.index(one.task))
    return [(one, [(name, _completeness(one, m)) for m, name in enumerate(one.checkpoints)]) for one in totals]


def _completeness(totals: TaskTotals, m: int) -> list[Cell]:
    share, gap = float(totals.feature_share[m]), float(totals.gap[m])
    note = "Above 5 %: the attribution misses part of the effect; use more integration steps"
    warning: dict[str, Any] = {} if gap <= LARGE_GAP else {"tone": "warn", "note": note}
    return [
        Cell(format_number(float(totals.total[m]))),
        Cell(format_percent(share), share),
        Cell(f"{format_number(float(totals.error[m]))} ({format_percent(1 - share)})"),
        Cell(format_percent(gap, 2), **warning),
    ]


def class_counts(data: ReportData) -> list[tuple[ClassGroup, list[int]]]:
    """Return (group of classes, number of features on each task), in order."""
    counts = [
        Counter(class_group(label, data.checkpoints) for label in features.classes) for features in data.tasks.values()
    ]
    return [(group, [counter[group] for counter in counts]) for group in sorted(set().union(*counts))]


def pair_counts(data: ReportData) -> list[tuple[str, str, list[tuple[int, int, int]]]]:
    """Return (earlier checkpoint, later checkpoint, counts) of every compared pair.

    The counts are, by task, the features at the earlier checkpoint only, at both, and at the later one only.
    """
    names = data.checkpoints
    return [
        (names[a], names[b], [_pair_count(features.pairwise(a, b)) for features in data.tasks.values()])
        for a, b in pairs(len(names))
    ]


def _pair_count(relative: np.ndarray) -> tuple[int, int, int]:
    before, after = int((relative < 1 - SPECIFIC).sum()), int((relative > SPECIFIC).sum())
    return before, int(np.isfinite(relative).sum()) - before - after, after


def decoder_rows(data: ReportData) -> Rows:
    """Return by checkpoint: for each task the rank correlation of RelDec and RelIE, over its top features."""
    by_task = [norm_and_effect(features.rel_dec, features.ie).correlation for features in data.tasks.values()]
    return [(name, [Cell(format_fixed(float(rho[m]))) for rho in by_task]) for m, name in enumerate(data.checkpoints)]


@dataclass(frozen=True)
class LabelCount:
    """Numbers of features with a decoder label."""

    label: str
    meaning: str
    all: int
    tasks: list[tuple[int, int]]
    """By task: of the features with a class, and of those among them that are specific to one checkpoint."""


def label_counts(data: ReportData) -> list[LabelCount]:
    """Return one row per decoder label, in order."""
    diagnostics = data.diagnostics
    if diagnostics is None:
        return []

    def on_task(label: str, features: TaskFeatures) -> tuple[int, int]:
        rows = np.flatnonzero(features.has_class)
        rows = [row for row in rows if diagnostics.label[features.feature[row]] == label]
        return len(rows), sum(features.classes[row].startswith("specific:") for row in rows)

    return [
        LabelCount(label, words, diagnostics.counts[label], [on_task(label, task) for task in data.tasks.values()])
        for label, words in LABEL_WORDS.items()
    ]


def exact_table(data: ReportData) -> tuple[list[tuple[str, int]], Rows] | None:
    """Return (task, number of ablated features) for each task, and Spearman's rank correlations by checkpoint.

    The cells are, for each task, the correlations of IE, and of RelIE, with the exact one. None without exact effects.
    """
    exact = data.exact
    if exact is None:
        return None
    rho: dict[tuple[Any, Any], Any] = {(row["task"], row["checkpoint"]): row for row in exact.correlations}
    known = [task for task in data.tasks if task in exact.tasks]
    rows = [
        (name, [Cell(format_fixed(rho[task, name][measure])) for task in known for measure in ("ie", "rel_ie")])
        for name in exact.checkpoints
    ]
    return [(task, len(exact.features(task))) for task in known], rows


@dataclass(frozen=True)
class ValidationRow:
    """The ablation validation of one task and pair; None for the mean over them."""

    task: str | None
    pair: tuple[str, str] | None
    top_k: int
    n_features: int
    cells: list[Cell]


def validation_rows(table: pa.Table | None) -> list[ValidationRow]:
    """Return the correlations of RelIE and RelDec and their difference, with 95 % intervals; means first."""
    rows = [
        ValidationRow(
            row["task"],
            (row["first"], row["second"]) if row["first"] is not None else None,
            row["top_k"],
            row["n_features"],
            [_interval(row, name) for name in ("rel_ie", "rel_dec", "difference")],
        )
        for row in (table.to_pylist() if table is not None else [])
    ]
    return sorted(rows, key=lambda row: (row.task is not None, row.pair is not None, row.top_k))


def _interval(row: Mapping[str, Any], name: str) -> Cell:
    value, low, high = (row[f"{name}{bound}"] for bound in ("", "_low", "_high"))
    return Cell(format_fixed(value), note="" if math.isnan(low) else f"{format_fixed(low)} to {format_fixed(high)}")
