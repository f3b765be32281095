"""The true effect of taking out each of the strongest features, against what the attribution estimates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from crosstime.attribution.exact import Exact
from crosstime.attribution.relative import relative
from crosstime.report.colour import FAINT, RULE
from crosstime.report.plots.figure import CENTRE, Figure, clipped, escaped, floats, padded, styled

POINTS = 3000
"""Points drawn at most, over all checkpoints: the features with the largest exact effects."""


def exact_effects(exact: Exact, task: str, colours: Mapping[str, str]) -> Figure:
    """A point for each feature at each checkpoint: the estimate across, the exact value upwards; RelIE, and IE."""
    features = exact.features(task)
    if not len(features):
        empty = styled([], xaxis={"visible": False}, yaxis={"visible": False})
        empty.add_annotation(text="no feature of this task was ablated one by one", **CENTRE)
        return Figure("exact", "Exact RelIE", {"RelIE": empty, "IE": empty}, 420)
    ie, true = exact.array(task, "ie"), exact.array(task, "exact")
    rows = np.argsort(-np.abs(true).max(axis=0), kind="stable")[: POINTS // len(colours)]
    shares = relative(ie)[:, rows], exact.array(task, "rel_exact")[:, rows]
    variants = {
        "RelIE": _points(features[rows], *shares, "RelIE", colours, (-0.02, 1.02)),
        "IE": _points(features[rows], ie[:, rows], true[:, rows], "IE", colours, padded(np.stack([ie, true]))),
    }
    return Figure("exact", "Exact RelIE", variants, 420)


def _points(
    features: Int[np.ndarray, " N"],
    estimate: Float[np.ndarray, "M N"],
    exact: Float[np.ndarray, "M N"],
    name: str,
    colours: Mapping[str, str],
    span: tuple[float, float],
) -> go.Figure:
    few = len(colours) <= 4
    traces = [
        go.Scatter(
            x=floats(estimate[m], 3),
            y=floats(exact[m], 3),
            mode="markers",
            name=escaped(clipped(checkpoint, 18)),
            marker={"size": 6, "color": colour, "opacity": 0.7, "line": {"color": "#fff", "width": 0.5}},
            customdata=features.tolist(),
            hovertemplate=f"<b>Feature %{{customdata}}</b> at {escaped(checkpoint)}<br>"
            f"{name} %{{x:.3f}}, exact %{{y:.3f}}<extra></extra>",
            cliponaxis=False,
        )
        for m, (checkpoint, colour) in enumerate(colours.items())
    ]
    line = {"type": "line", "x0": span[0], "y0": span[0], "x1": span[1], "y1": span[1], "layer": "below"}
    return styled(
        traces,
        xaxis={"range": list(span), "title": {"text": f"{name}, estimated"}, "nticks": 6}
        | {"zeroline": True, "zerolinecolor": RULE},
        yaxis={"range": list(span), "title": {"text": f"{name}, exact"}, "nticks": 6}
        | {"zeroline": True, "zerolinecolor": RULE},
        shapes=[line | {"line": {"color": FAINT, "width": 1, "dash": "dot"}}],
        showlegend=few,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        margin={"l": 62, "t": 30 if few else 12},
    )
