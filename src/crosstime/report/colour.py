"""One colour per checkpoint, from light to dark in the order of training, and the greys and ramps around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

INK = "#1c2128"
SOFT = "#57606a"
FAINT = "#8b949e"
RULE = "#dedbd2"
PALE = "#c9c7c0"
WARN = "#b3400f"

# Stops of the ramp: lightness falls steadily, so that the order survives greyscale print and colour blindness.
STOPS = ("#dd9f2a", "#86ad57", "#2a9489", "#2b648f", "#2d2b66")

SEQUENTIAL = ((0.0, "#fbfaf7"), (0.25, "#d3dee0"), (0.5, "#93b4be"), (0.75, "#4a7f98"), (1.0, "#1d3f5e"))
"""Colour scale of heat maps: paper to deep blue."""


def checkpoint_colours(n: int) -> list[str]:
    """`n` colours, the first light and the last dark, evenly spaced along the ramp."""
    if n == 1:
        return [STOPS[-1]]
    return [_along(i / (n - 1)) for i in range(n)]


def mix(colours: Sequence[str], weights: Sequence[float]) -> str:
    """The mean of colours in OKLab, which keeps the lightness of mixtures even."""
    total = sum(weights)
    labs = [_to_oklab(colour) for colour in colours]
    mean = [sum(w * lab[i] for w, lab in zip(weights, labs, strict=True)) / total for i in range(3)]
    return _from_oklab(mean)


def _along(position: float) -> str:
    left = min(int(position * (len(STOPS) - 1)), len(STOPS) - 2)
    part = position * (len(STOPS) - 1) - left
    return mix(STOPS[left : left + 2], (1 - part, part))


def _to_oklab(colour: str) -> list[float]:
    """sRGB hex to OKLab (Ottosson 2020, "A perceptual color space for image processing")."""
    red, green, blue = (_linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    long = math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue)
    medium = math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue)
    short = math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue)
    return [
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    ]


def _from_oklab(lab: Sequence[float]) -> str:
    lightness, a, b = lab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    channels = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(channel)):02x}" for channel in channels)


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _gamma(value: float) -> float:
    value = min(max(value, 0.0), 1.0)
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
