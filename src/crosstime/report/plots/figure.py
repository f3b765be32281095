"""What all figures have in common: their style, and how numbers and texts stand in them.

Plotly reads a few HTML tags in every label and hover text, so text from data goes through `escaped` first.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from crosstime.report.colour import FAINT, INK, PALE, RULE, SOFT

FONT = (
    'ui-sans-serif, -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", '
    '"Liberation Sans", Arial, sans-serif'
)
CENTRE: dict[str, Any] = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}


@dataclass(frozen=True)
class Figure:
    """A figure with one or more variants, between which the page switches (similarity: cosine or Pearson)."""

    key: str
    title: str
    variants: Mapping[str, go.Figure]
    height: int
    """Pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the page's script."""
        return {
            "title": self.title,
            "variants": [
                {"name": name, **{part: figure.to_plotly_json()[part] for part in ("data", "layout")}}
                for name, figure in self.variants.items()
            ],
        }


def escaped(text: str) -> str:
    """Text from data, safe in plotly's labels; its line breaks would otherwise be lost."""
    return html.escape(text, quote=False).replace("\n", "↵")


def styled(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """A figure in the report's style; `layout` adds to it, axis by axis."""
    axis = {
        "gridcolor": "#efede7",
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
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": RULE, "align": "left"}
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
    return go.Figure(data=list(traces), layout=base).update_layout(**layout)


def histogram(values: np.ndarray, bins: int, colour: str, span: tuple[float, float] | None, hover: str) -> go.Figure:
    """A histogram of the finite values; `hover` says of a bar what %{x} and %{y} are."""
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=bins, range=span)
    bars = go.Bar(
        x=floats((edges[:-1] + edges[1:]) / 2),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        marker={"color": colour, "line": {"color": "#fff", "width": 0.75}},
        hovertemplate=f"{hover}<extra></extra>",
    )
    xaxis = {"range": list(span)} if span else {}
    return styled([bars], bargap=0, xaxis=xaxis | {"showgrid": False}, yaxis={"nticks": 4, "rangemode": "tozero"})


def note(x: float | int, y: float | int, text: str, **more: Any) -> dict[str, Any]:
    """A small text in a figure; `more` overrides its look."""
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": 10.5, "color": FAINT}} | more


def end_notes(ends: Sequence[tuple[float, str]], span: tuple[float, float], step: float) -> list[dict[str, Any]]:
    """Labels beside the ends of lines, pushed apart where they would overlap.

    Args:
        ends: (value, label) of each line.
        span: of the axis.
        step: least distance of two labels, as a part of the span.
    """
    low, high = span
    step *= high - low
    known = sorted((value, label) for value, label in ends if not math.isnan(value))
    places: list[float] = []
    for value, _ in known:
        places.append(max(value, places[-1] + step) if places else value)
    over = max(0.0, places[-1] - high) if places else 0.0
    for i in reversed(range(len(known))):
        limit = places[i + 1] - step if i + 1 < len(places) else high
        places[i] = min(places[i], limit) if over else places[i]
    return [
        note(1, place, label, xref="paper", xanchor="left", xshift=8)
        for place, (_, label) in zip(places, known, strict=True)
    ]


def floats(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Plain numbers with a few significant digits, None for NaN: small in the page's script."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float)]


def padded(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, zero included, with a margin."""
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), max(0.0, float(finite.max()))) if finite.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad


def clipped(text: str, limit: int) -> str:
    """The text, or its beginning and an ellipsis where it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
