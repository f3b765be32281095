"""Latent scaling: whether the activations contain a feature where its decoder is absent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from crosstime.evaluation.diagnostics import DECOUPLED, PRESENT, SHRUNK, Diagnostics
from crosstime.report.classes import LABEL_WORDS
from crosstime.report.data import ReportData
from crosstime.report.plots import style
from crosstime.report.plots.style import Figure

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
"""Ends of both axes; points outside are drawn at the edge, since only the bounds matter."""


def absent_decoders(
    found: Diagnostics,
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return the features whose decoder is absent somewhere, with the largest nu_error and nu_reconstruction there."""
    absent = found.relative_norm < PRESENT
    measured = (found.nu_error, found.nu_reconstruction)
    error, reconstruction = (np.where(absent & np.isfinite(nu), nu, -np.inf).max(axis=0) for nu in measured)
    kept = np.flatnonzero(np.isfinite(error) & np.isfinite(reconstruction))
    return kept, error[kept], reconstruction[kept]


def latent_scaling(data: ReportData) -> list[Figure]:
    """Draw the features whose decoder is absent somewhere: the largest nu_error there, and nu_reconstruction."""
    found = data.diagnostics
    if found is None:
        return []
    features, error, reconstruction = absent_decoders(found)
    kept = np.linspace(0, len(features) - 1, min(POINTS, len(features))).astype(int)
    features, error, reconstruction = features[kept], error[kept], reconstruction[kept]
    labels = np.array([found.label[feature] for feature in features.tolist()], dtype=object)
    traces = []
    for label in LABEL_WORDS:
        index = np.flatnonzero(labels == label)
        pairs = zip(error[index], reconstruction[index], strict=True)
        text = [f"{NU_ERROR} {e:.2f}, {NU_RECONSTRUCTION} {r:.2f}" for e, r in pairs]
        inside = error[index].clip(LOW, HIGH), reconstruction[index].clip(LOW, HIGH)
        dots = style.marker(LABEL_COLOURS[label], 6.5, 0.75)
        lines = (f"<b>Feature %{{customdata}}</b>, {label}", "%{text}")
        name = f"{label} ({len(index):,})"
        if len(index):
            traces.append(style.points(*inside, features[index].tolist(), dots, *lines, text=text, name=name))
    corner = {"type": "rect", "x0": LOW, "x1": SHRUNK, "y0": LOW, "y1": DECOUPLED, "layer": "below"}
    axis = {"range": [LOW - 0.04, HIGH + 0.04], "nticks": 6}
    font = {"size": 11, "color": style.SOFT}
    figure = style.figure(
        traces,
        None if len(features) else "every decoder is present at every checkpoint",
        xaxis=axis | {"title": {"text": f"{NU_ERROR}: the feature in what all others leave unexplained"}},
        yaxis=axis | {"title": {"text": f"{NU_RECONSTRUCTION}: the feature in what the crosscoder reconstructs"}},
        shapes=[
            corner | {"line": {"width": 0}, "fillcolor": "rgba(42,148,137,.08)"},
            style.rule(SHRUNK, LOW, SHRUNK, DECOUPLED),
            style.rule(LOW, DECOUPLED, SHRUNK, DECOUPLED),
        ],
        annotations=[style.note(LOW, DECOUPLED, "truly absent", xanchor="left", yanchor="bottom", font=font)],
        showlegend=True,
        legend=style.LEGEND_ABOVE,
        margin={"l": 58, "t": 44},
    )
    return [Figure("scaling", "Latent scaling", {"": figure}, 440)]
