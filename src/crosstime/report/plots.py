"""The figures, as plotly figures: one function a figure, values in, nothing written.

Plotly reads a few HTML tags in every label and hover text, so text from data goes through `escaped` first.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.analysis.ablation import Ablation
from crosstime.analysis.numbers import token_count
from crosstime.analysis.quality import Quality
from crosstime.analysis.survey import Survey
from crosstime.report import words
from crosstime.report.colour import FAINT, INK, PALE, RULE, SEQUENTIAL, SOFT, mix
from crosstime.report.data import TaskGroup, TrainingPoint
from crosstime.report.features import TaskFeatures, class_members, class_order, class_words
from crosstime.report.trajectory import CHANCE, chance_band, pooled, positions

FONT = (
    'ui-sans-serif, -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", '
    '"Liberation Sans", Arial, sans-serif'
)
POINTS = 800
"""Features drawn at most in one figure: beyond the strongest, points are too small to see."""
HEATMAP_ROWS = 160
TRAINING_POINTS = 400


@dataclass(frozen=True)
class Figure:
    """A figure with one or more variants, between which the page switches (similarity: cosine or Pearson)."""

    key: str
    title: str
    variants: Mapping[str, go.Figure]
    height: int
    """Pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the page's script."""
        return {
            "title": self.title,
            "variants": [
                {"name": name, **{part: figure.to_plotly_json()[part] for part in ("data", "layout")}}
                for name, figure in self.variants.items()
            ],
        }


def escaped(text: str) -> str:
    """Text from data, safe in plotly's labels; its line breaks would otherwise be lost."""
    return html.escape(text, quote=False).replace("\n", "↵")


# ---------------------------------------------------------------------------------------- the survey


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
    axis = TokenAxis.of(survey)
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
    axis = TokenAxis.of(survey)
    values = np.asarray(survey.perplexity, dtype=float)
    figure = _figure(
        [_line(axis, values, "perplexity", INK, 2.0, "%{y:,.1f}"), *_chosen_points(axis, values, chosen)],
        **axis.layout(chosen),
    )
    figure.update_yaxes(**_log_axis(values))
    return Figure("perplexity", "Perplexity on held-out text", {"": figure}, 300)


def similarity(survey: Survey, chosen: Mapping[str, str]) -> Figure:
    """Lower-triangle map of the similarity of every two checkpoints' activations; chosen pairs are outlined."""
    maps = {"Cosine": survey.cosine, "Pearson": survey.pearson}
    n = len(survey.checkpoints)
    height = max(380, min(58 * n + 90, 680))
    return Figure(
        "similarity",
        "Similarity of activations",
        {name: _triangle(np.asarray(values, dtype=float), survey, chosen) for name, values in maps.items()},
        height,
    )


@dataclass(frozen=True)
class TokenAxis:
    """Where checkpoints stand on the axis of training: log tokens, zero at the left edge; or their order."""

    names: list[str]
    tokens: list[int | None]
    positions: list[float]
    ticks: list[tuple[float, str]]
    title: str

    @classmethod
    def of(cls, survey: Survey) -> TokenAxis:
        """The axis of a survey's checkpoints. One checkpoint whose tokens are unknown makes it ordinal."""
        tokens = list(survey.tokens)
        names = list(survey.checkpoints)
        places = positions(tokens)
        counts = [count for count in tokens if count is not None]
        if len(counts) < len(tokens) or max(counts) == 0:
            return cls(names, tokens, places, _ordinal_ticks(names), "checkpoint")
        ticks = _decade_ticks(math.log10(min(count for count in counts if count)), max(places))
        if 0 in counts:
            ticks = [(places[counts.index(0)], "0"), *ticks]
        return cls(names, tokens, places, ticks, "tokens seen")

    def layout(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        """The axis itself, and a line with a label for each chosen checkpoint."""
        span = max(self.positions) - min(self.positions) or 1.0
        marked = [(x, name) for x, name in zip(self.positions, self.names, strict=True) if name in chosen]
        shapes = [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
            | {"line": {"color": chosen[name], "width": 1.25, "dash": "dot"}}
            for x, name in marked
        ]
        labels = []
        for i, (x, name) in enumerate(marked):
            crowded = i > 0 and x - marked[i - 1][0] < 0.24 * span and labels[-1]["yshift"] == 2
            labels.append(
                {
                    "x": x,
                    "y": 1,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "yshift": 14 if crowded else 2,
                }
                | {"text": escaped(_clipped(name, 18)), "font": {"size": 10.5, "color": SOFT}}
            )
        xaxis = {
            "range": [min(self.positions) - 0.04 * span, max(self.positions) + 0.04 * span],
            "tickvals": [x for x, _ in self.ticks],
            "ticktext": [escaped(text) for _, text in self.ticks],
            "title": {"text": self.title, "standoff": 6},
            "ticks": "outside",
        }
        return {"xaxis": xaxis, "shapes": shapes, "annotations": labels, "margin": {"t": 34}}

    def hover(self) -> list[str]:
        """What a point's label says of its checkpoint."""
        return [
            escaped(name) + (f" · {token_count(count)} tokens" if count is not None else "")
            for name, count in zip(self.names, self.tokens, strict=True)
        ]


def _decade_ticks(low: float, high: float) -> list[tuple[float, str]]:
    steps = (1, 2, 5) if high - low < 2.2 else (1, 3) if high - low < 3.2 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    values = [step * 10**exponent for exponent in exponents for step in steps if exponent >= 0]
    return [(math.log10(v), token_count(v)) for v in values if low - 0.02 <= math.log10(v) <= high + 0.02]


def _log_axis(values: np.ndarray) -> dict[str, Any]:
    """A log axis whose ticks are whole numbers; plotly's own would print a bare 2 or 5 between powers of ten."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (math.log10(known.min()), math.log10(known.max())) if known.size else (0.0, 1.0)
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}


def _ordinal_ticks(names: Sequence[str]) -> list[tuple[float, str]]:
    every = max(1, math.ceil(len(names) / 7))
    return [(float(i), _clipped(name, 12)) for i, name in enumerate(names) if i % every == 0]


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
    low, high = span or _padded(values)
    layout["yaxis"] = _accuracy_axis(low, high) if span else {"range": [low, high], "nticks": 6}
    layout["shapes"] += _chance(CHANCE if span else 0.0, chance_band(max(sum(counts), 1)) if span else 0.0)
    if len(labels) > 1:
        ends = [*zip(values[-1], labels, strict=True), (whole[-1], "all pairs")]
        layout["annotations"] += _end_labels(ends, (low, high))
        layout["margin"]["r"] = min(14 + 6.2 * max(len(label) for label in (*labels, "all pairs")), 150)
    figure = _figure([*lines, *_chosen_points(axis, whole, chosen)], **layout)
    if not np.isfinite(values).any():
        figure.add_annotation(text="no pair of this task gives a prompt", **_CENTRE)
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
        y=_floats(values),
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
    marker = {"size": 11, "color": [chosen[axis.names[i]] for i in index], "line": {"color": "#fff", "width": 1.75}}
    points = {"x": [axis.positions[i] for i in index], "y": _floats(values[index])}
    return [go.Scatter(**points, mode="markers", marker=marker, hoverinfo="skip")]


def _chance(base: float, band: float) -> list[dict[str, Any]]:
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": base, "y1": base, "layer": "below"}
    rectangle = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": base - band, "y1": base + band}
    return [
        rectangle | {"layer": "below", "line": {"width": 0}, "fillcolor": "rgba(28,33,40,.055)"},
        line | {"line": {"color": FAINT, "width": 1}},
    ]


def _end_labels(ends: Sequence[tuple[float, str]], span: tuple[float, float]) -> list[dict[str, Any]]:
    """Labels beside the ends of lines, pushed apart where they would overlap."""
    low, high = span
    step = 0.062 * (high - low)
    known = sorted((value, label) for value, label in ends if not math.isnan(value))
    places: list[float] = []
    for value, _ in known:
        places.append(max(value, places[-1] + step) if places else value)
    over = max(0.0, places[-1] - high) if places else 0.0
    notes = []
    for i in reversed(range(len(known))):
        limit = places[i + 1] - step if i + 1 < len(places) else high
        places[i] = min(places[i], limit) if over else places[i]
    for place, (_, label) in zip(places, known, strict=True):
        whole = label == "all pairs"
        font = {"size": 11, "color": INK if whole else SOFT}
        text = f"<b>{label}</b>" if whole else escaped(_clipped(label, 22))
        notes.append(_note(1, place, text, xref="paper", xanchor="left", xshift=8) | {"font": font})
    return notes


def _triangle(values: Float[np.ndarray, "C C"], survey: Survey, chosen: Mapping[str, str]) -> go.Figure:
    n = len(survey.checkpoints)
    names = survey.checkpoints
    shown = [
        [float(values[i, j]) if j <= i and not math.isnan(values[i, j]) else None for j in range(n)] for i in range(n)
    ]
    low = float(np.nanmin(values))
    hover = [[f"{escaped(names[i])} and {escaped(names[j])}" for j in range(n)] for i in range(n)]
    heat = go.Heatmap(
        z=shown,
        x=list(range(n)),
        y=list(range(n)),
        zmin=min(0.0, low),
        zmax=1,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        xgap=2,
        ygap=2,
        hoverongaps=False,
        text=hover,
        hovertemplate="%{text}<br><b>%{z:.3f}</b><extra></extra>",
        colorbar={"thickness": 8, "len": 0.5, "y": 1, "yanchor": "top", "x": 1, "xanchor": "right", "outlinewidth": 0}
        | {"tickfont": {"size": 10.5, "color": SOFT}, "nticks": 4},
    )
    index = [i for i, name in enumerate(names) if name in chosen]
    pairs = [(a, b) for a in index for b in index if a < b]
    outlines = [
        {"type": "rect", "x0": a - 0.47, "x1": a + 0.47, "y0": b - 0.47, "y1": b + 0.47}
        | {"line": {"color": INK, "width": 1.75}}
        for a, b in pairs
    ]
    cells = []
    if n <= 14:
        cells = [
            _note(j, i, words.share(values[i, j]) if values[i, j] >= 0 else f"{values[i, j]:.1f}")
            | {"font": {"size": 11 if n <= 10 else 9.5, "color": "#fff" if values[i, j] > 0.6 else INK}}
            for i in range(n)
            for j in range(i)
            if not math.isnan(values[i, j])
        ]
    ticks = [
        f"<b>{escaped(_clipped(name, 14))}</b>" if name in chosen else escaped(_clipped(name, 14)) for name in names
    ]
    dots = go.Scatter(
        x=index,
        y=index,
        mode="markers",
        marker={"size": 13, "color": [chosen[names[i]] for i in index], "line": {"color": "#fff", "width": 2}},
        hoverinfo="skip",
    )
    axis = {"tickvals": list(range(n)), "ticktext": ticks, "showgrid": False, "zeroline": False, "constrain": "domain"}
    return _figure(
        [heat, dots],
        xaxis=axis | {"range": [-0.5, n - 0.5], "autotickangles": [0, -45, -90], "showline": False, "automargin": True},
        yaxis=axis | {"range": [n - 0.5, -0.5], "showline": False, "automargin": True},
        shapes=outlines,
        annotations=cells,
        margin={"l": 20, "t": 8, "r": 8, "b": 20},
    )


# ---------------------------------------------------------------------------------------- the crosscoder


def frequency(quality: Quality) -> Figure:
    """Histogram of how often features fire, on a log scale."""
    live = np.asarray(quality.frequency, dtype=float)
    live = live[live > 0]
    figure = _histogram(np.log10(live), 40, SOFT, None, "%{y} features fire on 10<sup>%{x:.1f}</sup> of the tokens")
    low, high = (math.floor(np.log10(live.min())), 0) if live.size else (-4, 0)
    ticks = list(range(low, high + 1))
    text = [words.percent(10.0**t, max(0, -t - 2)) for t in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=text, title_text="share of tokens on which a feature fires (log)")
    return Figure("frequency", "How often features fire", {"": figure}, 240)


def training_curves(points: Sequence[TrainingPoint]) -> list[Figure]:
    """Loss, L0 and explained variance over the rows trained on."""
    every = max(1, math.ceil(len(points) / TRAINING_POINTS))
    kept = [*points[::every], points[-1]]
    curves = (
        ("loss", "Loss", [p.loss for p in kept], "%{y:,.1f}"),
        ("l0", "L0", [p.l0 for p in kept], "%{y:.1f}"),
        ("explained", "Explained variance", [p.explained_variance for p in kept], "%{y:.3f}"),
    )
    figures = []
    for key, title, column, form in curves:
        values = np.asarray(column, dtype=float)
        line = go.Scatter(x=[p.rows for p in kept], y=_floats(values), mode="lines")
        line.update(line={"color": INK, "width": 1.5}, hovertemplate=f"{form} at %{{x:.3s}} rows<extra></extra>")
        figure = _figure([line], xaxis={"tickformat": "~s", "nticks": 5, "rangemode": "tozero"}, yaxis={"nticks": 5})
        settled = values[len(values) // 20 :]
        if key == "explained":
            low = float(np.min(settled, where=np.isfinite(settled), initial=1.0))
            figure.update_yaxes(range=[max(0.0, low - 0.05), 1])
        elif (values > 0).all():
            title = f"{title} (log)"
            figure.update_yaxes(**_log_axis(values))
        figures.append(Figure(f"training-{key}", title, {"": figure}, 190))
    return figures


def decoder_histograms(features: TaskFeatures, chosen: Mapping[str, str]) -> tuple[list[Figure], list[Figure]]:
    """RelDec of live features: (each checkpoint against all, each pair of neighbours); the first empty for two."""
    names = features.checkpoints
    live = features.rel_dec[features.frequency > 0]
    norms = features.decoder_norm[features.frequency > 0]
    alone = []
    if len(names) > 2:
        for m, name in enumerate(names):
            figure = _histogram(live[:, m], 40, chosen[name], (0.0, 1.0), "%{y} features at RelDec %{x:.2f}")
            figure.add_vline(
                x=1 / len(names),
                line={"color": SOFT, "width": 1, "dash": "dot"},
            )
            figure.update_xaxes(title_text=f"share of the decoder norm at {escaped(_clipped(name, 22))}")
            alone.append(Figure(f"reldec-{m}", f"{name} against all", {"": figure}, 210))
    pairs = []
    for m, (before, after) in enumerate(pairwise(names)):
        both = norms[:, m] + norms[:, m + 1]
        relative = norms[both > 0, m + 1] / both[both > 0]
        tint = mix((chosen[before], chosen[after]), (1.0, 1.0))
        figure = _histogram(relative, 40, tint, (0.0, 1.0), "%{y} features at RelDec %{x:.2f}")
        figure.update_xaxes(
            tickvals=[0, 0.5, 1],
            ticktext=[f"only {escaped(_clipped(before, 14))}", "shared", f"only {escaped(_clipped(after, 14))}"],
        )
        figure.update_layout(margin={"r": 44})
        pairs.append(Figure(f"reldec-pair-{m}", f"{before} and {after}", {"": figure}, 210))
    return alone, pairs


def _histogram(values: np.ndarray, bins: int, colour: str, span: tuple[float, float] | None, hover: str) -> go.Figure:
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=bins, range=span)
    bars = go.Bar(
        x=_floats((edges[:-1] + edges[1:]) / 2),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        marker={"color": colour, "line": {"color": "#fff", "width": 0.75}},
        hovertemplate=f"{hover}<extra></extra>",
    )
    xaxis = {"range": list(span)} if span else {}
    return _figure([bars], bargap=0, xaxis=xaxis | {"showgrid": False}, yaxis={"nticks": 4, "rangemode": "tozero"})


# ---------------------------------------------------------------------------------------- effects


def relative_effects(features: TaskFeatures, chosen: Mapping[str, str], promoted: Mapping[int, str]) -> Figure:
    """RelIE of the strongest features: a ternary plot for three checkpoints, a strip for two, a map for more.

    Args:
        chosen: checkpoint -> colour.
        promoted: feature -> a line of text on the tokens that it promotes.
    """
    n = len(features.checkpoints)
    rows = features.strongest(HEATMAP_ROWS if n > 3 else POINTS)
    rows = rows[np.isfinite(features.rel_ie[rows]).all(axis=1)]
    if n == 3:
        figure = _ternary(features, rows, chosen, promoted)
    elif n == 2:
        figure = _strip(features, rows, chosen, promoted)
    elif n > 3:
        figure = _map(features, rows, chosen, promoted)
    else:
        figure = _figure([])
    if len(rows) == 0:
        figure.add_annotation(text="no feature has an effect on this task", **_CENTRE)
    return Figure("relative", "Where the effect lies", {"": figure}, 600 if n == 3 else 460 if n == 2 else 620)


def class_colour(label: str, chosen: Mapping[str, str]) -> str:
    """Colour of a class: its checkpoint's, or the mixture of those that share it, or grey."""
    members = class_members(label, list(chosen))
    return mix([chosen[name] for name in members], [1.0] * len(members)) if members else "#b3b0a8"


def _by_class(features: TaskFeatures, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Rows of each class, in the order of the classes."""
    labels = sorted({features.classes[row] for row in rows}, key=lambda label: class_order(label, features.checkpoints))
    return [(label, np.asarray([row for row in rows if features.classes[row] == label])) for label in labels]


def _points(
    features: TaskFeatures, rows: np.ndarray, label: str, chosen: Mapping[str, str], promoted: Mapping[int, str]
) -> dict[str, Any]:
    """What the traces of one class have in common: colour, ids for clicks, hover texts, sizes by the effect."""
    largest = max(float(features.strength.max()), 1e-12)
    hover = []
    for row in rows:
        feature = int(features.feature[row])
        shares = " · ".join(
            f"{escaped(name)} {words.share(float(value))}"
            for name, value in zip(features.checkpoints, features.rel_ie[row], strict=True)
        )
        strength = f"max |IE| {words.number(float(features.strength[row]), 3)}"
        lines = [f"<b>Feature {feature}</b>", escaped(class_words(label, features.checkpoints)), shares, strength]
        if feature in promoted:
            lines.append(escaped(promoted[feature]))
        hover.append("<br>".join(lines))
    size = [5 + 21 * math.sqrt(float(features.strength[row]) / largest) for row in rows]
    return {
        "mode": "markers",
        "name": f"{escaped(class_words(label, features.checkpoints))} ({len(rows)})",
        "customdata": [int(features.feature[row]) for row in rows],
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": size,
            "opacity": 0.82,
            "line": {"color": "#fff", "width": 0.8},
            "color": class_colour(label, chosen),
        },
    }


def _ternary(
    features: TaskFeatures, rows: np.ndarray, chosen: Mapping[str, str], promoted: Mapping[int, str]
) -> go.Figure:
    traces = []
    for label, members in _by_class(features, rows):
        common = _points(features, members, label, chosen, promoted)
        # The first checkpoint stands bottom left, the last bottom right, so that training runs left to right.
        b, a, c = features.rel_ie[members].T
        traces.append(go.Scatterternary(a=_floats(a), b=_floats(b), c=_floats(c), cliponaxis=False, **common))
    # The lower corners' names stand a line lower, clear of the points at the corner.
    corners = [
        f"{line}<b>{escaped(_clipped(name, 22))}</b>"
        for line, name in zip(("<br>", "", "<br>"), features.checkpoints, strict=True)
    ]
    axis = {"min": 0, "dtick": 0.2, "showticklabels": False, "ticks": "", "gridcolor": RULE, "linecolor": FAINT}
    return _figure(
        traces,
        ternary={"sum": 1, "bgcolor": "rgba(0,0,0,0)", "domain": {"x": [0, 1], "y": [0.02, 0.98]}}
        | {"aaxis": axis | {"title": {"text": corners[1]}}}
        | {"baxis": axis | {"title": {"text": corners[0]}}}
        | {"caxis": axis | {"title": {"text": corners[2]}}},
        margin={"l": 40, "r": 40, "t": 34, "b": 48},
    )


def _strip(
    features: TaskFeatures, rows: np.ndarray, chosen: Mapping[str, str], promoted: Mapping[int, str]
) -> go.Figure:
    """Two checkpoints: RelIE of the second across, the strongest effect upwards."""
    traces = []
    for label, members in _by_class(features, rows):
        common = _points(features, members, label, chosen, promoted)
        place = {"x": _floats(features.rel_ie[members, 1]), "y": _floats(features.strength[members])}
        traces.append(go.Scatter(**place, **common, cliponaxis=False))
    first, second = (escaped(_clipped(name, 22)) for name in features.checkpoints)
    ticks = {
        "tickvals": [0, 0.25, 0.5, 0.75, 1],
        "ticktext": [f"only {first}", ".25", "shared", ".75", f"only {second}"],
    }
    return _figure(
        traces,
        xaxis=ticks | {"range": [-0.02, 1.02], "title": {"text": "RelIE"}},
        yaxis={"type": "log", "title": {"text": "max |IE| (log)"}, "dtick": 1, "exponentformat": "power"},
        margin={"l": 64, "r": 48, "t": 16},
    )


def _map(features: TaskFeatures, rows: np.ndarray, chosen: Mapping[str, str], promoted: Mapping[int, str]) -> go.Figure:
    """Four or more checkpoints: RelIE of each feature as a row, sorted by where in training its effect lies."""
    relative = features.rel_ie[rows]
    centre = relative @ np.arange(relative.shape[1])
    rows = rows[np.argsort(centre, kind="stable")]
    names = [
        f'<span style="color:{chosen[name]}">●</span> {escaped(_clipped(name, 16))}' for name in features.checkpoints
    ]
    ids = [int(features.feature[row]) for row in rows]
    notes = [escaped(promoted.get(feature, "")) for feature in ids]
    heat = go.Heatmap(
        z=[_floats(features.rel_ie[row]) for row in rows],
        x=names,
        y=list(range(len(rows))),
        zmin=0,
        zmax=1,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        customdata=[[feature] * len(names) for feature in ids],
        text=[[note] * len(names) for note in notes],
        hovertemplate="<b>Feature %{customdata}</b><br>%{x}: RelIE <b>%{z:.2f}</b><br>%{text}<extra></extra>",
        colorbar={"thickness": 8, "len": 0.4, "y": 1, "yanchor": "top", "outlinewidth": 0, "title": {"text": "RelIE"}},
    )
    yaxis = {
        "range": [len(rows) - 0.5, -0.5],
        "showticklabels": False,
        "ticks": "",
        "showline": False,
        "showgrid": False,
    }
    title = f"{len(rows)} features, early effects first"
    return _figure(
        [heat], xaxis={"showgrid": False, "side": "top"}, yaxis=yaxis | {"title": {"text": title}}, margin={"t": 40}
    )


# ---------------------------------------------------------------------------------------- ablation


def ablation_scatter(ablation: Ablation, chosen: Mapping[str, str]) -> Figure:
    """Attributed effect against the effect of ablating the feature: points on the line agree."""
    table = ablation.table.to_pydict()
    members: dict[tuple[str, str], list[int]] = {}
    for i, (group, checkpoint) in enumerate(zip(table["group"], table["checkpoint"], strict=True)):
        members.setdefault((group, "" if group == "random" else checkpoint), []).append(i)
    traces = []
    for (group, checkpoint), index in sorted(members.items(), key=lambda item: item[0][0] != "random"):
        top = group != "random"
        hover = [
            f"<b>Feature {table['feature'][i]}</b> ({escaped(group)})<br>{escaped(table['checkpoint'][i])}, "
            f"{escaped(words.name(table['task'][i]))}"
            for i in index
        ]
        marker = {"size": 8 if top else 6, "color": chosen.get(checkpoint, PALE), "opacity": 0.85}
        traces.append(
            go.Scatter(
                x=_floats(np.asarray(table["ie"], dtype=float)[index]),
                y=_floats(np.asarray(table["delta_lpd"], dtype=float)[index]),
                mode="markers",
                name=f"top features, at {escaped(checkpoint)}" if top else "random features",
                customdata=[int(table["feature"][i]) for i in index],
                text=hover,
                hovertemplate="%{text}<br>IE %{x:.3f}, ablated %{y:.3f}<extra></extra>",
                marker=marker | {"line": {"color": "#fff", "width": 0.7}},
            )
        )
    values = np.asarray([*table["ie"], *table["delta_lpd"]], dtype=float)
    low, high = _padded(values)
    line = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "layer": "below"}
    title = "change in log-probability difference when ablated"
    figure = _figure(
        traces,
        xaxis={"title": {"text": "indirect effect (IE)"}, "zeroline": True, "zerolinecolor": RULE},
        yaxis={"title": {"text": title}, "zeroline": True, "zerolinecolor": RULE},
        shapes=[line | {"line": {"color": FAINT, "width": 1, "dash": "dot"}}],
        showlegend=True,
        legend={"x": 0.02, "y": 1, "xanchor": "left", "yanchor": "top", "bgcolor": "rgba(255,255,255,.75)"},
        margin={"l": 62},
    )
    n_tasks = len(set(table["task"]))
    return Figure("ablation", "Attribution against ablation", {"": figure}, max(460, min(225 * n_tasks, 640)))


def ablation_joint(ablation: Ablation, chosen: Mapping[str, str]) -> list[Figure]:
    """Per task: what ablating all top features of a checkpoint together costs, against as many random ones."""
    rows = ablation.joint.to_pylist()
    figures = []
    for i, task in enumerate(dict.fromkeys(row["task"] for row in rows)):
        variants = {}
        for label, column in (("Log-probability difference", "delta_lpd"), ("Accuracy", "delta_accuracy")):
            of_task = [row for row in rows if row["task"] == task]
            variants[label] = _joint_bars(of_task, column, chosen)
        figures.append(Figure(f"joint-{i}", words.sentence_case(words.name(task)), variants, 180))
    return figures


def _joint_bars(rows: Sequence[Mapping[str, Any]], column: str, chosen: Mapping[str, str]) -> go.Figure:
    checkpoints = [name for name in chosen if any(row["checkpoint"] == name for row in rows)]
    ticks = [escaped(_clipped(name, 14)) for name in checkpoints]
    bars = []
    for group in ("top", "random"):
        by_name = {row["checkpoint"]: row for row in rows if row["group"] == group}
        kept = [(tick, by_name[name], name) for tick, name in zip(ticks, checkpoints, strict=True) if name in by_name]
        colours = [chosen[name] if group == "top" else PALE for _, _, name in kept]
        hover = [f"{row['n_features']} {group} features, {tick}" for tick, row, _ in kept]
        bars.append(
            go.Bar(
                x=[tick for tick, _, _ in kept],
                y=[row[column] for _, row, _ in kept],
                marker={"color": colours},
                text=[words.fixed(row[column]) for _, row, _ in kept],
                textposition="outside",
                textfont={"size": 10.5, "color": SOFT},
                cliponaxis=False,
                hovertext=hover,
                hovertemplate="%{hovertext}<br><b>%{y:.3f}</b><extra></extra>",
            )
        )
    yaxis = {"nticks": 5, "zeroline": True, "zerolinecolor": FAINT}
    return _figure(
        bars, barmode="group", bargap=0.35, bargroupgap=0.08, yaxis=yaxis, xaxis={"showgrid": False, "type": "category"}
    )


# ---------------------------------------------------------------------------------------- what all have in common

_CENTRE: dict[str, Any] = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}


def _figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """A figure in the report's style; `layout` adds to it, axis by axis."""
    axis = {
        "gridcolor": "#efede7",
        "zeroline": False,
        "linecolor": PALE,
        "showline": True,
        "tickcolor": PALE,
        "ticklen": 4,
        "tickfont": {"size": 11, "color": SOFT},
        "title": {"font": {"size": 11.5, "color": SOFT}},
    }
    base = go.Layout(
        template={},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="closest",
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": RULE, "align": "left"}
        | {"font": {"family": FONT, "size": 12, "color": INK}},
        dragmode=False,
        margin={"l": 48, "r": 16, "t": 12, "b": 44},
        xaxis=axis | {"showgrid": False},
        yaxis=axis | {"showline": False},
    )
    # A subplot without Cartesian axes must not get any.
    if "ternary" in layout:
        base.pop("xaxis")
        base.pop("yaxis")
    return go.Figure(data=list(traces), layout=base).update_layout(**layout)


def _note(x: float | int, y: float | int, text: str, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": 10.5, "color": FAINT}} | more


def _floats(values: np.ndarray) -> list[float | None]:
    """Plain numbers with five significant digits, None for NaN: small in the page's script."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in np.asarray(values, dtype=float)]


def _padded(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, zero included, with a margin."""
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), max(0.0, float(finite.max()))) if finite.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
