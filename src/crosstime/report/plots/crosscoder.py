"""Figures of the crosscoder: how often features fire, its training, and where its decoder writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.evaluation.quality import Quality
from crosstime.report import words
from crosstime.report.colour import INK, SEQUENTIAL, SOFT, mix
from crosstime.report.data import TrainingPoint
from crosstime.report.features import TaskFeatures
from crosstime.report.plots.axis import log_axis
from crosstime.report.plots.figure import Figure, clipped, escaped, floats, histogram, styled

TRAINING_POINTS = 400


def frequency(quality: Quality) -> Figure:
    """Histogram of how often features fire, on a log scale."""
    live = np.asarray(quality.frequency, dtype=float)
    live = live[live > 0]
    figure = histogram(np.log10(live), 40, SOFT, None, "%{y} features fire on 10<sup>%{x:.1f}</sup> of the tokens")
    low, high = (math.floor(np.log10(live.min())), 0) if live.size else (-4, 0)
    ticks = list(range(low, high + 1))
    text = [words.percent(10.0**t, max(0, -t - 2)) for t in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=text, title_text="share of tokens on which a feature fires (log)")
    return Figure("frequency", "How often features fire", {"": figure}, 240)


def training_curves(points: Sequence[TrainingPoint]) -> list[Figure]:
    """Loss, L0 and explained variance over the tokens trained on."""
    every = max(1, math.ceil(len(points) / TRAINING_POINTS))
    kept = [*points[::every], points[-1]]
    curves = (
        ("loss", "Loss", [p.loss for p in kept], "%{y:,.1f}"),
        ("l0", "L0", [p.l0 for p in kept], "%{y:.1f}"),
        ("explained", "Explained variance", [p.explained_variance for p in kept], "%{y:.3f}"),
    )
    figures = []
    for key, title, column, form in curves:
        values = np.asarray(column, dtype=float)
        line = go.Scatter(x=[p.tokens for p in kept], y=floats(values), mode="lines")
        line.update(line={"color": INK, "width": 1.5}, hovertemplate=f"{form} at %{{x:.3s}} tokens<extra></extra>")
        figure = styled([line], xaxis={"tickformat": "~s", "nticks": 5, "rangemode": "tozero"}, yaxis={"nticks": 5})
        settled = values[len(values) // 20 :]
        if key == "explained":
            low = float(np.min(settled, where=np.isfinite(settled), initial=1.0))
            figure.update_yaxes(range=[max(0.0, low - 0.05), 1])
        elif (values > 0).all():
            title = f"{title} (log)"
            figure.update_yaxes(**log_axis(values))
        figures.append(Figure(f"training-{key}", title, {"": figure}, 190))
    return figures


def decoder_histograms(features: TaskFeatures, chosen: Mapping[str, str]) -> tuple[list[Figure], list[Figure]]:
    """RelDec of live features: (each checkpoint against all, each pair of neighbours); the first empty for two."""
    names = features.checkpoints
    live = features.rel_dec[:, features.frequency > 0]
    norms = features.decoder_norm[:, features.frequency > 0]
    alone = []
    if len(names) > 2:
        for m, name in enumerate(names):
            figure = histogram(live[m], 40, chosen[name], (0.0, 1.0), "%{y} features at RelDec %{x:.2f}")
            figure.add_vline(
                x=1 / len(names),
                line={"color": SOFT, "width": 1, "dash": "dot"},
            )
            figure.update_xaxes(title_text=f"share of the decoder norm at {escaped(clipped(name, 22))}")
            alone.append(Figure(f"reldec-{m}", f"{name} against all", {"": figure}, 210))
    pairs = []
    for m, (before, after) in enumerate(pairwise(names)):
        both = norms[m] + norms[m + 1]
        relative = norms[m + 1, both > 0] / both[both > 0]
        tint = mix((chosen[before], chosen[after]), (1.0, 1.0))
        figure = histogram(relative, 40, tint, (0.0, 1.0), "%{y} features at RelDec %{x:.2f}")
        figure.update_xaxes(
            tickvals=[0, 0.5, 1],
            ticktext=[f"only {escaped(clipped(before, 14))}", "shared", f"only {escaped(clipped(after, 14))}"],
        )
        figure.update_layout(margin={"r": 44})
        pairs.append(Figure(f"reldec-pair-{m}", f"{before} and {after}", {"": figure}, 210))
    return alone, pairs


def decoder_maps(features: TaskFeatures) -> tuple[list[Figure], list[Figure]]:
    """RelDec of live features as `decoder_histograms`, for many checkpoints: one map each, a column a histogram."""
    names = features.checkpoints
    live = features.frequency > 0
    norms = features.decoder_norm[:, live]
    both = norms[1:] + norms[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = norms[1:] / both
    top = float(np.nanmax(features.rel_dec[:, live], initial=1 / len(names)))
    alone = _columns(features.rel_dec[:, live], (0.0, top), [escaped(name) for name in names])
    alone.update_yaxes(title_text="RelDec")
    steps = [f"{escaped(before)} → {escaped(after)}" for before, after in pairwise(names)]
    pairs = _columns(relative, (0.0, 1.0), steps)
    pairs.update_yaxes(tickvals=[0, 0.5, 1], ticktext=["earlier only", "shared", "later only"])
    return (
        [Figure("reldec", "Each checkpoint against all", {"": alone}, 280)],
        [Figure("reldec-pairs", "Each checkpoint and the one before", {"": pairs}, 280)],
    )


def _columns(values: Float[np.ndarray, "K F"], span: tuple[float, float], names: Sequence[str]) -> go.Figure:
    """A map with one histogram of `values` a column; the colour is the root of the count, which brings up the rare."""
    bins = np.linspace(*span, 31)
    counts = np.stack([np.histogram(column[np.isfinite(column)], bins)[0] for column in values], axis=1)
    heat = go.Heatmap(
        z=_rounded_rows(np.sqrt(counts)),
        x=list(names),
        y=floats((bins[:-1] + bins[1:]) / 2),
        text=counts.tolist(),
        colorscale=[list(stop) for stop in SEQUENTIAL],
        xgap=1,
        showscale=False,
        hovertemplate="%{x}<br>%{text} features at %{y:.2f}<extra></extra>",
    )
    every = math.ceil(len(names) / 9)
    return styled(
        [heat],
        xaxis={"type": "category", "tickvals": list(names)[::every], "showgrid": False, "automargin": True},
        yaxis={"range": list(span), "showgrid": False, "automargin": True},
    )


def _rounded_rows(values: Float[np.ndarray, "N K"]) -> list[list[float]]:
    return [[round(value, 2) for value in row] for row in values.tolist()]
