"""Maps of the similarity of every two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.report import words
from crosstime.report.colour import INK, SEQUENTIAL, SOFT
from crosstime.report.plots.figure import clipped, escaped, note, styled

OUTLINED = 4
"""Chosen checkpoints up to which their pairs are outlined."""
NUMBERED = 14
"""Checkpoints up to which the numbers stand in the cells."""
NAMED = 18
"""Checkpoints up to which each has its name at the axis."""


def triangle(values: Float[np.ndarray, "C C"], names: Sequence[str], chosen: Mapping[str, str]) -> go.Figure:
    """Lower-triangle map; the chosen checkpoints' dots stand on the diagonal, the pairs of a few are outlined.

    Args:
        chosen: checkpoint -> colour.
    """
    n = len(names)
    shown = [
        [float(f"{values[i, j]:.4g}") if j <= i and not math.isnan(values[i, j]) else None for j in range(n)]
        for i in range(n)
    ]
    index = [i for i, name in enumerate(names) if name in chosen]
    pairs = [(a, b) for a in index for b in index if a < b] if len(index) <= OUTLINED else []
    outlines = [
        {"type": "rect", "x0": a - 0.47, "x1": a + 0.47, "y0": b - 0.47, "y1": b + 0.47}
        | {"line": {"color": INK, "width": 1.75}}
        for a, b in pairs
    ]
    dots = go.Scatter(
        x=index,
        y=index,
        mode="markers",
        marker={"size": max(5, min(13, 220 // n)), "color": [chosen[names[i]] for i in index]}
        | {"line": {"color": "#fff", "width": 2 if n <= NUMBERED else 1}},
        hoverinfo="skip",
    )
    return styled(
        [heat(names) | {"z": shown, "zmin": min(0.0, float(np.nanmin(values)))}, dots],
        shapes=outlines,
        annotations=_cells(values, 11.0 if n <= 10 else 9.5) if n <= NUMBERED else [],
        **frame(names, chosen),
    )


def heat(names: Sequence[str]) -> dict[str, Any]:
    """The trace of a map without its values."""
    n = len(names)
    gap = 2 if n <= NUMBERED else 1 if n <= NAMED else 0
    return {
        "type": "heatmap",
        "x": list(range(n)),
        "y": list(range(n)),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [list(stop) for stop in SEQUENTIAL],
        "xgap": gap,
        "ygap": gap,
        "hoverongaps": False,
        "text": [[f"{escaped(a)} and {escaped(b)}" for b in names] for a in names],
        "hovertemplate": "%{text}<br><b>%{z:.3f}</b><extra></extra>",
        "colorbar": {"thickness": 8, "len": 0.5, "y": 1, "yanchor": "top", "x": 1, "xanchor": "right"}
        | {"outlinewidth": 0, "tickfont": {"size": 10.5, "color": SOFT}, "nticks": 4},
    }


def empty(
    names: Sequence[str], chosen: Mapping[str, str], texts: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """Trace and layout of a map without values, for the page's script to fill in (`z`).

    Args:
        texts: what is said of each cell; without it, which two checkpoints it is of.
    """
    text = {"text": [[escaped(text) for text in row] for row in texts]} if texts is not None else {}
    figure = styled([], **frame(names, chosen))
    return {"data": [heat(names) | text], "layout": figure.to_plotly_json()["layout"]}


def frame(names: Sequence[str], chosen: Mapping[str, str]) -> dict[str, Any]:
    """Axes and margins of a map; the names of chosen checkpoints are bold, unless all are chosen."""
    n = len(names)
    bold = set(chosen) if set(names) - set(chosen) else set()
    every = math.ceil(n / NAMED)
    ticks = [escaped(clipped(name, 14)) for name in names]
    ticks = [f"<b>{text}</b>" if name in bold else text for text, name in zip(ticks, names, strict=True)]
    axis = {"tickvals": list(range(0, n, every)), "ticktext": ticks[::every]}
    axis |= {"showgrid": False, "zeroline": False, "constrain": "domain", "showline": False, "automargin": True}
    return {
        "xaxis": axis | {"range": [-0.5, n - 0.5], "autotickangles": [0, -45, -90]},
        "yaxis": axis | {"range": [n - 0.5, -0.5]},
        "margin": {"l": 20, "t": 8, "r": 8, "b": 20},
    }


def _cells(values: Float[np.ndarray, "C C"], size: float) -> list[dict[str, Any]]:
    return [
        note(j, i, words.share(values[i, j]) if values[i, j] >= 0 else f"{values[i, j]:.1f}")
        | {"font": {"size": size, "color": "#fff" if values[i, j] > 0.6 else INK}}
        for i in range(len(values))
        for j in range(i)
        if not math.isnan(values[i, j])
    ]
