"""Figures of the ablation: attributed against exact effects, and all top features together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from crosstime.attribution.ablation import Ablation
from crosstime.report import words
from crosstime.report.colour import FAINT, PALE, RULE, SOFT
from crosstime.report.plots.figure import Figure, clipped, escaped, floats, padded, styled

POINTS = 2000
"""Rows drawn at most."""


def ablation_scatter(ablation: Ablation, chosen: Mapping[str, str]) -> Figure:
    """Attributed effect against the effect of ablating the feature: points on the line agree.

    Of more than `POINTS` rows an even sample is drawn.
    """
    every = math.ceil(len(ablation.table) / POINTS)
    table = {name: column[::every] for name, column in ablation.table.to_pydict().items()}
    members: dict[tuple[str, str], list[int]] = {}
    for i, (group, checkpoint) in enumerate(zip(table["group"], table["checkpoint"], strict=True)):
        members.setdefault((group, "" if group == "random" else checkpoint), []).append(i)
    traces = []
    for (group, checkpoint), index in sorted(members.items(), key=lambda item: item[0][0] != "random"):
        top = group != "random"
        hover = [
            f"<b>Feature {table['feature'][i]}</b> ({escaped(group)})<br>{escaped(table['checkpoint'][i])}, "
            f"{escaped(words.name(table['task'][i]))}"
            for i in index
        ]
        marker = {"size": 8 if top else 6, "color": chosen.get(checkpoint, PALE), "opacity": 0.85}
        traces.append(
            go.Scatter(
                x=floats(np.asarray(table["ie"], dtype=float)[index]),
                y=floats(np.asarray(table["delta_lpd"], dtype=float)[index]),
                mode="markers",
                name=f"top features, at {escaped(checkpoint)}" if top else "random features",
                customdata=[int(table["feature"][i]) for i in index],
                text=hover,
                hovertemplate="%{text}<br>IE %{x:.3f}, ablated %{y:.3f}<extra></extra>",
                marker=marker | {"line": {"color": "#fff", "width": 0.7}},
            )
        )
    values = np.asarray([*table["ie"], *table["delta_lpd"]], dtype=float)
    low, high = padded(values)
    line = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "layer": "below"}
    title = "change in log-probability difference when ablated"
    figure = styled(
        traces,
        xaxis={"title": {"text": "indirect effect (IE)"}, "zeroline": True, "zerolinecolor": RULE},
        yaxis={"title": {"text": title}, "zeroline": True, "zerolinecolor": RULE},
        shapes=[line | {"line": {"color": FAINT, "width": 1, "dash": "dot"}}],
        showlegend=len(chosen) <= 5,
        legend={"x": 0.02, "y": 1, "xanchor": "left", "yanchor": "top", "bgcolor": "rgba(255,255,255,.75)"},
        margin={"l": 62},
    )
    n_tasks = len(set(table["task"]))
    return Figure("ablation", "Attribution against ablation", {"": figure}, max(460, min(225 * n_tasks, 640)))


def ablation_joint(ablation: Ablation, chosen: Mapping[str, str]) -> list[Figure]:
    """Per task: what ablating all top features of a checkpoint together costs, against as many random ones."""
    rows = ablation.joint.to_pylist()
    figures = []
    for i, task in enumerate(dict.fromkeys(row["task"] for row in rows)):
        variants = {}
        for label, column in (("Log-probability difference", "delta_lpd"), ("Accuracy", "delta_accuracy")):
            of_task = [row for row in rows if row["task"] == task]
            variants[label] = _joint_bars(of_task, column, chosen)
        figures.append(Figure(f"joint-{i}", words.sentence_case(words.name(task)), variants, 180))
    return figures


def _joint_bars(rows: Sequence[Mapping[str, Any]], column: str, chosen: Mapping[str, str]) -> go.Figure:
    checkpoints = [name for name in chosen if any(row["checkpoint"] == name for row in rows)]
    ticks = [escaped(clipped(name, 14)) for name in checkpoints]
    bars = []
    for group in ("top", "random"):
        by_name = {row["checkpoint"]: row for row in rows if row["group"] == group}
        kept = [(tick, by_name[name], name) for tick, name in zip(ticks, checkpoints, strict=True) if name in by_name]
        colours = [chosen[name] if group == "top" else PALE for _, _, name in kept]
        hover = [f"{row['n_features']} {group} features, {tick}" for tick, row, _ in kept]
        bars.append(
            go.Bar(
                x=[tick for tick, _, _ in kept],
                y=[row[column] for _, row, _ in kept],
                marker={"color": colours},
                text=[words.fixed(row[column]) for _, row, _ in kept] if len(ticks) <= 8 else None,
                textposition="outside",
                textfont={"size": 10.5, "color": SOFT},
                cliponaxis=False,
                hovertext=hover,
                hovertemplate="%{hovertext}<br><b>%{y:.3f}</b><extra></extra>",
            )
        )
    yaxis = {"nticks": 5, "zeroline": True, "zerolinecolor": FAINT}
    shown = {"tickvals": ticks[:: math.ceil(len(ticks) / 8)]} if ticks else {}
    xaxis = {"showgrid": False, "type": "category"} | shown
    return styled(bars, barmode="group", bargap=0.35, bargroupgap=0.08, yaxis=yaxis, xaxis=xaxis)
