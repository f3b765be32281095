"""Where a decoder says that its feature is absent: what the data say of that."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from crosstime.evaluation.diagnostics import DECOUPLED, SHRUNK, Diagnostics
from crosstime.report.colour import FAINT, SOFT
from crosstime.report.diagnosis import LABEL_WORDS, against_absence
from crosstime.report.plots.figure import CENTRE, Figure, floats, note, styled

POINTS = 1500
"""Features drawn at most: an even sample of more."""
LABEL_COLOURS = {
    "early": "#dd9f2a",
    "persistent": "#2a9489",
    "late": "#2d2b66",
    "rotated": "#9a5aa0",
    "artefact": "#b3400f",
    "unclear": "#b3b0a8",
}
NU_ERROR, NU_RECONSTRUCTION = "\u03bd<sub>ε</sub>", "\u03bd<sub>r</sub>"
LOW, HIGH = -0.25, 1.5
"""Ends of both axes: what lies further out is drawn at the edge, since only the bounds matter."""


def latent_scaling(found: Diagnostics) -> Figure:
    """Each feature whose decoder is absent somewhere: the largest nu_error there, and the largest nu_reconstruction."""
    features, error, reconstruction = against_absence(found)
    kept = np.linspace(0, len(features) - 1, min(POINTS, len(features))).astype(int)
    features, error, reconstruction = features[kept], error[kept], reconstruction[kept]
    labels = np.array([found.label[feature] for feature in features.tolist()], dtype=object)
    traces = []
    for label in LABEL_WORDS:
        index = np.flatnonzero(labels == label)
        if not len(index):
            continue
        traces.append(
            go.Scatter(
                x=floats(error[index].clip(LOW, HIGH), 3),
                y=floats(reconstruction[index].clip(LOW, HIGH), 3),
                mode="markers",
                name=f"{label} ({len(index):,})",
                customdata=features[index].tolist(),
                text=[
                    f"{NU_ERROR} {e:.2f}, {NU_RECONSTRUCTION} {r:.2f}"
                    for e, r in zip(error[index], reconstruction[index], strict=True)
                ],
                hovertemplate=f"<b>Feature %{{customdata}}</b>, {label}<br>%{{text}}<extra></extra>",
                marker={"size": 6.5, "opacity": 0.75, "color": LABEL_COLOURS[label]}
                | {"line": {"color": "#fff", "width": 0.5}},
                cliponaxis=False,
            )
        )
    bound = {"type": "line", "layer": "below", "line": {"color": FAINT, "width": 1, "dash": "dot"}}
    corner = {"x0": LOW, "x1": SHRUNK, "y0": LOW, "y1": DECOUPLED, "type": "rect", "layer": "below"}
    figure = styled(
        traces,
        xaxis={"range": [LOW - 0.04, HIGH + 0.04], "nticks": 6}
        | {"title": {"text": f"{NU_ERROR}: the feature in what all others leave unexplained"}},
        yaxis={"range": [LOW - 0.04, HIGH + 0.04], "nticks": 6}
        | {"title": {"text": f"{NU_RECONSTRUCTION}: the feature in what the crosscoder reconstructs"}},
        shapes=[
            corner | {"line": {"width": 0}, "fillcolor": "rgba(42,148,137,.08)"},
            bound | {"x0": SHRUNK, "x1": SHRUNK, "y0": LOW, "y1": DECOUPLED},
            bound | {"x0": LOW, "x1": SHRUNK, "y0": DECOUPLED, "y1": DECOUPLED},
        ],
        annotations=[
            note(LOW, DECOUPLED, "truly absent", xanchor="left", yanchor="bottom", font={"size": 11, "color": SOFT})
        ],
        showlegend=True,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        margin={"l": 58, "t": 44},
    )
    if not len(features):
        figure.add_annotation(text="every decoder is present at every checkpoint", **CENTRE)
    return Figure("scaling", "Latent scaling", {"": figure}, 440)
