"""RelDec against RelIE: whether a feature's decoder norm lies where its effect does."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from crosstime.report.colour import RULE
from crosstime.report.features import TaskFeatures
from crosstime.report.plots.figure import Figure, clipped, escaped, styled

POINTS = 2400
"""Points drawn at most, over all checkpoints."""


def dec_against_ie(features: TaskFeatures, chosen: Mapping[str, str], notes: Mapping[int, str]) -> Figure:
    """RelDec against RelIE of the strongest features: a point for each at each checkpoint.

    Args:
        chosen: checkpoint -> colour.
        notes: feature -> a line of text on it.
    """
    names = features.checkpoints
    rows = [row for row in features.strongest(POINTS // len(names)) if features.counts[row]]
    traces = [
        go.Scatter(
            x=[round(value, 3) for value in features.rel_dec[m, rows].tolist()],
            y=[round(value, 3) for value in features.rel_ie[m, rows].tolist()],
            mode="markers",
            name=escaped(clipped(name, 18)),
            marker={"size": 6, "color": chosen[name], "opacity": 0.7, "line": {"color": "#fff", "width": 0.5}},
            customdata=features.feature[rows].tolist(),
            hovertemplate=f"<b>Feature %{{customdata}}</b> at {escaped(name)}<br>"
            "RelDec %{x:.2f}, RelIE %{y:.2f}<br>%{text}<extra></extra>",
            text=[escaped(notes.get(feature, "")) for feature in features.feature[rows].tolist()],
            cliponaxis=False,
        )
        for m, name in enumerate(names)
    ]
    top = float(features.rel_dec[:, rows].max(initial=0.1))
    line = {"type": "line", "x0": 0, "y0": 0, "x1": top, "y1": top, "layer": "below"}
    figure = styled(
        traces,
        xaxis={"range": [0, min(1.0, 1.05 * top)], "title": {"text": "RelDec"}, "nticks": 6},
        yaxis={"range": [-0.02, 1.02], "title": {"text": "RelIE"}, "nticks": 6},
        shapes=[line | {"line": {"color": RULE, "width": 1, "dash": "dot"}}],
        showlegend=len(names) <= 4,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        margin={"t": 30 if len(names) <= 4 else 12},
    )
    return Figure("decoder", "RelDec against RelIE", {"": figure}, 380)
