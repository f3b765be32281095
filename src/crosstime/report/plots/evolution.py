"""How the features of the largest and the smallest effects came to be so."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from crosstime.attribution.evolution import evolution
from crosstime.report.colour import FAINT, SOFT
from crosstime.report.features import TaskFeatures
from crosstime.report.plots.axis import TokenAxis
from crosstime.report.plots.figure import CENTRE, Figure, clipped, end_notes, escaped, floats, padded, styled

LARGEST = 5
"""Features of each group: the largest and the smallest IE, at the first checkpoint and at the last."""


def effects_over_time(
    features: TaskFeatures, axis: TokenAxis, colours: Mapping[str, str], notes: Mapping[int, str]
) -> Figure:
    """A line for each feature; its colour is that of the checkpoint, first or last, at which it is among the extremes.

    Args:
        colours: checkpoint -> colour.
        notes: feature -> a line of text on it.
    """
    found = evolution(features.ie, LARGEST)
    first, last = (colours[axis.names[i]] for i in (0, -1))
    lines, ends = [], []
    for one in found:
        feature = int(features.feature[one.feature])
        places = {group.rsplit(" ", 1)[1] for group in one.chosen}
        colour = FAINT if len(places) > 1 else first if places == {"first"} else last
        lines.append(
            go.Scatter(
                x=axis.positions,
                y=floats(one.ie, 4),
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 5, "color": colour},
                customdata=[feature] * len(axis.names),
                text=axis.hover(),
                hovertemplate=f"<b>Feature {feature}</b>: {' and '.join(one.chosen)}<br>IE %{{y:.4f}} at %{{text}}<br>"
                f"{escaped(notes.get(feature, ''))}<extra></extra>",
            )
        )
        ends.append((float(one.ie[-1]), clipped(str(feature), 22)))
    low, high = padded(features.ie[:, [one.feature for one in found]])
    figure = styled(
        lines,
        xaxis=axis.xaxis(),
        yaxis={"range": [low, high], "nticks": 7, "zeroline": True, "zerolinecolor": FAINT}
        | {"title": {"text": "indirect effect (IE)"}},
        annotations=[note | {"font": {"size": 10.5, "color": SOFT}} for note in end_notes(ends, (low, high), 0.043)],
        margin={"l": 62, "r": 52},
    )
    if not found:
        figure.add_annotation(text="no feature has an effect on this task", **CENTRE)
    return Figure("evolution", "The largest and the smallest effects over training", {"": figure}, 440)
