"""Do tasks share their strongest features, and more than by chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from crosstime.attribution.overlap import Overlap
from crosstime.report import words
from crosstime.report.colour import INK, SEQUENTIAL
from crosstime.report.plots.figure import Figure, clipped, escaped, note, styled

NUMBERED = 12
"""Tasks up to which the numbers stand in the cells."""
SIGNIFICANCE = 0.05


def overlaps(found: Overlap, k: int) -> Figure:
    """A map of every two tasks for each checkpoint: shared features, and below them those expected by chance.

    Args:
        k: top features of each task.
    """
    n = len(found.tasks)
    variants = {name: _map(found, m) for m, name in enumerate(found.checkpoints)}
    return Figure(f"overlap-{k}", f"Of the top {k} features", variants, max(260, min(84 * n + 110, 640)))


def _map(found: Overlap, m: int) -> go.Figure:
    n = len(found.tasks)
    names = [words.sentence_case(words.name(task)) for task in found.tasks]
    pairs = [(i, j) for i in range(n) for j in range(i)]
    limit = SIGNIFICANCE / max(len(pairs), 1)
    z: list[list[float | None]] = [[None] * n for _ in range(n)]
    text = [[""] * n for _ in range(n)]
    cells = []
    for i, j in pairs:
        shared, expected, p = int(found.shared[m, i, j]), float(found.expected[m, i, j]), float(found.p_value[m, i, j])
        most = min(found.size[m, i], found.size[m, j])
        z[i][j] = round(shared / most, 3) if most else None
        text[i][j] = (
            f"{escaped(names[i])} and {escaped(names[j])}: <b>{shared}</b> shared<br>"
            f"{words.fixed(expected, 1)} by chance, {words.probability(p)}"
        )
        if n <= NUMBERED:
            number = f"<b>{shared}</b>" if p < limit else f"{shared}"
            cell = f"{number}<br><span style='font-size:10px'>{words.fixed(expected, 1)}</span>"
            colour = "#fff" if (z[i][j] or 0) > 0.6 else INK
            cells.append(note(j, i, cell, font={"size": 13, "color": colour}))
    heat = go.Heatmap(
        z=z,
        x=list(range(n)),
        y=list(range(n)),
        zmin=0,
        zmax=1,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        xgap=2,
        ygap=2,
        hoverongaps=False,
        showscale=False,
        text=text,
        hovertemplate="%{text}<extra></extra>",
    )
    return styled(
        [heat],
        xaxis=_axis(names) | {"range": [-0.5, max(n - 1.5, 0.5)], "autotickangles": [0, -30, -90]},
        yaxis=_axis(names) | {"range": [n - 0.5, 0.5]},
        annotations=cells,
        margin={"l": 20, "t": 8, "r": 8, "b": 20},
    )


def _axis(names: Sequence[str]) -> dict[str, Any]:
    every = math.ceil(len(names) / 24)
    ticks = {
        "tickvals": list(range(0, len(names), every)),
        "ticktext": [escaped(clipped(n, 26)) for n in names][::every],
    }
    return ticks | {"showgrid": False, "zeroline": False, "showline": False, "automargin": True}
