"""Values as script files: a page from the file system may not fetch, but it may load scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Characters that would end a script element, open a comment in it, or end a line of JavaScript inside a string.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def to_json(value: Any) -> str:
    """Compact JSON that is safe inside a script: NaN and infinities become null, markup characters escapes."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    # A lone surrogate cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def assignment(target: str, value: Any) -> str:
    """A script that hands one value to the page."""
    return f"{target} = {to_json(value)};\n"


def rounded(value: float, digits: int = 4) -> float | None:
    """A number with so many significant digits; None where it is not finite. Halves the size of the data."""
    value = float(value)
    if not math.isfinite(value):
        return None
    if value == 0.0:
        return 0
    return float(f"{value:.{digits}g}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value
