"""Figures of the ablation: attributed against exact effects, and all top features ablated together.

Each function returns a list of figures, which is empty if the run has no data for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from crosstime.attribution.relative import relative
from crosstime.report.data import ReportData, TaskFeatures
from crosstime.report.format import format_fixed, readable, sentence_case
from crosstime.report.plots import style
from crosstime.report.plots.style import Figure

POINTS = 2000
"""Rows of the ablation drawn at most: an even sample of more."""
EXACT_POINTS = 3000
"""Exact effects drawn at most, over all checkpoints: the largest ones."""


def attribution_against_ablation(data: ReportData) -> list[Figure]:
    """Draw attributed effects against the effects of ablating the features one by one; on the line they agree."""
    ablation = data.ablation
    if ablation is None:
        return []
    every = math.ceil(len(ablation.table) / POINTS)
    table = {name: column[::every] for name, column in ablation.table.to_pydict().items()}
    members: dict[tuple[str, str], list[int]] = {}
    for i, (group, checkpoint) in enumerate(zip(table["group"], table["checkpoint"], strict=True)):
        members.setdefault((group, "" if group == "random" else checkpoint), []).append(i)
    ie, delta = (np.asarray(table[name], dtype=float) for name in ("ie", "delta_lpd"))
    traces = []
    for (group, checkpoint), index in sorted(members.items(), key=lambda item: item[0][0] != "random"):
        top = group != "random"
        text = [
            f"<b>Feature {table['feature'][i]}</b> ({style.escaped(group)})<br>"
            f"{style.escaped(table['checkpoint'][i])}, {style.escaped(readable(table['task'][i]))}"
            for i in index
        ]
        ids = [int(table["feature"][i]) for i in index]
        dots = style.marker(data.colours.get(checkpoint, style.PALE), 8 if top else 6, 0.85, 0.7)
        lines = ("%{text}", "IE %{x:.3f}, ablated %{y:.3f}")
        name = f"top features at {style.escaped(checkpoint)}" if top else "random features"
        traces.append(style.points(ie[index], delta[index], ids, dots, *lines, text=text, name=name))
    low, high = style.padded(np.concatenate([ie, delta]))
    zero = {"zeroline": True, "zerolinecolor": style.RULE}
    figure = style.figure(
        traces,
        xaxis=zero | {"title": {"text": "indirect effect (IE)"}},
        yaxis=zero | {"title": {"text": "change in log-probability difference when ablated"}},
        shapes=[style.rule(low, low, high, high)],
        showlegend=len(data.checkpoints) <= 5,
        legend={"x": 0.02, "y": 1, "xanchor": "left", "yanchor": "top", "bgcolor": "rgba(255,255,255,.75)"},
        margin={"l": 62},
    )
    height = max(460, min(225 * len(set(table["task"])), 640))
    return [Figure("ablation", "Attribution against ablation", {"": figure}, height)]


def joint_ablation(data: ReportData) -> list[Figure]:
    """Draw for each task the effect of ablating all top features of a checkpoint together, and as many random ones."""
    rows = data.ablation.joint.to_pylist() if data.ablation is not None else []
    figures = []
    for i, task in enumerate(dict.fromkeys(row["task"] for row in rows)):
        of_task = [row for row in rows if row["task"] == task]
        measures = {"Log-probability difference": "delta_lpd", "Accuracy": "delta_accuracy"}
        variants = {label: _joint_bars(of_task, column, data.colours) for label, column in measures.items()}
        figures.append(Figure(f"joint-{i}", sentence_case(readable(task)), variants, 180))
    return figures


def _joint_bars(rows: Sequence[Mapping[str, Any]], column: str, colours: Mapping[str, str]) -> go.Figure:
    ticks = {name: style.clipped(name, 14) for name in colours if any(row["checkpoint"] == name for row in rows)}
    bars = []
    for group in ("top", "random"):
        by_name = {row["checkpoint"]: row for row in rows if row["group"] == group}
        names = [name for name in ticks if name in by_name]
        values = [by_name[name][column] for name in names]
        bars.append(
            go.Bar(
                x=[ticks[name] for name in names],
                y=values,
                marker={"color": [colours[name] if group == "top" else style.PALE for name in names]},
                text=[format_fixed(value) for value in values] if len(ticks) <= 8 else None,
                textposition="outside",
                textfont={"size": 10.5, "color": style.SOFT},
                cliponaxis=False,
                hovertext=[f"{by_name[name]['n_features']} {group} features, {ticks[name]}" for name in names],
                hovertemplate=style.hover("%{hovertext}", "<b>%{y:.3f}</b>"),
            )
        )
    shown = {"tickvals": list(ticks.values())[:: math.ceil(len(ticks) / 8)]} if ticks else {}
    return style.figure(
        bars,
        barmode="group",
        bargap=0.35,
        bargroupgap=0.08,
        xaxis={"showgrid": False, "type": "category"} | shown,
        yaxis={"nticks": 5, "zeroline": True, "zerolinecolor": style.FAINT},
    )


def exact_effects(features: TaskFeatures) -> list[Figure]:
    """Draw exact effects against their estimates, one point per feature and checkpoint: RelIE, and IE."""
    exact = features.data.exact
    if exact is None:
        return []
    if features.task not in exact.tasks:
        hidden = {"visible": False}
        empty = style.figure([], "no feature was ablated one by one on this task", xaxis=hidden, yaxis=hidden)
        return [Figure("exact", "Exact RelIE", {"RelIE": empty, "IE": empty}, 420)]
    task, colours = features.task, features.data.colours
    ie, true = exact.array(task, "ie"), exact.array(task, "exact")
    rows = np.argsort(-np.abs(true).max(axis=0), kind="stable")[: EXACT_POINTS // len(colours)]
    measures = {
        "RelIE": (relative(ie), exact.array(task, "rel_exact"), (-0.02, 1.02)),
        "IE": (ie, true, style.padded(np.stack([ie, true]))),
    }
    ids, few = exact.features(task)[rows].tolist(), len(colours) <= 4
    variants = {}
    for name, (estimate, value, span) in measures.items():
        axis = {"range": list(span), "nticks": 6, "zeroline": True, "zerolinecolor": style.RULE}
        text = f"{name} %{{x:.3f}}, exact %{{y:.3f}}"
        variants[name] = style.figure(
            style.points_by_checkpoint(estimate[:, rows], value[:, rows], ids, colours, text),
            xaxis=axis | {"title": {"text": f"{name}, estimated"}},
            yaxis=axis | {"title": {"text": f"{name}, exact"}},
            shapes=[style.rule(span[0], span[0], span[1], span[1])],
            showlegend=few,
            legend=style.LEGEND_ABOVE,
            margin={"l": 62, "t": 30 if few else 12},
        )
    return [Figure("exact", "Exact RelIE", variants, 420)]
