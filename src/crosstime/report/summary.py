"""The small tables and the key numbers of the first page, as text ready to print."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from crosstime.attribution.effects import LARGE_GAP, TaskTotals
from crosstime.attribution.exact import Exact
from crosstime.attribution.norm_and_effect import norm_and_effect
from crosstime.attribution.relative import SPECIFIC
from crosstime.base.units import format_tokens
from crosstime.evaluation.diagnostics import Diagnostics
from crosstime.evaluation.quality import Quality
from crosstime.report import words
from crosstime.report.data import ReportData
from crosstime.report.diagnosis import LABEL_WORDS
from crosstime.report.features import ClassGroup, TaskFeatures, class_group, pairs

SMALL_COST = 0.5
"""Nats of zero ablation below which loss recovered says little: the ratio has next to nothing to recover."""


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
    """Whether the number says little, or the reader should be warned."""
    note: str = ""


def key_numbers(data: ReportData, tasks: Mapping[str, TaskFeatures]) -> list[KeyNumber]:
    """The strip under the findings: only what the data holds."""
    n_surveyed = len(data.survey.checkpoints) if data.survey else len(data.chosen)
    numbers = [
        KeyNumber("Checkpoints", str(len(data.chosen)), f"of {n_surveyed} surveyed"),
    ]
    if data.quality is not None:
        numbers += _of_quality(data.quality, data.run.n_features)
    else:
        numbers.append(KeyNumber("Features", f"{data.run.n_features:,}", f"at layer {data.run.layer}"))
    lives = lifecycles(tasks)
    if lives:
        value = " / ".join(f"{lives[kind]:,}" for kind in ("emerged", "maintained", "dropped"))
        numbers.append(KeyNumber("Emerged / maintained / dropped", value, "features, on any task"))
    gaps = [gap for task in data.tasks for gap in task.gap.tolist() if not math.isnan(gap)]
    if gaps:
        worst = max(gaps)
        numbers.append(
            KeyNumber("Completeness gap", words.percent(worst, 2), "of the effect, at worst", worst > LARGE_GAP)
        )
    return numbers


def _of_quality(quality: Quality, n_features: int) -> list[KeyNumber]:
    explained, recovered = np.asarray(quality.explained_variance), np.asarray(quality.loss_recovered)
    names = quality.checkpoints
    dead = f"{quality.dead:,} in {format_tokens(quality.n_tokens)} tokens"
    return [
        KeyNumber("L0", f"{quality.l0:.1f}", f"of {n_features:,} features a token"),
        KeyNumber("Explained variance", _range(explained), _lowest(explained, names)),
        KeyNumber("Loss recovered", _range(recovered), _lowest(recovered, names)),
        KeyNumber("Dead features", words.percent(quality.dead_fraction, 1), dead),
    ]


def _range(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return words.DASH
    # Three decimals, and never rounded up to a perfect score.
    low, high = (
        f"{math.floor(1000 * value) / 1000:.3f}"[1:] if 0.995 <= value < 1 else words.share(value)
        for value in (finite.min(), finite.max())
    )
    return low if low == high else f"{low}{words.DASH}{high}"


def _lowest(values: np.ndarray, names: Sequence[str]) -> str:
    if not np.isfinite(values).any() or len(names) < 2:
        return ""
    return f"lowest at {names[int(np.nanargmin(values))]}"


def lifecycles(tasks: Mapping[str, TaskFeatures]) -> Counter[str]:
    """Lifecycle -> number of features that have it on at least one task."""
    pairs = {
        (int(feature), life)
        for features in tasks.values()
        for feature, life in zip(features.feature, features.lifecycle, strict=True)
    }
    return Counter(life for _, life in pairs)


def quality_rows(quality: Quality) -> list[tuple[str, list[Cell]]]:
    """(checkpoint, cells): explained variance, CE clean, spliced and zero, delta CE, loss recovered."""
    rows = []
    for m, name in enumerate(quality.checkpoints):
        cost = float(quality.ce_zero[m] - quality.ce_clean[m])
        recovered = float(quality.loss_recovered[m])
        note = (
            f"Zero ablation costs only {words.number(cost)} nats here: this ratio says little"
            if cost < SMALL_COST
            else ""
        )
        rows.append(
            (
                name,
                [
                    Cell(f"{float(quality.explained_variance[m]):.3f}", float(quality.explained_variance[m])),
                    Cell(words.number(float(quality.ce_clean[m]), 3)),
                    Cell(words.number(float(quality.ce_spliced[m]), 3)),
                    Cell(words.number(float(quality.ce_zero[m]), 3)),
                    Cell(words.number(float(quality.delta_ce[m]), 3)),
                    Cell(words.number(recovered, 3), recovered, "weak" if note else "", note),
                ],
            )
        )
    return rows


def completeness_rows(task: TaskTotals) -> list[tuple[str, list[Cell]]]:
    """(checkpoint, cells): total effect, the features' share, the error node's, the gap."""
    rows = []
    for m, name in enumerate(task.checkpoints):
        share, total, error = task.feature_share[m], task.total[m], task.error[m]
        part = 1 - share
        warn = not task.gap[m] <= LARGE_GAP
        note = "Above 5 %: the attribution misses part of the effect. Use more integration steps" if warn else ""
        rows.append(
            (
                name,
                [
                    Cell(words.number(total)),
                    Cell(words.percent(share), share),
                    Cell(f"{words.number(error)} ({words.percent(part)})"),
                    Cell(words.percent(task.gap[m], 2), math.nan, "warn" if warn else "", note),
                ],
            )
        )
    return rows


def class_counts(tasks: Mapping[str, TaskFeatures]) -> list[tuple[ClassGroup, list[int]]]:
    """(group of classes, number of features on each task), in order."""
    names = next(iter(tasks.values())).checkpoints if tasks else []
    counts: list[Counter[ClassGroup]] = []
    for features in tasks.values():
        counts.append(Counter())
        for label, count in Counter(features.classes).items():
            counts[-1][class_group(label, names)] += count
    groups = sorted(set().union(*counts))
    return [(group, [counter[group] for counter in counts]) for group in groups]


@dataclass(frozen=True)
class PairCount:
    """How many features a task has at the earlier checkpoint of a pair, at both, and at the later."""

    before: int
    both: int
    after: int


def pair_counts(tasks: Mapping[str, TaskFeatures]) -> list[tuple[str, str, list[PairCount]]]:
    """(earlier checkpoint, later checkpoint, counts by task) of every compared pair, by pairwise RelIE."""
    names = next(iter(tasks.values())).checkpoints if tasks else []
    return [
        (names[before], names[after], [_pair_count(features.pairwise(before, after)) for features in tasks.values()])
        for before, after in pairs(len(names))
    ]


def _pair_count(relative: np.ndarray) -> PairCount:
    before, after = int((relative < 1 - SPECIFIC).sum()), int((relative > SPECIFIC).sum())
    return PairCount(before, int(np.isfinite(relative).sum()) - before - after, after)


def decoder_rows(tasks: Mapping[str, TaskFeatures]) -> list[tuple[str, list[Cell]]]:
    """(checkpoint, cells): for each task the rank correlation of RelDec and RelIE, over the strongest features."""
    names = next(iter(tasks.values())).checkpoints if tasks else []
    by_task = [norm_and_effect(features.rel_dec, features.ie).correlation for features in tasks.values()]
    return [(name, [Cell(words.fixed(float(rho[m]))) for rho in by_task]) for m, name in enumerate(names)]


@dataclass(frozen=True)
class LabelCount:
    """How many features have a label by their decoders."""

    label: str
    meaning: str
    all: int
    tasks: list[tuple[int, int]]
    """By task: of the features with a class there, and of those among them that are specific to one checkpoint."""


def label_counts(found: Diagnostics, tasks: Mapping[str, TaskFeatures]) -> list[LabelCount]:
    """One row a label, in order."""
    return [
        LabelCount(label, meaning, found.counts[label], [_with(label, found, features) for features in tasks.values()])
        for label, meaning in LABEL_WORDS.items()
    ]


def _with(label: str, found: Diagnostics, features: TaskFeatures) -> tuple[int, int]:
    rows = [row for row in np.flatnonzero(features.counts) if found.label[features.feature[row]] == label]
    return len(rows), sum(features.classes[row].startswith("specific:") for row in rows)


@dataclass(frozen=True)
class ExactTable:
    """How well the estimates rank the features, by their exact effects."""

    tasks: list[tuple[str, int]]
    """(task, number of features that were ablated)."""
    rows: list[tuple[str, list[Cell]]]
    """(checkpoint, cells): for each task the rank correlations of IE, and of RelIE, with the exact one."""


def exact_table(exact: Exact, tasks: Sequence[str]) -> ExactTable:
    """Spearman's rank correlations for those of the tasks on which features were ablated one by one."""
    found: dict[tuple[Any, Any], Any] = {(row["task"], row["checkpoint"]): row for row in exact.correlations}
    known = [task for task in tasks if task in exact.tasks]
    rows = []
    for name in exact.checkpoints:
        rhos = [found[task, name][measure] for task in known for measure in ("ie", "rel_ie")]
        rows.append((name, [Cell(words.fixed(rho)) for rho in rhos]))
    return ExactTable([(task, len(exact.features(task))) for task in known], rows)


@dataclass(frozen=True)
class ValidationRow:
    """The ablation validation of one task and pair; None stands for the mean over them."""

    task: str | None
    pair: tuple[str, str] | None
    top_k: int
    n_features: int
    cells: list[Cell]


def validation_rows(table: pa.Table) -> list[ValidationRow]:
    """The ablation validation: RelIE, RelDec and their difference with 95 % intervals; means first."""
    rows = [
        ValidationRow(
            row["task"],
            (row["first"], row["second"]) if row["first"] is not None else None,
            row["top_k"],
            row["n_features"],
            [_interval(row, name) for name in ("rel_ie", "rel_dec", "difference")],
        )
        for row in table.to_pylist()
    ]
    return sorted(rows, key=lambda row: (row.task is not None, row.pair is not None, row.top_k))


def _interval(row: Mapping[str, Any], name: str) -> Cell:
    value, low, high = (row[f"{name}{bound}"] for bound in ("", "_low", "_high"))
    return Cell(words.fixed(value), note="" if math.isnan(low) else f"{words.fixed(low)} to {words.fixed(high)}")
