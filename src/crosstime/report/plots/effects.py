"""Where in training the effect of each feature lies: RelIE, one checkpoint against all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from crosstime.report import words
from crosstime.report.colour import FAINT, RULE, SEQUENTIAL, mix
from crosstime.report.features import TaskFeatures, class_group, class_members, class_words
from crosstime.report.plots.figure import CENTRE, Figure, clipped, escaped, floats, styled

POINTS = 800
"""Features drawn at most in one figure: beyond the strongest, points are too small to see."""
HEATMAP_ROWS = 160


def relative_effects(features: TaskFeatures, chosen: Mapping[str, str], notes: Mapping[int, str]) -> Figure:
    """RelIE of the strongest features: a ternary plot for three checkpoints, a strip for two, a map for more.

    Args:
        chosen: checkpoint -> colour.
        notes: feature -> a line of text on it.
    """
    n = len(features.checkpoints)
    rows = features.strongest(HEATMAP_ROWS if n > 3 else POINTS)
    rows = rows[np.isfinite(features.rel_ie[:, rows]).all(axis=0)]
    if n == 3:
        figure = _ternary(features, rows, chosen, notes)
    elif n == 2:
        figure = _strip(features, rows, chosen, notes)
    elif n > 3:
        figure = _map(features, rows, chosen, notes)
    else:
        figure = styled([])
    if len(rows) == 0:
        figure.add_annotation(text="no feature has an effect on this task", **CENTRE)
    return Figure("relative", "Where the effect lies", {"": figure}, 600 if n == 3 else 460 if n == 2 else 620)


def class_colour(label: str, chosen: Mapping[str, str]) -> str:
    """Colour of a class: its checkpoint's, or the mixture of those that share it, or grey."""
    members = class_members(label, list(chosen))
    return mix([chosen[name] for name in members], [1.0] * len(members)) if members else "#b3b0a8"


def _by_class(features: TaskFeatures, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Rows of each class, in the order of the classes."""
    labels = sorted({features.classes[row] for row in rows}, key=lambda label: class_group(label, features.checkpoints))
    return [(label, np.asarray([row for row in rows if features.classes[row] == label])) for label in labels]


def _points(
    features: TaskFeatures, rows: np.ndarray, label: str, chosen: Mapping[str, str], notes: Mapping[int, str]
) -> dict[str, Any]:
    """What the traces of one class have in common: colour, ids for clicks, hover texts, sizes by the effect."""
    largest = max(float(features.strength.max()), 1e-12)
    hover = []
    for row in rows:
        feature = int(features.feature[row])
        shares = " · ".join(
            f"{escaped(name)} {words.share(float(value))}"
            for name, value in zip(features.checkpoints, features.rel_ie[:, row], strict=True)
        )
        strength = f"max |IE| {words.number(float(features.strength[row]), 3)}"
        lines = [f"<b>Feature {feature}</b>", escaped(class_words(label, features.checkpoints)), shares, strength]
        if feature in notes:
            lines.append(escaped(notes[feature]))
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
    features: TaskFeatures, rows: np.ndarray, chosen: Mapping[str, str], notes: Mapping[int, str]
) -> go.Figure:
    traces = []
    for label, members in _by_class(features, rows):
        common = _points(features, members, label, chosen, notes)
        # The first checkpoint stands bottom left, the last bottom right, so that training runs left to right.
        b, a, c = features.rel_ie[:, members]
        traces.append(go.Scatterternary(a=floats(a), b=floats(b), c=floats(c), cliponaxis=False, **common))
    # The lower corners' names stand a line lower, clear of the points at the corner.
    corners = [
        f"{line}<b>{escaped(clipped(name, 22))}</b>"
        for line, name in zip(("<br>", "", "<br>"), features.checkpoints, strict=True)
    ]
    axis = {"min": 0, "dtick": 0.2, "showticklabels": False, "ticks": "", "gridcolor": RULE, "linecolor": FAINT}
    return styled(
        traces,
        ternary={"sum": 1, "bgcolor": "rgba(0,0,0,0)", "domain": {"x": [0, 1], "y": [0.02, 0.98]}}
        | {"aaxis": axis | {"title": {"text": corners[1]}}}
        | {"baxis": axis | {"title": {"text": corners[0]}}}
        | {"caxis": axis | {"title": {"text": corners[2]}}},
        margin={"l": 40, "r": 40, "t": 34, "b": 48},
    )


def _strip(features: TaskFeatures, rows: np.ndarray, chosen: Mapping[str, str], notes: Mapping[int, str]) -> go.Figure:
    """Two checkpoints: RelIE of the second across, the strongest effect upwards."""
    traces = []
    for label, members in _by_class(features, rows):
        common = _points(features, members, label, chosen, notes)
        place = {"x": floats(features.rel_ie[1, members]), "y": floats(features.strength[members])}
        traces.append(go.Scatter(**place, **common, cliponaxis=False))
    first, second = (escaped(clipped(name, 22)) for name in features.checkpoints)
    ticks = {
        "tickvals": [0, 0.25, 0.5, 0.75, 1],
        "ticktext": [f"only {first}", ".25", "shared", ".75", f"only {second}"],
    }
    return styled(
        traces,
        xaxis=ticks | {"range": [-0.02, 1.02], "title": {"text": "RelIE"}},
        yaxis={"type": "log", "title": {"text": "max |IE| (log)"}, "dtick": 1, "exponentformat": "power"},
        margin={"l": 64, "r": 48, "t": 16},
    )


def _map(features: TaskFeatures, rows: np.ndarray, chosen: Mapping[str, str], notes: Mapping[int, str]) -> go.Figure:
    """Four or more checkpoints: RelIE of each feature as a row, sorted by where in training its effect lies."""
    relative = features.rel_ie[:, rows].T
    centre = relative @ np.arange(relative.shape[1])
    rows = rows[np.argsort(centre, kind="stable")]
    names = [
        f'<span style="color:{chosen[name]}">●</span> {escaped(clipped(name, 16))}' for name in features.checkpoints
    ]
    ids = [int(features.feature[row]) for row in rows]
    heat = go.Heatmap(
        z=[[round(value, 3) for value in row] for row in features.rel_ie[:, rows].T.tolist()],
        x=names,
        # A label for each row, which the hover text shows: a text for each cell would be M times as much.
        y=["<br>".join(filter(None, (f"<b>Feature {i}</b>", escaped(notes.get(i, ""))))) for i in ids],
        zmin=0,
        # The few that hold the most would leave the others pale.
        zmax=float(np.quantile(relative, 0.99)) if len(rows) else 1.0,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        meta={"features": ids},
        hovertemplate="%{y}<br>%{x}: RelIE <b>%{z:.2f}</b><extra></extra>",
        colorbar={"thickness": 8, "len": 0.4, "y": 1, "yanchor": "top", "outlinewidth": 0, "title": {"text": "RelIE"}},
    )
    every = math.ceil(len(names) / 9)
    yaxis = {
        "range": [len(rows) - 0.5, -0.5],
        "showticklabels": False,
        "ticks": "",
        "showline": False,
        "showgrid": False,
    }
    title = f"{len(rows)} features, early effects first"
    return styled(
        [heat],
        xaxis={"showgrid": False, "side": "top", "type": "category", "tickvals": names[::every]},
        yaxis=yaxis | {"type": "category", "title": {"text": title}},
        margin={"t": 40},
    )
