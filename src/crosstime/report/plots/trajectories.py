"""Figures over training: features one by one, how many there are, and how their directions turn.

Each function for a figure returns a list, which is empty if the run has no data for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from crosstime.report.data import ReportData
from crosstime.report.format import readable
from crosstime.report.plots import style
from crosstime.report.plots.style import Figure
from crosstime.report.trends import Population, find_turn, population, present


def feature_frames(data: ReportData) -> dict[str, Any]:
    """Return the figures of single features without values, which the page's script fills in."""
    names = data.checkpoints
    later = [[f"{a} against {b}" for b in names] for a in names]
    return {
        "tile": _tile(data),
        "directions": style.empty_triangle(names, data.colours),
        "pairwise": style.empty_triangle(names, data.colours, later),
    }


def _tile(data: ReportData) -> dict[str, Any]:
    """One feature over training: IE with its interval, and the decoder norm below.

    The script fills in `y` of the three traces.
    """
    axis, none = data.axis, np.empty(0)
    dots = style.marker(list(data.colours.values()), 6 if len(data.checkpoints) <= 12 else 4, None)
    band = go.Scatter(
        x=[*axis.positions, *axis.positions[::-1]],
        mode="lines",
        fill="toself",
        fillcolor="rgba(28,33,40,.11)",
        line={"width": 0},
        hoverinfo="skip",
    )
    effect = axis.line(none, style.INK, 1.25, "IE <b>%{y:.4f}</b>", marker=dots)
    norm = axis.line(none, style.SOFT, 1.25, "decoder norm <b>%{y:.2f}</b>", marker=dots, yaxis="y2")
    small = {"tickfont": {"size": 10, "color": style.SOFT}}
    figure = style.figure(
        [band, effect, norm],
        xaxis=axis.xaxis() | small | {"anchor": "y2", "title": None, "nticks": 5},
        yaxis=small | {"domain": [0.42, 1], "nticks": 4, "zeroline": True, "zerolinecolor": style.FAINT},
        yaxis2=small | {"domain": [0, 0.32], "nticks": 3, "rangemode": "tozero", "gridcolor": style.GRID},
        margin={"l": 46, "r": 8, "t": 6, "b": 26},
    )
    return style.plain(figure)


def directions(data: ReportData) -> list[Figure]:
    """Draw the mean cosine of decoder vectors at every two checkpoints, cut by a line where the directions turn."""
    similarity = data.directions
    if similarity is None:
        return []
    n, turn = len(similarity), find_turn(similarity)
    figure = style.triangle(similarity, data.checkpoints, data.colours)
    if turn is not None:
        at = turn.first_after - 0.5
        for x, y in (([at, at], [at, n - 0.5]), ([-0.5, at], [at, at])):
            figure.add_scatter(x=x, y=y, mode="lines", line={"color": style.INK, "width": 2.25}, hoverinfo="skip")
    return [Figure("directions", "Similarity of directions", {"": figure}, max(340, min(54 * n + 80, 560)))]


def neighbours(data: ReportData) -> list[Figure]:
    """Draw the mean cosine of each checkpoint's directions with those of the previous and of the last one."""
    similarity = data.directions
    if similarity is None:
        return []
    axis, previous = data.axis, np.array([np.nan, *np.diagonal(similarity, offset=1)])
    last = style.escaped(f"the last, {data.checkpoints[-1]}")
    lines = [
        axis.line(values, colour, 1.75, f"with {name}: <b>%{{y:.2f}}</b>", name=name, marker=dots)
        for values, name, colour, dots in (
            (similarity[:, -1], last, style.PALE, {"size": 4, "color": style.PALE}),
            (previous, "the previous one", style.INK, _dots(data)),
        )
    ]
    figure = style.figure(
        lines,
        xaxis=axis.xaxis(),
        yaxis={"range": [min(0.0, float(np.nanmin(similarity))), 1.02], "nticks": 6},
        showlegend=True,
        legend=style.LEGEND_ABOVE | {"y": 1.02},
        margin={"t": 30},
    )
    return [Figure("neighbours", "Mean cosine of the directions at each checkpoint with those of", {"": figure}, 250)]


def populations(data: ReportData) -> list[Figure]:
    """Draw the features present at each checkpoint (line), and those that are new (bars up) and gone (bars down).

    By decoder norm, of the features that fire on held-out text; by IE, of those with a class on the task.
    """
    tasks = list(data.tasks.values())
    counts = {"By decoder norm": population(present(tasks[0].rel_dec) & (tasks[0].frequency > 0))}
    for features in tasks:
        counts[f"By IE: {readable(features.task)}"] = population(present(features.rel_ie) & features.has_class)
    variants = {name: _population(counted, data) for name, counted in counts.items()}
    return [Figure("population", "Features present", variants, 300)]


def _dots(data: ReportData) -> dict[str, Any]:
    size = 8 if len(data.checkpoints) <= 12 else 5
    return style.marker(list(data.colours.values()), size, None, size / 8)


def _population(counts: Population, data: ReportData) -> go.Figure:
    axis = data.axis
    steps = np.diff(axis.positions)
    width = 0.55 * float(steps.min()) if len(steps) else 0.5
    bars = [
        go.Bar(
            x=axis.positions,
            y=(sign * values).tolist(),
            width=width,
            marker={"color": colour},
            customdata=[[count] for count in values.tolist()],
            text=axis.hover(),
            textposition="none",
            hovertemplate=style.hover(f"%{{customdata[0]}} {what}", "%{text}"),
        )
        for values, sign, colour, what in (
            (counts.new, 1, "#9fbfb8", "absent at the previous checkpoint"),
            (counts.gone, -1, "#dcb59a", "present at the previous checkpoint, absent here"),
        )
    ]
    line = axis.line(counts.present, style.INK, 1.75, "<b>%{y:,}</b> features present", digits=12, marker=_dots(data))
    yaxis = {"nticks": 6, "zeroline": True, "zerolinecolor": style.RULE}
    return style.figure([*bars, line], barmode="relative", xaxis=axis.xaxis(), yaxis=yaxis)
