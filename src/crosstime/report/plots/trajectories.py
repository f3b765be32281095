"""Over the tokens seen: features one by one, how many there are, and how their directions turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.report.colour import FAINT, INK, PALE, RULE, SOFT
from crosstime.report.directions import Turn
from crosstime.report.plots.axis import TokenAxis
from crosstime.report.plots.figure import Figure, escaped, floats, styled
from crosstime.report.plots.matrix import triangle
from crosstime.report.population import Population


def tile(axis: TokenAxis, colours: Mapping[str, str]) -> dict[str, Any]:
    """Traces and layout, without values, of one feature over training: IE with its interval, decoder norm below.

    The page's script fills in the values (`y` of the three traces): every tile and every card has the same frame.
    """
    dots = {"size": 6 if len(axis.names) <= 12 else 4, "color": [colours[name] for name in axis.names]}
    line = {"x": axis.positions, "mode": "lines+markers", "text": axis.hover()}
    line |= {"marker": dots | {"line": {"color": "#fff", "width": 0.5}}}
    band = {"x": [*axis.positions, *axis.positions[::-1]], "fill": "toself", "fillcolor": "rgba(28,33,40,.11)"}
    traces = [
        band | {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"},
        line | {"line": {"color": INK, "width": 1.25}, "hovertemplate": "IE <b>%{y:.4f}</b><br>%{text}<extra></extra>"},
        line
        | {"yaxis": "y2", "line": {"color": SOFT, "width": 1.25}}
        | {"hovertemplate": "decoder norm <b>%{y:.2f}</b><br>%{text}<extra></extra>"},
    ]
    small = {"tickfont": {"size": 10, "color": SOFT}}
    layout = styled(
        [],
        xaxis=axis.xaxis() | small | {"anchor": "y2", "title": None, "nticks": 5},
        yaxis=small | {"domain": [0.42, 1], "nticks": 4, "zeroline": True, "zerolinecolor": FAINT},
        yaxis2=small | {"domain": [0, 0.32], "nticks": 3, "rangemode": "tozero", "gridcolor": "#efede7"},
        margin={"l": 46, "r": 8, "t": 6, "b": 26},
    ).to_plotly_json()["layout"]
    return {"data": [{"type": "scatter"} | trace for trace in traces], "layout": layout}


def directions(similarity: Float[np.ndarray, "M M"], turn: Turn | None, colours: Mapping[str, str]) -> Figure:
    """Map of the mean cosine of the features' decoder vectors; a line cuts it where the directions turn."""
    n = len(similarity)
    figure = triangle(similarity, list(colours), colours)
    if turn is not None:
        at = turn.first_after - 0.5
        for x, y in (([at, at], [at, n - 0.5]), ([-0.5, at], [at, at])):
            figure.add_scatter(x=x, y=y, mode="lines", line={"color": INK, "width": 2.25}, hoverinfo="skip")
    return Figure("directions", "Similarity of directions", {"": figure}, max(340, min(54 * n + 80, 560)))


def neighbours(similarity: Float[np.ndarray, "M M"], axis: TokenAxis, colours: Mapping[str, str]) -> Figure:
    """Mean cosine of each checkpoint's directions with those of the one before, and with those of the last."""
    before = np.array([np.nan, *np.diagonal(similarity, offset=1)])
    hover = axis.hover()
    marker = _dots(colours)
    lines = [
        go.Scatter(
            x=axis.positions,
            y=floats(values),
            mode="lines+markers",
            name=name,
            text=hover,
            line={"color": colour, "width": 1.75},
            marker=marker if colour == INK else {"size": 4, "color": colour},
            hovertemplate=f"with {name}: <b>%{{y:.2f}}</b><br>%{{text}}<extra></extra>",
        )
        for values, name, colour in (
            (similarity[:, -1], escaped(f"the last, {axis.names[-1]}"), PALE),
            (before, "the one before", INK),
        )
    ]
    figure = styled(
        lines,
        xaxis=axis.xaxis(),
        yaxis={"range": [min(0.0, float(np.nanmin(similarity))), 1.02], "nticks": 6},
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 30},
    )
    return Figure("neighbours", "Mean cosine of the directions at each checkpoint with those of", {"": figure}, 250)


def populations(counted: Mapping[str, Population], axis: TokenAxis, colours: Mapping[str, str]) -> Figure:
    """Features present at each checkpoint (line), and those that are new (bars up) and gone (bars down) there."""
    return Figure(
        "population",
        "Features present",
        {name: _population(counts, axis, colours) for name, counts in counted.items()},
        300,
    )


def _dots(colours: Mapping[str, str]) -> dict[str, Any]:
    size = 8 if len(colours) <= 12 else 5
    return {"size": size, "color": list(colours.values()), "line": {"color": "#fff", "width": size / 8}}


def _population(counts: Population, axis: TokenAxis, colours: Mapping[str, str]) -> go.Figure:
    steps = np.diff(axis.positions)
    width = 0.55 * float(steps.min()) if len(steps) else 0.5
    hover = axis.hover()
    bars = [
        go.Bar(
            x=axis.positions,
            y=(sign * values).tolist(),
            width=width,
            marker={"color": colour},
            customdata=[[count] for count in values.tolist()],
            text=hover,
            textposition="none",
            hovertemplate=f"%{{customdata[0]}} {what}<br>%{{text}}<extra></extra>",
        )
        for values, sign, colour, what in (
            (counts.arrived, 1, "#9fbfb8", "not there at the checkpoint before"),
            (counts.left, -1, "#dcb59a", "gone since the checkpoint before"),
        )
    ]
    line = go.Scatter(
        x=axis.positions,
        y=counts.present.tolist(),
        mode="lines+markers",
        text=hover,
        line={"color": INK, "width": 1.75},
        marker=_dots(colours),
        hovertemplate="<b>%{y:,}</b> features present<br>%{text}<extra></extra>",
    )
    return styled(
        [*bars, line],
        barmode="relative",
        xaxis=axis.xaxis(),
        yaxis={"nticks": 6, "zeroline": True, "zerolinecolor": RULE},
    )
