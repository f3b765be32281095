"""The axis of training: log tokens seen, or the order of the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosstime.base.units import format_tokens
from crosstime.report.colour import SOFT
from crosstime.report.plots.figure import clipped, escaped
from crosstime.report.trajectory import positions

FEW = 4
"""So many checkpoints are marked with a full line each; more of them with a finer one, up to `LINED`."""
LINED = 12


@dataclass(frozen=True)
class TokenAxis:
    """Where checkpoints stand on the axis of training: log tokens, zero at the left edge; or their order."""

    names: list[str]
    tokens: list[int | None]
    positions: list[float]
    ticks: list[tuple[float, str]]
    title: str

    @classmethod
    def of(cls, names: Sequence[str], tokens: Sequence[int | None]) -> TokenAxis:
        """The axis of checkpoints that have seen so many tokens. One whose tokens are unknown makes it ordinal."""
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
        """From the first checkpoint to the last."""
        return max(self.positions) - min(self.positions) or 1.0

    def xaxis(self) -> dict[str, Any]:
        """The axis itself."""
        return {
            "range": [min(self.positions) - 0.04 * self.span, max(self.positions) + 0.04 * self.span],
            "tickvals": [x for x, _ in self.ticks],
            "ticktext": [escaped(text) for _, text in self.ticks],
            "title": {"text": self.title, "standoff": 6},
            "ticks": "outside",
        }

    def layout(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        """The axis, a line for each of a few chosen checkpoints, and a label for those that have room for one."""
        marked = [(x, name) for x, name in zip(self.positions, self.names, strict=True) if name in chosen]
        shapes = [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
            | {"line": {"color": chosen[name], "width": 1.25 if len(marked) <= FEW else 0.75, "dash": "dot"}}
            for x, name in (marked if len(marked) <= LINED else [])
        ]
        labels = [
            {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "yshift": 2 + 12 * line}
            | {"text": escaped(clipped(name, 18)), "font": {"size": 10.5, "color": SOFT}}
            for x, name, line in _lines(marked, (0.24 if len(marked) <= LINED else 0.34) * self.span)
        ]
        return {"xaxis": self.xaxis(), "shapes": shapes, "annotations": labels, "margin": {"t": 34}}

    def hover(self) -> list[str]:
        """What a point's label says of its checkpoint."""
        return [
            escaped(name) + (f" · {format_tokens(count)} tokens" if count is not None else "")
            for name, count in zip(self.names, self.tokens, strict=True)
        ]


def _lines(marked: Sequence[tuple[float, str]], width: float) -> list[tuple[float, str, int]]:
    """(place, name, line) of the labels that fit into two lines: the last one for certain, the others from the left."""
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


def log_axis(values: np.ndarray) -> dict[str, Any]:
    """A log axis whose ticks are whole numbers; plotly's own would print a bare 2 or 5 between powers of ten."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (math.log10(known.min()), math.log10(known.max())) if known.size else (0.0, 1.0)
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}


def _ordinal_ticks(names: Sequence[str]) -> list[tuple[float, str]]:
    every = max(1, math.ceil(len(names) / 7))
    return [(float(i), clipped(name, 12)) for i, name in enumerate(names) if i % every == 0]
