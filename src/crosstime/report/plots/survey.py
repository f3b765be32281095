"""Figures of the survey: accuracy and perplexity over training, similarity of checkpoints.

Each function returns a list of figures, which is empty if the run has no data for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.evaluation.survey import Survey
from crosstime.report.data import GroupShape, ReportData
from crosstime.report.format import format_share, rounded, sentence_case, short_names
from crosstime.report.plots import style
from crosstime.report.plots.style import Figure, TrainingAxis
from crosstime.report.trends import CHANCE, chance_band, pooled

ALL_PAIRS = "all pairs"


def accuracy(data: ReportData) -> list[Figure]:
    """Draw one panel per group: accuracy over tokens seen, with chance and the crosscoder's checkpoints marked."""
    survey = data.survey
    if survey is None:
        return []
    lowest = np.nanmin([*np.asarray(survey.sentence_accuracy, dtype=float).ravel(), 0.45])
    span = max(0.0, float(np.floor(10 * lowest)) / 10), 1.0
    return [_accuracy(data, survey, group, f"accuracy-{i}", span) for i, group in enumerate(data.group_shapes)]


def perplexity(data: ReportData) -> list[Figure]:
    """Draw the perplexity on held-out text over tokens seen."""
    if data.survey is None:
        return []
    axis = TrainingAxis.from_tokens(data.survey.checkpoints, data.survey.tokens)
    values = np.asarray(data.survey.perplexity, dtype=float)
    line = _line(axis, values, "perplexity", style.INK, 2.0, "%{y:,.1f}")
    figure = style.figure([line, _marked(axis, values, data)], **axis.layout(data.colours))
    figure.update_yaxes(**style.log_axis(values))
    return [Figure("perplexity", "Perplexity on held-out text", {"": figure}, 300)]


def similarity(data: ReportData) -> list[Figure]:
    """Draw the similarity of every two checkpoints' activations; pairs that the crosscoder compares are outlined."""
    if data.survey is None:
        return []
    names = data.survey.checkpoints
    maps = {"Cosine": data.survey.cosine, "Pearson": data.survey.pearson}
    variants = {kind: style.triangle(np.asarray(values, float), names, data.colours) for kind, values in maps.items()}
    return [Figure("similarity", "Similarity of activations", variants, max(380, min(58 * len(names) + 90, 680)))]


def _accuracy(data: ReportData, survey: Survey, one: GroupShape, key: str, span: tuple[float, float]) -> Figure:
    columns = [survey.tasks.index(task) for task in one.group.tasks]
    labels = short_names(one.group.tasks)
    axis = TrainingAxis.from_tokens(survey.checkpoints, survey.tokens)
    variants = {
        name: _panel(
            np.asarray(values, dtype=float)[:, columns], [counts[c] for c in columns], labels, axis, data, ends
        )
        for name, values, counts, ends in (
            ("Whole sentences", survey.sentence_accuracy, survey.n_pairs, span),
            ("Next word", survey.token_accuracy, survey.n_prompts, span),
            ("Logit difference", survey.logit_difference, survey.n_prompts, None),
        )
    }
    return Figure(key, sentence_case(one.name), variants, 300)


def _panel(
    values: Float[np.ndarray, "C T"],
    counts: Sequence[int],
    labels: Sequence[str],
    axis: TrainingAxis,
    data: ReportData,
    span: tuple[float, float] | None,
) -> go.Figure:
    """Draw thin lines for the tasks and a thick one for all their pairs, with labels at the ends.

    Args:
        values: Accuracy or logit difference by checkpoint and task.
        counts: Pairs behind each task.
        labels: Names of the tasks.
        axis: With all surveyed checkpoints.
        data: For the marked checkpoints.
        span: Range of the accuracies; None for logit differences.
    """
    several = len(labels) > 1
    form = "%{y:.3f}" if span else "%{y:.2f}"
    whole = pooled(values, counts) if any(counts) else values.mean(axis=1)
    lines = [_line(axis, values[:, i], label, style.PALE, 1.25, form) for i, label in enumerate(labels) if several]
    lines.append(_line(axis, whole, ALL_PAIRS if several else labels[0], style.INK, 2.25, form))
    layout = axis.layout(data.colours)
    low, high = span or style.padded(values)
    layout["yaxis"] = _accuracy_axis(low, high) if span else {"range": [low, high], "nticks": 6}
    layout["shapes"] += _chance(CHANCE if span else 0.0, chance_band(max(sum(counts), 1)) if span else 0.0)
    if several:
        ends = [*zip(values[-1], labels, strict=True), (whole[-1], ALL_PAIRS)]
        layout["annotations"] += _end_labels(ends, (low, high))
        layout["margin"]["r"] = min(14 + 6.2 * max(len(label) for label in (*labels, ALL_PAIRS)), 150)
    message = None if np.isfinite(values).any() else "no pair of this task gives a prompt"
    return style.figure([*lines, _marked(axis, whole, data)], message, **layout)


def _accuracy_axis(low: float, high: float) -> dict[str, Any]:
    """Ticks every tenth or fifth, with chance labelled as such."""
    step = 2 if high - low > 0.45 else 1
    values = [tick / 10 for tick in range(round(10 * low), 11) if (tick - 10) % step == 0 and tick != 5]
    texts = [format_share(value).removesuffix("0") if value < 1 else "1" for value in values]
    return {"range": [low, high], "tickvals": [*values, CHANCE], "ticktext": [*texts, "chance"]}


def _line(axis: TrainingAxis, values: np.ndarray, name: str, colour: str, width: float, form: str) -> go.Scatter:
    dots = {"size": 4.5 if width > 1.5 else 3, "color": colour}
    text = f"{style.escaped(name)}: <b>{form}</b>"
    return axis.line(values, colour, width, text, marker=dots, name=style.escaped(name), connectgaps=False)


def _marked(axis: TrainingAxis, values: np.ndarray, data: ReportData) -> go.Scatter:
    """Dots on the crosscoder's checkpoints."""
    index = [i for i, name in enumerate(axis.names) if name in data.colours]
    size = 11 if len(index) <= style.LINED else 6
    dots = style.marker([data.colours[axis.names[i]] for i in index], size, None, size / 6)
    x, y = [axis.positions[i] for i in index], rounded(values[index], 5)
    return go.Scatter(x=x, y=y, mode="markers", marker=dots, hoverinfo="skip")


def _chance(base: float, band: float) -> list[dict[str, Any]]:
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": base, "y1": base, "layer": "below"}
    rectangle = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": base - band, "y1": base + band}
    return [
        rectangle | {"layer": "below", "line": {"width": 0}, "fillcolor": "rgba(28,33,40,.055)"},
        line | {"line": {"color": style.FAINT, "width": 1}},
    ]


def _end_labels(ends: Sequence[tuple[float, str]], span: tuple[float, float]) -> list[dict[str, Any]]:
    """Labels at the ends of the lines; that of all pairs is bold."""
    notes = []
    for label in style.end_notes(ends, span, 0.062):
        whole = label["text"] == ALL_PAIRS
        font = {"size": 11, "color": style.INK if whole else style.SOFT}
        text = f"<b>{ALL_PAIRS}</b>" if whole else style.clipped(label["text"], 22)
        notes.append(label | {"text": text, "font": font})
    return notes
