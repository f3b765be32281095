"""Figures of the survey: accuracy and perplexity over training, similarity of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.evaluation.survey import Survey
from crosstime.report import words
from crosstime.report.colour import FAINT, INK, PALE, SOFT
from crosstime.report.data import TaskGroup
from crosstime.report.plots.axis import LINED, TokenAxis, log_axis
from crosstime.report.plots.figure import CENTRE, Figure, clipped, end_notes, escaped, floats, padded, styled
from crosstime.report.plots.matrix import triangle
from crosstime.report.trajectory import CHANCE, chance_band, pooled


def accuracy(survey: Survey, group: TaskGroup, key: str, chosen: Mapping[str, str], lowest: float) -> Figure:
    """Accuracy of a group's tasks over tokens seen, with chance and the chosen checkpoints marked.

    Args:
        chosen: checkpoint -> colour.
        lowest: lower end of the accuracy axis; the panels share it.
    """
    columns = [survey.tasks.index(task) for task in group.tasks]
    n_pairs = [survey.n_pairs[column] for column in columns]
    forms = {
        "Whole sentences": (np.asarray(survey.sentence_accuracy, dtype=float), n_pairs),
        "Next word": (np.asarray(survey.token_accuracy, dtype=float), [survey.n_prompts[c] for c in columns]),
    }
    axis = TokenAxis.of(survey.checkpoints, survey.tokens)
    variants = {
        form: _accuracy_panel(values[:, columns], counts, group, axis, chosen, (lowest, 1.0))
        for form, (values, counts) in forms.items()
    }
    difference = np.asarray(survey.logit_difference, dtype=float)[:, columns]
    counts = [survey.n_prompts[c] for c in columns]
    variants["Logit difference"] = _accuracy_panel(difference, counts, group, axis, chosen, None)
    return Figure(key, words.sentence_case(words.name(group.name)), variants, 300)


def perplexity(survey: Survey, chosen: Mapping[str, str]) -> Figure:
    """Perplexity on held-out text over tokens seen."""
    axis = TokenAxis.of(survey.checkpoints, survey.tokens)
    values = np.asarray(survey.perplexity, dtype=float)
    figure = styled(
        [_line(axis, values, "perplexity", INK, 2.0, "%{y:,.1f}"), *_chosen_points(axis, values, chosen)],
        **axis.layout(chosen),
    )
    figure.update_yaxes(**log_axis(values))
    return Figure("perplexity", "Perplexity on held-out text", {"": figure}, 300)


def similarity(survey: Survey, chosen: Mapping[str, str]) -> Figure:
    """Lower-triangle map of the similarity of every two checkpoints' activations; chosen pairs are outlined."""
    maps = {"Cosine": survey.cosine, "Pearson": survey.pearson}
    n = len(survey.checkpoints)
    height = max(380, min(58 * n + 90, 680))
    return Figure(
        "similarity",
        "Similarity of activations",
        {name: triangle(np.asarray(v, dtype=float), survey.checkpoints, chosen) for name, v in maps.items()},
        height,
    )


def _accuracy_panel(
    values: Float[np.ndarray, "C T"],
    counts: Sequence[int],
    group: TaskGroup,
    axis: TokenAxis,
    chosen: Mapping[str, str],
    span: tuple[float, float] | None,
) -> go.Figure:
    """One panel: thin lines for the tasks, a heavy one for all their pairs, labels at the lines' ends."""
    labels = words.short_names(group.tasks)
    form = "%{y:.3f}" if span else "%{y:.2f}"
    whole = pooled(values, counts) if any(counts) else values.mean(axis=1)
    lines = []
    if len(labels) > 1:
        lines = [_line(axis, values[:, i], label, PALE, 1.25, form) for i, label in enumerate(labels)]
    lines.append(_line(axis, whole, "all pairs" if len(labels) > 1 else labels[0], INK, 2.25, form))
    layout = axis.layout(chosen)
    low, high = span or padded(values)
    layout["yaxis"] = _accuracy_axis(low, high) if span else {"range": [low, high], "nticks": 6}
    layout["shapes"] += _chance(CHANCE if span else 0.0, chance_band(max(sum(counts), 1)) if span else 0.0)
    if len(labels) > 1:
        ends = [*zip(values[-1], labels, strict=True), (whole[-1], "all pairs")]
        layout["annotations"] += _end_labels(ends, (low, high))
        layout["margin"]["r"] = min(14 + 6.2 * max(len(label) for label in (*labels, "all pairs")), 150)
    figure = styled([*lines, *_chosen_points(axis, whole, chosen)], **layout)
    if not np.isfinite(values).any():
        figure.add_annotation(text="no pair of this task gives a prompt", **CENTRE)
    return figure


def _accuracy_axis(low: float, high: float) -> dict[str, Any]:
    """Ticks every fifth or tenth, and chance among them by its name."""
    step = 2 if high - low > 0.45 else 1
    values = [tick / 10 for tick in range(round(10 * low), 11) if (tick - 10) % step == 0 and tick != 5]
    texts = [words.share(value).removesuffix("0") if value < 1 else "1" for value in values]
    return {"range": [low, high], "tickvals": [*values, CHANCE], "ticktext": [*texts, "chance"]}


def _line(axis: TokenAxis, values: np.ndarray, name: str, colour: str, width: float, form: str) -> go.Scatter:
    marker = {"size": 4.5 if width > 1.5 else 3, "color": colour}
    return go.Scatter(
        x=axis.positions,
        y=floats(values),
        mode="lines+markers",
        name=escaped(name),
        line={"color": colour, "width": width},
        marker=marker,
        text=axis.hover(),
        hovertemplate=f"{escaped(name)}: <b>{form}</b><br>%{{text}}<extra></extra>",
        connectgaps=False,
    )


def _chosen_points(axis: TokenAxis, values: np.ndarray, chosen: Mapping[str, str]) -> list[go.Scatter]:
    index = [i for i, name in enumerate(axis.names) if name in chosen]
    size = 11 if len(index) <= LINED else 6
    marker = {
        "size": size,
        "color": [chosen[axis.names[i]] for i in index],
        "line": {"color": "#fff", "width": size / 6},
    }
    points = {"x": [axis.positions[i] for i in index], "y": floats(values[index])}
    return [go.Scatter(**points, mode="markers", marker=marker, hoverinfo="skip")]


def _chance(base: float, band: float) -> list[dict[str, Any]]:
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": base, "y1": base, "layer": "below"}
    rectangle = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": base - band, "y1": base + band}
    return [
        rectangle | {"layer": "below", "line": {"width": 0}, "fillcolor": "rgba(28,33,40,.055)"},
        line | {"line": {"color": FAINT, "width": 1}},
    ]


def _end_labels(ends: Sequence[tuple[float, str]], span: tuple[float, float]) -> list[dict[str, Any]]:
    """Labels beside the ends of the lines; that of all pairs is bold."""
    notes = []
    for label in end_notes(ends, span, 0.062):
        whole = label["text"] == "all pairs"
        font = {"size": 11, "color": INK if whole else SOFT}
        text = "<b>all pairs</b>" if whole else escaped(clipped(label["text"], 22))
        notes.append(label | {"text": text, "font": font})
    return notes
