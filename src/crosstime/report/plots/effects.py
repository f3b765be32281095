"""Figures of the effects on a task: RelIE, pair by pair, over training and against RelDec; overlap of tasks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from crosstime.attribution.comparisons import Overlap, evolution, overlap
from crosstime.report.classes import class_group, class_members, class_words, pairs
from crosstime.report.data import ReportData, TaskFeatures
from crosstime.report.format import (
    format_fixed,
    format_number,
    format_p_value,
    format_share,
    readable,
    rounded,
    sentence_case,
)
from crosstime.report.plots import style
from crosstime.report.plots.style import Figure

POINTS = 800
"""Features drawn at most by RelIE: points of weaker ones are too small to see."""
HEATMAP_ROWS = 160
MANY_POINTS = 2400
"""Points drawn at most, over all pairs or checkpoints."""
GOLDEN = 0.6180339887
EXTREMES = 5
"""Features of the largest and of the smallest IE, at the first checkpoint and at the last."""
TOPS = (10, 100)
"""Top features of each task whose overlap is shown, as in arXiv 2509.05291."""
NUMBERED = 12
"""Up to this number of tasks, the cells of the overlap contain numbers."""
SIGNIFICANCE = 0.05

# --------------------------------------------------------------------------------- one checkpoint against all


def relative_effects(features: TaskFeatures) -> Figure:
    """Draw RelIE of the top features: a ternary plot of three checkpoints, a strip of two, a map of more."""
    n = len(features.data.checkpoints)
    rows = features.strongest(HEATMAP_ROWS if n > 3 else POINTS)
    rows = rows[np.isfinite(features.rel_ie[:, rows]).all(axis=0)]
    draw, height = {2: (_strip, 460), 3: (_ternary, 600)}.get(n, (_map, 620))
    traces, layout = draw(features, rows) if n > 1 else ([], {})
    figure = style.figure(traces, None if len(rows) else style.NO_EFFECT, **layout)
    return Figure("relative", "Where the effect lies", {"": figure}, height)


def class_colour(label: str, data: ReportData) -> str:
    """Return the colour of a class: its checkpoint's, the mixture of those that share it, or grey."""
    members = class_members(label, data.checkpoints)
    return style.mix([data.colours[name] for name in members]) if members else style.NO_CLASS


_Drawn = tuple[list[Any], dict[str, Any]]
"""Traces and layout."""


def _ternary(features: TaskFeatures, rows: np.ndarray) -> _Drawn:
    traces = []
    for members, common in _points_by_class(features, rows):
        # The first checkpoint is bottom left, the last bottom right, so that training runs from left to right.
        b, a, c = (rounded(share, 5) for share in features.rel_ie[:, members])
        traces.append(go.Scatterternary(a=a, b=b, c=c, **common))
    # The names at the lower corners are one line lower, clear of the points at the corner.
    corners = [
        f"{line}<b>{style.clipped(name, 22)}</b>"
        for line, name in zip(("<br>", "", "<br>"), features.data.checkpoints, strict=True)
    ]
    axis = {"min": 0, "dtick": 0.2, "showticklabels": False, "ticks": ""}
    axis |= {"gridcolor": style.RULE, "linecolor": style.FAINT}
    ternary = {"sum": 1, "bgcolor": "rgba(0,0,0,0)", "domain": {"x": [0, 1], "y": [0.02, 0.98]}}
    for name, corner in zip(("baxis", "aaxis", "caxis"), corners, strict=True):
        ternary[name] = axis | {"title": {"text": corner}}
    return traces, {"ternary": ternary, "margin": {"l": 40, "r": 40, "t": 34, "b": 48}}


def _strip(features: TaskFeatures, rows: np.ndarray) -> _Drawn:
    """Draw two checkpoints: RelIE of the second across, the largest |IE| upwards."""
    traces = [
        go.Scatter(x=rounded(features.rel_ie[1, members], 5), y=rounded(features.strength[members], 5), **common)
        for members, common in _points_by_class(features, rows)
    ]
    first, second = (style.clipped(name, 22) for name in features.data.checkpoints)
    ticks = {
        "tickvals": [0, 0.25, 0.5, 0.75, 1],
        "ticktext": [f"only {first}", ".25", "shared", ".75", f"only {second}"],
    }
    yaxis = {"type": "log", "title": {"text": "max |IE| (log)"}, "dtick": 1, "exponentformat": "power"}
    return traces, {
        "xaxis": ticks | {"range": [-0.02, 1.02], "title": {"text": "RelIE"}},
        "yaxis": yaxis,
        "margin": {"l": 64, "r": 48, "t": 16},
    }


def _map(features: TaskFeatures, rows: np.ndarray) -> _Drawn:
    """Draw four or more checkpoints: RelIE of each feature as a row, sorted by its mean checkpoint."""
    data, relative = features.data, features.rel_ie[:, rows].T
    rows = rows[np.argsort(relative @ np.arange(relative.shape[1]), kind="stable")]
    names = [
        f'<span style="color:{colour}">●</span> {style.clipped(name, 16)}' for name, colour in data.colours.items()
    ]
    ids = features.feature[rows].tolist()
    heat = style.heatmap(
        z=[[round(value, 3) for value in row] for row in features.rel_ie[:, rows].T.tolist()],
        x=names,
        # One label per row, which the hover text shows: one text per cell would be M times as much.
        y=["<br>".join(filter(None, (f"<b>Feature {i}</b>", style.escaped(data.notes.get(i, ""))))) for i in ids],
        zmin=0,
        # The few largest values would leave the others pale.
        zmax=float(np.quantile(relative, 0.99)) if len(rows) else 1.0,
        meta={"features": ids},
        hovertemplate=style.hover("%{y}", "%{x}: RelIE <b>%{z:.2f}</b>"),
        colorbar={"thickness": 8, "len": 0.4, "y": 1, "yanchor": "top", "outlinewidth": 0, "title": {"text": "RelIE"}},
    )
    plain = {"showticklabels": False, "ticks": "", "showline": False, "showgrid": False, "type": "category"}
    title = {"text": f"{len(rows)} features, early effects first"}
    every = math.ceil(len(names) / 9)
    return [heat], {
        "xaxis": {"showgrid": False, "side": "top", "type": "category", "tickvals": names[::every]},
        "yaxis": plain | {"range": [len(rows) - 0.5, -0.5], "title": title},
        "margin": {"t": 40},
    }


def _points_by_class(features: TaskFeatures, rows: np.ndarray) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Return the rows of each class, and what its trace needs besides the coordinates."""
    data, largest = features.data, max(float(features.strength.max()), 1e-12)
    labels = sorted({features.classes[row] for row in rows}, key=lambda label: class_group(label, data.checkpoints))
    traces = []
    for label in labels:
        members = np.asarray([row for row in rows if features.classes[row] == label])
        size = (5 + 21 * np.sqrt(features.strength[members] / largest)).tolist()
        common = {
            "mode": "markers",
            "name": f"{style.escaped(class_words(label, data.checkpoints))} ({len(members)})",
            "customdata": features.feature[members].tolist(),
            "text": [_text(features, row) for row in members.tolist()],
            "hovertemplate": style.hover("%{text}"),
            "marker": style.marker(class_colour(label, data), size, 0.82, 0.8),
            "cliponaxis": False,
        }
        traces.append((members, common))
    return traces


def _text(features: TaskFeatures, row: int) -> str:
    """The hover text of a feature."""
    data, feature = features.data, int(features.feature[row])
    shares = zip(data.checkpoints, features.rel_ie[:, row].tolist(), strict=True)
    lines = [
        f"<b>Feature {feature}</b>",
        style.escaped(class_words(features.classes[row], data.checkpoints)),
        " · ".join(f"{style.escaped(name)} {format_share(share)}" for name, share in shares),
        f"max |IE| {format_number(float(features.strength[row]), 3)}",
        style.escaped(data.notes.get(feature, "")),
    ]
    return "<br>".join(filter(None, lines))


# --------------------------------------------------------------------------------- pair by pair


def pairwise_effects(features: TaskFeatures) -> Figure:
    """Draw a row of points for each pair of checkpoints: across, pairwise RelIE."""
    data, compared = features.data, pairs(len(features.data.checkpoints))
    names, colours = data.checkpoints, list(data.colours.values())
    traces = []
    for row, (before, after) in enumerate(compared):
        relative = features.pairwise(before, after)
        strength = np.abs(features.ie[[before, after]]).max(axis=0)
        order = np.argsort(-np.where(np.isfinite(relative), strength, -np.inf), kind="stable")
        kept = order[: min(MANY_POINTS // len(compared), int(np.isfinite(relative).sum()))]
        # Features of similar strength get different heights; the golden ratio spreads any number of them evenly.
        height = row + 0.62 * (np.modf((1 + np.arange(len(kept))) * GOLDEN)[0] - 0.5)
        size = 4 + 12 * np.sqrt(strength[kept] / max(float(features.strength.max()), 1e-12))
        ids = features.feature[kept].tolist()
        dots = style.marker(style.mix([colours[before], colours[after]]), size.round(1).tolist(), edge=0.6)
        pair = f"{style.escaped(names[after])} against {style.escaped(names[before])}: %{{x:.2f}}"
        lines = ("<b>Feature %{customdata}</b>", pair, "%{text}")
        text = [style.escaped(data.decoder_labels.get(feature, "")) for feature in ids]
        traces.append(style.points(relative[kept], height, ids, dots, *lines, text=text))
    ticks = [f"{style.clipped(names[a], 12)} → {style.clipped(names[b], 12)}" for a, b in compared]
    every = math.ceil(len(compared) / 16)
    figure = style.figure(
        traces,
        None if any(len(trace.x) for trace in traces) else style.NO_EFFECT,
        xaxis={"range": [-0.02, 1.02], "tickvals": [0, 0.3, 0.5, 0.7, 1], "title": {"text": "pairwise RelIE"}}
        | {"ticktext": ["earlier only", ".3", "shared", ".7", "later only"]},
        yaxis={"range": [len(compared) - 0.5, -0.5], "tickvals": list(range(0, len(compared), every))}
        | {"ticktext": ticks[::every], "showgrid": False, "automargin": True},
        shapes=[style.rule(bound, 0, bound, 1, style.RULE, yref="paper") for bound in (0.3, 0.7)],
        margin={"l": 20, "r": 40},
    )
    return Figure("pairwise", "RelIE, pair by pair", {"": figure}, min(150 + 74 * len(compared), 560))


# --------------------------------------------------------------------------------- over training, and decoder norms


def effects_over_training(features: TaskFeatures) -> Figure:
    """Draw the extreme features over training, in the colour of the checkpoint, first or last, where they are so."""
    data, axis = features.data, features.data.axis
    extremes = evolution(features.ie, EXTREMES)
    colours = {"first": data.colours[data.checkpoints[0]], "last": data.colours[data.checkpoints[-1]]}
    lines, ends = [], []
    for one in extremes:
        feature = int(features.feature[one.feature])
        places = {group.rsplit(" ", 1)[1] for group in one.groups}
        colour = style.FAINT if len(places) > 1 else colours[places.pop()]
        text = style.hover(
            f"<b>Feature {feature}</b>: {' and '.join(one.groups)}",
            "IE %{y:.4f} at %{text}",
            style.escaped(data.notes.get(feature, "")),
        )
        ids = [feature] * len(axis.names)
        dots = {"size": 5, "color": colour}
        lines.append(axis.line(one.ie, colour, 1.5, "", 4, marker=dots, customdata=ids, hovertemplate=text))
        ends.append((float(one.ie[-1]), str(feature)))
    span = style.padded(features.ie[:, [one.feature for one in extremes]])
    figure = style.figure(
        lines,
        None if extremes else style.NO_EFFECT,
        xaxis=axis.xaxis(),
        yaxis={"range": list(span), "nticks": 7, "zeroline": True, "zerolinecolor": style.FAINT}
        | {"title": {"text": "indirect effect (IE)"}},
        annotations=[one | {"font": {"size": 10.5, "color": style.SOFT}} for one in style.end_notes(ends, span, 0.043)],
        margin={"l": 62, "r": 52},
    )
    return Figure("evolution", "The largest and the smallest effects over training", {"": figure}, 440)


def decoder_against_effect(features: TaskFeatures) -> Figure:
    """Draw RelDec against RelIE of the top features: one point per feature and checkpoint."""
    data = features.data
    few = len(data.checkpoints) <= 4
    rows = [row for row in features.strongest(MANY_POINTS // len(data.checkpoints)) if features.has_class[row]]
    ids = features.feature[rows].tolist()
    text = [style.escaped(data.decoder_labels.get(feature, "")) for feature in ids]
    lines = ("RelDec %{x:.2f}, RelIE %{y:.2f}", "%{text}")
    shares = features.rel_dec[:, rows], features.rel_ie[:, rows]
    traces = style.points_by_checkpoint(*shares, ids, data.colours, *lines, text=text)
    top = float(features.rel_dec[:, rows].max(initial=0.1))
    figure = style.figure(
        traces,
        xaxis={"range": [0, min(1.0, 1.05 * top)], "title": {"text": "RelDec"}, "nticks": 6},
        yaxis={"range": [-0.02, 1.02], "title": {"text": "RelIE"}, "nticks": 6},
        shapes=[style.rule(0, 0, top, top, style.RULE)],
        showlegend=few,
        legend=style.LEGEND_ABOVE,
        margin={"t": 30 if few else 12},
    )
    return Figure("decoder", "RelDec against RelIE", {"": figure}, 320)


# --------------------------------------------------------------------------------- overlap of tasks


def overlaps(data: ReportData) -> list[Figure]:
    """Draw the top features that every two tasks share, by checkpoint, and the number by chance; none for one task."""
    if len(data.tasks) < 2:
        return []
    ie = {task: features.ie for task, features in data.tasks.items()}
    return [_overlap(overlap(ie, data.checkpoints, k), k) for k in TOPS]


def _overlap(found: Overlap, k: int) -> Figure:
    variants = {name: _overlap_map(found, m) for m, name in enumerate(found.checkpoints)}
    return Figure(f"overlap-{k}", f"Of the top {k} features", variants, max(260, min(84 * len(found.tasks) + 110, 640)))


def _overlap_map(found: Overlap, m: int) -> go.Figure:
    n = len(found.tasks)
    names = [sentence_case(readable(task)) for task in found.tasks]
    cells = [(i, j) for i in range(n) for j in range(i)]
    limit = SIGNIFICANCE / max(len(cells), 1)
    z: list[list[float | None]] = [[None] * n for _ in range(n)]
    text = [[""] * n for _ in range(n)]
    numbers = []
    for i, j in cells:
        shared, expected, p = int(found.shared[m, i, j]), float(found.expected[m, i, j]), float(found.p_value[m, i, j])
        most = min(found.size[m, i], found.size[m, j])
        share = round(shared / most, 3) if most else None
        z[i][j] = share
        text[i][j] = (
            f"{style.escaped(names[i])} and {style.escaped(names[j])}: <b>{shared}</b> shared<br>"
            f"{format_fixed(expected, 1)} by chance, {format_p_value(p)}"
        )
        if n <= NUMBERED:
            number = f"<b>{shared}</b>" if p < limit else f"{shared}"
            number += f"<br><span style='font-size:10px'>{format_fixed(expected, 1)}</span>"
            font = {"size": 13, "color": "#fff" if (share or 0) > 0.6 else style.INK}
            numbers.append(style.note(j, i, number, font=font))
    grid = list(range(n))
    heat = style.heatmap(
        x=grid,
        y=grid,
        z=z,
        zmin=0,
        zmax=1,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        showscale=False,
        text=text,
        hovertemplate=style.hover("%{text}"),
    )
    every = math.ceil(n / 24)
    axis = {"tickvals": grid[::every], "ticktext": [style.clipped(name, 26) for name in names][::every]}
    axis |= {"showgrid": False, "zeroline": False, "showline": False, "automargin": True}
    return style.figure(
        [heat],
        xaxis=axis | {"range": [-0.5, max(n - 1.5, 0.5)], "autotickangles": [0, -30, -90]},
        yaxis=axis | {"range": [n - 0.5, 0.5]},
        annotations=numbers,
        margin={"l": 20, "t": 8, "r": 8, "b": 20},
    )
