"""The common style of all figures: colours, traces, the axis of training and maps of every two checkpoints.

Plotly interprets a few HTML tags in labels and hover texts, so text from data goes through `escaped` first.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from crosstime.base.units import format_tokens
from crosstime.report.format import format_share, rounded
from crosstime.report.trends import positions

# --------------------------------------------------------------------------------- colours

INK = "#1c2128"
SOFT = "#57606a"
FAINT = "#8b949e"
RULE = "#dedbd2"
PALE = "#c9c7c0"
GRID = "#efede7"
WHITE = "#ffffff"
NO_CLASS = "#b3b0a8"

# Stops of the ramp: lightness falls steadily, so that the order survives greyscale print and colour blindness.
STOPS = ("#dd9f2a", "#86ad57", "#2a9489", "#2b648f", "#2d2b66")

SEQUENTIAL = [[0.0, "#fbfaf7"], [0.25, "#d3dee0"], [0.5, "#93b4be"], [0.75, "#4a7f98"], [1.0, "#1d3f5e"]]
"""Colour scale of heat maps, from paper to deep blue."""


def checkpoint_colours(n: int) -> list[str]:
    """Return `n` colours along the ramp, from light to dark in the order of training."""
    if n == 1:
        return [STOPS[-1]]
    return [_on_ramp(i / (n - 1)) for i in range(n)]


def mix(colours: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """Return the mean of colours in OKLab, which keeps the lightness of mixtures even."""
    weights = weights or [1.0] * len(colours)
    labs = np.array([_to_oklab(colour) for colour in colours])
    return _from_oklab(np.average(labs, axis=0, weights=weights))


def _on_ramp(position: float) -> str:
    left = min(int(position * (len(STOPS) - 1)), len(STOPS) - 2)
    part = position * (len(STOPS) - 1) - left
    return mix(STOPS[left : left + 2], (1 - part, part))


# Ottosson 2020, "A perceptual color space for image processing": linear sRGB to cone responses, and those to OKLab.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_oklab(colour: str) -> Float[np.ndarray, " 3"]:
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return _LAB @ np.cbrt(_CONES @ linear)


def _from_oklab(lab: Float[np.ndarray, " 3"]) -> str:
    linear = np.linalg.solve(_CONES, np.linalg.solve(_LAB, lab) ** 3).clip(0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in value.tolist())


# --------------------------------------------------------------------------------- figures

FONT = (
    'ui-sans-serif, -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", '
    '"Liberation Sans", Arial, sans-serif'
)
Number = float | int
LEGEND_ABOVE = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
NO_EFFECT = "no feature has an effect on this task"


@dataclass(frozen=True)
class Figure:
    """A figure with one or more variants that the reader can switch between (similarity: cosine or Pearson)."""

    key: str
    """Identifies the figure on the page."""
    title: str
    variants: Mapping[str, go.Figure]
    height: int
    """Pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the page's script."""
        variants = [{"name": name, **plain(figure)} for name, figure in self.variants.items()]
        return {"title": self.title, "variants": variants}


def plain(figure: go.Figure) -> dict[str, Any]:
    """Return traces and layout of a figure as plain values."""
    values = figure.to_plotly_json()
    return {"data": values["data"], "layout": values["layout"]}


def figure(traces: Sequence[Any], message: str | None = None, **layout: Any) -> go.Figure:
    """Make a figure in the report's style.

    Args:
        traces: Its traces.
        message: Text in the middle of the figure, for one without data.
        layout: Added to the style, axis by axis.
    """
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": PALE,
        "showline": True,
        "tickcolor": PALE,
        "ticklen": 4,
        "tickfont": {"size": 11, "color": SOFT},
        "title": {"font": {"size": 11.5, "color": SOFT}},
    }
    base = go.Layout(
        template={},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="closest",
        hoverlabel={"bgcolor": WHITE, "bordercolor": RULE, "align": "left"}
        | {"font": {"family": FONT, "size": 12, "color": INK}},
        dragmode=False,
        margin={"l": 48, "r": 16, "t": 12, "b": 44},
        xaxis=axis | {"showgrid": False},
        yaxis=axis | {"showline": False},
    )
    # A subplot without Cartesian axes must not get any.
    if "ternary" in layout:
        base.pop("xaxis")
        base.pop("yaxis")
    styled = go.Figure(data=list(traces), layout=base).update_layout(**layout)
    if message:
        styled.add_annotation(text=message, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return styled


def escaped(text: str) -> str:
    """Escape text from data for plotly's labels, with visible line breaks."""
    return html.escape(text, quote=False).replace("\n", "↵")


def clipped(name: str, limit: int) -> str:
    """Escape a name for a label, cut to `limit` characters."""
    return escaped(name if len(name) <= limit else name[: limit - 1] + "…")


def hover(*lines: str) -> str:
    """Make a hover template of lines; `%{x}`, `%{text}` and so on stand for the values of the point."""
    return "<br>".join(lines) + "<extra></extra>"


def marker(colour: Any, size: Any = 6, opacity: float | None = 0.7, edge: Number = 0.5) -> dict[str, Any]:
    """Make a marker with a white edge."""
    style = {"size": size, "color": colour, "line": {"color": "#fff", "width": edge}}
    return style if opacity is None else style | {"opacity": opacity}


def heatmap(**values: Any) -> go.Heatmap:
    """Make a heat map in the report's colours."""
    return go.Heatmap(colorscale=SEQUENTIAL, **values)


def histogram(values: np.ndarray, colour: str, span: tuple[float, float] | None, text: str) -> go.Figure:
    """Make a histogram of the finite values with 40 bins.

    Args:
        values: Any shape.
        colour: Of the bars.
        span: Range of the bins and the axis; that of the values without it.
        text: Hover template of a bar.
    """
    counts, edges = np.histogram(values[np.isfinite(values)], bins=40, range=span)
    bars = go.Bar(
        x=rounded((edges[:-1] + edges[1:]) / 2, 5),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        marker={"color": colour, "line": {"color": "#fff", "width": 0.75}},
        hovertemplate=hover(text),
    )
    xaxis = {"range": list(span)} if span else {}
    return figure([bars], bargap=0, xaxis=xaxis | {"showgrid": False}, yaxis={"nticks": 4, "rangemode": "tozero"})


def points(
    x: np.ndarray, y: np.ndarray, ids: Sequence[int], dots: dict[str, Any], *lines: str, **more: Any
) -> go.Scatter:
    """Make a trace of features, whose cards open on a click; `lines` are the hover text of a point."""
    fields = {"customdata": list(ids), "marker": dots, "hovertemplate": hover(*lines), "cliponaxis": False}
    return go.Scatter(x=rounded(x), y=rounded(y), mode="markers", **fields, **more)


def points_by_checkpoint(
    x: Float[np.ndarray, "M N"],
    y: Float[np.ndarray, "M N"],
    ids: Sequence[int],
    colours: Mapping[str, str],
    *lines: str,
    **more: Any,
) -> list[go.Scatter]:
    """Make one trace of N features per checkpoint; `lines` end the hover text."""
    traces = []
    for m, (name, colour) in enumerate(colours.items()):
        head = f"<b>Feature %{{customdata}}</b> at {escaped(name)}"
        traces.append(points(x[m], y[m], ids, marker(colour), head, *lines, name=clipped(name, 18), **more))
    return traces


def rule(x0: Number, y0: Number, x1: Number, y1: Number, colour: str = FAINT, **more: Any) -> dict[str, Any]:
    """Make a thin dotted line behind the points."""
    line = {"color": colour, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "layer": "below", "line": line} | more


def note(x: Number, y: Number, text: str, **more: Any) -> dict[str, Any]:
    """Make a small text in a figure; `more` overrides its look."""
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": 10.5, "color": FAINT}} | more


def end_notes(ends: Sequence[tuple[float, str]], span: tuple[float, float], step: float) -> list[dict[str, Any]]:
    """Make labels at the right ends of lines, pushed apart where they would overlap.

    Args:
        ends: (value, label) of each line.
        span: Range of the axis.
        step: Least distance of two labels, as a share of the span.
    """
    low, high = span
    step *= high - low
    known = sorted((value, label) for value, label in ends if not math.isnan(value))
    places: list[float] = []
    for value, _ in known:
        places.append(max(value, places[-1] + step) if places else value)
    if places and places[-1] > high:
        for i in reversed(range(len(places))):
            places[i] = min(places[i], places[i + 1] - step if i + 1 < len(places) else high)
    return [
        note(1, place, label, xref="paper", xanchor="left", xshift=8)
        for place, (_, label) in zip(places, known, strict=True)
    ]


def padded(values: np.ndarray) -> tuple[float, float]:
    """Return the range of the values and zero, with a margin."""
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), max(0.0, float(finite.max()))) if finite.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad


# --------------------------------------------------------------------------------- the axis of training

FEW = 4
"""Up to this number of checkpoints, each is marked with a thick line; up to `LINED`, with a thin one."""
LINED = 12


@dataclass(frozen=True)
class TrainingAxis:
    """The axis of training: log tokens seen, with zero at the left edge; or the order of the checkpoints."""

    names: list[str]
    tokens: list[int | None]
    positions: list[float]
    ticks: list[tuple[float, str]]
    title: str

    @classmethod
    def from_tokens(cls, names: Sequence[str], tokens: Sequence[int | None]) -> TrainingAxis:
        """Make the axis of checkpoints that have seen so many tokens; ordinal if some numbers are unknown."""
        places = positions(tokens)
        counts = [count for count in tokens if count is not None]
        if len(counts) < len(tokens) or max(counts) == 0:
            return cls(list(names), list(tokens), places, _ordinal_ticks(names), "checkpoint")
        ticks = _decade_ticks(math.log10(min(count for count in counts if count)), max(places))
        if 0 in counts:
            ticks = [(places[counts.index(0)], "0"), *ticks]
        return cls(list(names), list(tokens), places, ticks, "tokens seen")

    @property
    def span(self) -> float:
        """Distance from the first checkpoint to the last."""
        return max(self.positions) - min(self.positions) or 1.0

    def xaxis(self) -> dict[str, Any]:
        """Return plotly's x axis."""
        return {
            "range": [min(self.positions) - 0.04 * self.span, max(self.positions) + 0.04 * self.span],
            "tickvals": [x for x, _ in self.ticks],
            "ticktext": [escaped(text) for _, text in self.ticks],
            "title": {"text": self.title, "standoff": 6},
            "ticks": "outside",
        }

    def layout(self, colours: Mapping[str, str]) -> dict[str, Any]:
        """Return the axis with the checkpoints in `colours` marked: by lines if they are few, by labels that fit."""
        marked = [(x, name) for x, name in zip(self.positions, self.names, strict=True) if name in colours]
        width = 1.25 if len(marked) <= FEW else 0.75
        shapes = [
            rule(x, 0, x, 1, yref="paper", line={"color": colours[name], "width": width, "dash": "dot"})
            for x, name in (marked if len(marked) <= LINED else [])
        ]
        font = {"size": 10.5, "color": SOFT}
        labels = [
            note(x, 1, clipped(name, 18), font=font, yref="paper", yanchor="bottom", yshift=2 + 12 * line)
            for x, name, line in _lines(marked, (0.24 if len(marked) <= LINED else 0.34) * self.span)
        ]
        return {"xaxis": self.xaxis(), "shapes": shapes, "annotations": labels, "margin": {"t": 34}}

    def hover(self) -> list[str]:
        """Return the hover text of each checkpoint."""
        return [
            escaped(name) + (f" · {format_tokens(count)} tokens" if count is not None else "")
            for name, count in zip(self.names, self.tokens, strict=True)
        ]

    def line(self, y: np.ndarray, colour: str, width: float, text: str, digits: int = 5, **more: Any) -> go.Scatter:
        """Make a line over training; `text` begins the hover text of its points."""
        return go.Scatter(
            x=self.positions,
            y=rounded(np.asarray(y, dtype=float), digits),
            mode="lines+markers",
            line={"color": colour, "width": width},
            text=self.hover(),
            **{"hovertemplate": hover(text, "%{text}"), **more},
        )


def _lines(marked: Sequence[tuple[float, str]], width: float) -> list[tuple[float, str, int]]:
    """Choose the labels that fit into two lines: always the last, the others from the left; (position, name, line)."""
    taken: list[list[float]] = [[marked[-1][0]] if marked else [], []]
    kept = [(*mark, 0) for mark in marked[-1:]]
    for x, name in marked[:-1]:
        free = [line for line, places in enumerate(taken) if all(abs(x - place) >= width for place in places)]
        if free:
            taken[free[0]].append(x)
            kept.append((x, name, free[0]))
    return kept


def _decade_ticks(low: float, high: float) -> list[tuple[float, str]]:
    steps = (1, 2, 5) if high - low < 2.2 else (1, 3) if high - low < 3.2 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    values = [step * 10**exponent for exponent in exponents for step in steps if exponent >= 0]
    return [(math.log10(v), format_tokens(v)) for v in values if low - 0.02 <= math.log10(v) <= high + 0.02]


def _ordinal_ticks(names: Sequence[str]) -> list[tuple[float, str]]:
    every = max(1, math.ceil(len(names) / 7))
    return [(float(i), name if len(name) <= 12 else name[:11] + "…") for i, name in enumerate(names) if i % every == 0]


def log_axis(values: np.ndarray) -> dict[str, Any]:
    """Make a log axis with whole numbers as ticks; plotly's own would print a bare 2 or 5 between powers of ten."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (math.log10(known.min()), math.log10(known.max())) if known.size else (0.0, 1.0)
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}


# --------------------------------------------------------------------------------- maps of every two checkpoints

OUTLINED = 4
"""Up to this number of marked checkpoints, their pairs are outlined."""
NUMBERED = 14
"""Up to this number of checkpoints, the cells contain numbers."""
NAMED = 18
"""Up to this number of checkpoints, each has its name at the axis."""


def triangle(values: Float[np.ndarray, "C C"], names: Sequence[str], colours: Mapping[str, str]) -> go.Figure:
    """Draw the lower triangle of a matrix; the checkpoints in `colours` have a dot on the diagonal."""
    n = len(names)
    shown = rounded(np.where(np.tri(n, dtype=bool), values, np.nan))
    index = [i for i, name in enumerate(names) if name in colours]
    outlines = [
        {"type": "rect", "x0": a - 0.47, "x1": a + 0.47, "y0": b - 0.47, "y1": b + 0.47}
        | {"line": {"color": INK, "width": 1.75}}
        for a in index
        for b in index
        if a < b and len(index) <= OUTLINED
    ]
    dot = marker([colours[names[i]] for i in index], max(5, min(13, 220 // n)), None, 2 if n <= NUMBERED else 1)
    dots = go.Scatter(x=index, y=index, mode="markers", marker=dot, hoverinfo="skip")
    map_ = _map(names).update(z=shown, zmin=min(0.0, float(np.nanmin(values))))
    numbers = _numbers(values, 11.0 if n <= 10 else 9.5) if n <= NUMBERED else []
    return figure([map_, dots], shapes=outlines, annotations=numbers, **_axes(names, colours))


def empty_triangle(
    names: Sequence[str], colours: Mapping[str, str], texts: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """Return traces and layout of a map whose values (`z`) the page's script fills in.

    Args:
        names: Of the checkpoints.
        colours: By checkpoint.
        texts: Hover text of each cell; the names of its two checkpoints without it.
    """
    map_ = _map(names)
    if texts is not None:
        map_.update(text=[[escaped(text) for text in row] for row in texts])
    return plain(figure([map_], **_axes(names, colours)))


def _map(names: Sequence[str]) -> go.Heatmap:
    n = len(names)
    gap = 2 if n <= NUMBERED else 1 if n <= NAMED else 0
    return heatmap(
        x=list(range(n)),
        y=list(range(n)),
        zmin=0,
        zmax=1,
        xgap=gap,
        ygap=gap,
        hoverongaps=False,
        text=[[f"{escaped(a)} and {escaped(b)}" for b in names] for a in names],
        hovertemplate=hover("%{text}", "<b>%{z:.3f}</b>"),
        colorbar={"thickness": 8, "len": 0.5, "y": 1, "yanchor": "top", "x": 1, "xanchor": "right"}
        | {"outlinewidth": 0, "tickfont": {"size": 10.5, "color": SOFT}, "nticks": 4},
    )


def _axes(names: Sequence[str], colours: Mapping[str, str]) -> dict[str, Any]:
    """Axes and margins of a map; the names in `colours` are bold, unless all are."""
    n = len(names)
    bold = set(colours) if set(names) - set(colours) else set()
    every = math.ceil(n / NAMED)
    ticks = [f"<b>{clipped(name, 14)}</b>" if name in bold else clipped(name, 14) for name in names]
    axis = {"tickvals": list(range(0, n, every)), "ticktext": ticks[::every]}
    axis |= {"showgrid": False, "zeroline": False, "constrain": "domain", "showline": False, "automargin": True}
    return {
        "xaxis": axis | {"range": [-0.5, n - 0.5], "autotickangles": [0, -45, -90]},
        "yaxis": axis | {"range": [n - 0.5, -0.5]},
        "margin": {"l": 20, "t": 8, "r": 8, "b": 20},
    }


def _numbers(values: Float[np.ndarray, "C C"], size: float) -> list[dict[str, Any]]:
    return [
        note(j, i, format_share(values[i, j]) if values[i, j] >= 0 else f"{values[i, j]:.1f}")
        | {"font": {"size": size, "color": "#fff" if values[i, j] > 0.6 else INK}}
        for i in range(len(values))
        for j in range(i)
        if not math.isnan(values[i, j])
    ]
