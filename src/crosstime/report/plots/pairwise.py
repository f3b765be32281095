"""RelIE of two checkpoints alone, for every pair that is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from crosstime.report import words
from crosstime.report.colour import RULE, mix
from crosstime.report.features import TaskFeatures, pairs
from crosstime.report.plots.figure import CENTRE, Figure, clipped, escaped, floats, styled

POINTS = 2400
"""Points drawn at most, over all pairs."""
GOLDEN = 0.6180339887


def pairwise_effects(features: TaskFeatures, chosen: Mapping[str, str], notes: Mapping[int, str]) -> Figure:
    """A row of points for each pair: across, the part of the pair's effect that the later checkpoint holds.

    Args:
        chosen: checkpoint -> colour.
        notes: feature -> a line of text on it.
    """
    names, compared = features.checkpoints, pairs(len(features.checkpoints))
    traces = []
    for row, (before, after) in enumerate(compared):
        relative = features.pairwise(before, after)
        strength = np.abs(features.ie[[before, after]]).max(axis=0)
        order = np.argsort(-np.where(np.isfinite(relative), strength, -np.inf), kind="stable")
        kept = order[: min(POINTS // len(compared), int(np.isfinite(relative).sum()))]
        # Neighbours in strength stand at different heights; the golden ratio spreads any number of them evenly.
        height = row + 0.62 * (np.modf((1 + np.arange(len(kept))) * GOLDEN)[0] - 0.5)
        size = 4 + 12 * np.sqrt(strength[kept] / max(float(features.strength.max()), 1e-12))
        text = f"{escaped(names[after])} against {escaped(names[before])}"
        traces.append(
            go.Scatter(
                x=floats(relative[kept], 3),
                y=[round(value, 3) for value in height.tolist()],
                mode="markers",
                marker={"size": [round(value, 1) for value in size.tolist()], "opacity": 0.7}
                | {"color": mix((chosen[names[before]], chosen[names[after]]), (1.0, 1.0))}
                | {"line": {"color": "#fff", "width": 0.6}},
                customdata=features.feature[kept].tolist(),
                text=[escaped(notes.get(feature, "")) for feature in features.feature[kept].tolist()],
                hovertemplate=f"<b>Feature %{{customdata}}</b><br>{text}: %{{x:.2f}}<br>%{{text}}<extra></extra>",
                cliponaxis=False,
            )
        )
    ticks = [f"{escaped(clipped(names[a], 12))} → {escaped(clipped(names[b], 12))}" for a, b in compared]
    every = math.ceil(len(compared) / 16)
    figure = styled(
        traces,
        xaxis={"range": [-0.02, 1.02], "tickvals": [0, 0.3, 0.5, 0.7, 1], "title": {"text": "pairwise RelIE"}}
        | {"ticktext": ["earlier only", ".3", "shared", ".7", "later only"]},
        yaxis={"range": [len(compared) - 0.5, -0.5], "tickvals": list(range(0, len(compared), every))}
        | {"ticktext": ticks[::every], "showgrid": False, "automargin": True},
        shapes=[
            {"type": "line", "x0": bound, "x1": bound, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
            | {"line": {"color": RULE, "width": 1, "dash": "dot"}}
            for bound in (0.3, 0.7)
        ],
        margin={"l": 20, "r": 40},
    )
    if not any(len(trace.x) for trace in traces):
        figure.add_annotation(text="no feature has an effect on this task", **CENTRE)
    height = min(150 + 74 * len(compared), 560)
    return Figure("pairwise", words.sentence_case("RelIE, pair by pair"), {"": figure}, height)
