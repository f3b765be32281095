"""Values as script files: a page from the file system may not fetch, but it may load scripts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from crosstime.base.units import jsonable

# Characters that would end a script element, open a comment in it, or end a line of JavaScript inside a string.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def to_json(value: Any) -> str:
    """Compact JSON that is safe inside a script: NaN and infinities become null, markup characters escapes."""
    try:
        text = _dump(value)
    except ValueError:  # a number that JSON does not know; most values hold none, and looking costs more than this
        text = _dump(jsonable(value))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    # A lone surrogate cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def assignment(target: str, text: str) -> str:
    """A script that hands one value, given as JSON, to the page."""
    return f"{target} = {text};\n"


def rounded(values: Float[np.ndarray, "*shape"], digits: int = 4) -> list:
    """Numbers with so many significant digits, as (nested) lists, which halves their size; None where not finite."""
    if values.ndim > 1:
        flat = rounded(values.reshape(-1), digits)
        width = values.shape[-1]
        return [flat[start : start + width] for start in range(0, len(flat), width)]
    short = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return [None if not math.isfinite(v) else int(v) if v.is_integer() else v for v in short]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_from_numpy)


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    raise TypeError(f"{type(value).__name__} is not a value for the page")
