"""Figures of the crosscoder: how often features fire, its training, and how decoder norms are spread.

Each function returns a list of figures, which is empty if the run has no data for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.report.data import ReportData
from crosstime.report.format import format_percent, rounded
from crosstime.report.plots import style
from crosstime.report.plots.style import Figure

TRAINING_POINTS = 400
_AT_RELDEC = "%{y} features at RelDec %{x:.2f}"


def frequency(data: ReportData) -> list[Figure]:
    """Draw a histogram of how often features fire, on a log scale."""
    if data.quality is None:
        return []
    live = np.asarray(data.quality.frequency, dtype=float)
    live = live[live > 0]
    text = "%{y} features fire on 10<sup>%{x:.1f}</sup> of the tokens"
    figure = style.histogram(np.log10(live), style.SOFT, None, text)
    low, high = (math.floor(np.log10(live.min())), 0) if live.size else (-4, 0)
    ticks = list(range(low, high + 1))
    labels = [format_percent(10.0**t, max(0, -t - 2)) for t in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=labels, title_text="share of tokens on which a feature fires (log)")
    return [Figure("frequency", "How often features fire", {"": figure}, 240)]


def training_curves(data: ReportData) -> list[Figure]:
    """Draw loss, L0 and explained variance over the tokens trained on."""
    if not data.training:
        return []
    every = max(1, math.ceil(len(data.training) / TRAINING_POINTS))
    kept = [*data.training[::every], data.training[-1]]
    curves = (
        ("loss", "Loss", [p.loss for p in kept], "%{y:,.1f}"),
        ("l0", "L0", [p.l0 for p in kept], "%{y:.1f}"),
        ("explained", "Explained variance", [p.explained_variance for p in kept], "%{y:.3f}"),
    )
    figures = []
    for key, title, column, form in curves:
        values = np.asarray(column, dtype=float)
        text, ink = style.hover(f"{form} at %{{x:.3s}} tokens"), {"color": style.INK, "width": 1.5}
        x, y = [p.tokens for p in kept], rounded(values, 5)
        line = go.Scatter(x=x, y=y, mode="lines", line=ink, hovertemplate=text)
        xaxis = {"tickformat": "~s", "nticks": 5, "rangemode": "tozero"}
        figure = style.figure([line], xaxis=xaxis, yaxis={"nticks": 5})
        settled = values[len(values) // 20 :]
        if key == "explained":
            low = float(np.min(settled, where=np.isfinite(settled), initial=1.0))
            figure.update_yaxes(range=[max(0.0, low - 0.05), 1])
        elif (values > 0).all():
            title = f"{title} (log)"
            figure.update_yaxes(**style.log_axis(values))
        figures.append(Figure(f"training-{key}", title, {"": figure}, 190))
    return figures


def decoder_norms(data: ReportData) -> list[Figure]:
    """Draw the RelDec of live features: of each checkpoint against all, and of each pair of neighbours alone.

    Few checkpoints have one histogram each; many have a map whose columns are histograms. Two checkpoints have no
    figure against all, since it would be that of their pair.
    """
    if not data.tasks:
        return []
    features = next(iter(data.tasks.values()))
    live = features.frequency > 0
    shares, norms = features.rel_dec[:, live], features.decoder_norm[:, live]
    with np.errstate(invalid="ignore", divide="ignore"):
        of_pairs = norms[1:] / (norms[1:] + norms[:-1])
    if data.many:
        return _decoder_maps(data, shares, of_pairs)
    return [*(_alone(data, shares) if len(shares) > 2 else []), *_pairs(data, of_pairs)]


def _alone(data: ReportData, shares: Float[np.ndarray, "M F"]) -> list[Figure]:
    figures = []
    for m, (name, colour) in enumerate(data.colours.items()):
        figure = style.histogram(shares[m], colour, (0.0, 1.0), _AT_RELDEC)
        figure.add_vline(x=1 / len(shares), line={"color": style.SOFT, "width": 1, "dash": "dot"})
        figure.update_xaxes(title_text=f"share of the decoder norm at {style.clipped(name, 22)}")
        figures.append(Figure(f"reldec-{m}", f"{name} against all", {"": figure}, 210))
    return figures


def _pairs(data: ReportData, of_pairs: Float[np.ndarray, "K F"]) -> list[Figure]:
    figures = []
    for m, (before, after) in enumerate(pairwise(data.checkpoints)):
        colour = style.mix([data.colours[before], data.colours[after]])
        figure = style.histogram(of_pairs[m], colour, (0.0, 1.0), _AT_RELDEC)
        ends = [f"only {style.clipped(before, 14)}", "shared", f"only {style.clipped(after, 14)}"]
        figure.update_xaxes(tickvals=[0, 0.5, 1], ticktext=ends)
        figure.update_layout(margin={"r": 44})
        figures.append(Figure(f"reldec-pair-{m}", f"{before} and {after}", {"": figure}, 210))
    return figures


def _decoder_maps(
    data: ReportData, shares: Float[np.ndarray, "M F"], of_pairs: Float[np.ndarray, "K F"]
) -> list[Figure]:
    names = [style.escaped(name) for name in data.checkpoints]
    top = float(np.nanmax(shares, initial=1 / len(names)))
    alone = _columns(shares, (0.0, top), names)
    alone.update_yaxes(title_text="RelDec")
    pairs = _columns(of_pairs, (0.0, 1.0), [f"{before} → {after}" for before, after in pairwise(names)])
    pairs.update_yaxes(tickvals=[0, 0.5, 1], ticktext=["earlier only", "shared", "later only"])
    return [
        Figure("reldec", "Each checkpoint against all", {"": alone}, 280),
        Figure("reldec-pairs", "Each checkpoint and the previous one", {"": pairs}, 280),
    ]


def _columns(values: Float[np.ndarray, "K F"], span: tuple[float, float], names: Sequence[str]) -> go.Figure:
    """Draw one histogram per column; the colour is the root of the count, which makes rare values visible."""
    bins = np.linspace(*span, 31)
    counts = np.stack([np.histogram(row[np.isfinite(row)], bins)[0] for row in values], axis=1)
    heat = style.heatmap(
        z=np.sqrt(counts).round(2).tolist(),
        x=list(names),
        y=rounded((bins[:-1] + bins[1:]) / 2, 5),
        text=counts.tolist(),
        xgap=1,
        showscale=False,
        hovertemplate=style.hover("%{x}", "%{text} features at %{y:.2f}"),
    )
    every = math.ceil(len(names) / 9)
    return style.figure(
        [heat],
        xaxis={"type": "category", "tickvals": list(names)[::every], "showgrid": False, "automargin": True},
        yaxis={"range": list(span), "showgrid": False, "automargin": True},
    )
