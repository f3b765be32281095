"""Numbers, names and JSON in the form in which the page shows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from crosstime.base.units import jsonable

THIN_SPACE = "\u202f"
MINUS = "\u2212"
DASH = "\u2013"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_share(value: float) -> str:
    """Format a number between 0 and 1 as tables print accuracies: ".62", "1.00"; NaN as a dash."""
    if math.isnan(value):
        return DASH
    return f"{value:.2f}".removeprefix("0")


def format_percent(value: float, digits: int = 0) -> str:
    """Format a share as a percentage: "11 %"; "< 1 %" where it would round to zero; NaN as a dash."""
    if math.isnan(value):
        return DASH
    smallest = 10.0**-digits
    if 0 < 100 * abs(value) < smallest / 2:
        return f"<{THIN_SPACE}{smallest:.{digits}f}{THIN_SPACE}%"
    return f"{100 * value:.{digits}f}{THIN_SPACE}%".replace("-", MINUS)


def format_number(value: float, digits: int = 2) -> str:
    """Format a real number, in scientific notation where it would round to zero: "1.20", "3·10⁻⁵"; NaN as a dash."""
    if value == 0 or math.isnan(value) or abs(value) >= 0.5 * 10.0**-digits:
        return format_fixed(value, digits)
    exponent = math.floor(math.log10(abs(value)))
    mantissa = round(value / 10.0**exponent)
    return f"{mantissa}·10{str(exponent).translate(_SUPERSCRIPT)}".replace("-", MINUS)


def format_fixed(value: float, digits: int = 2) -> str:
    """Format a real number with a fixed number of decimals; NaN as a dash."""
    if math.isnan(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def format_p_value(value: float) -> str:
    """Format a p-value: "p = .003", "p < 10⁻⁹"."""
    if value >= 0.001:
        return f"p = {value:.3f}".replace("0.", ".")
    exponent = -300 if value <= 1e-300 else math.ceil(math.log10(value))
    return f"p < 10{str(exponent).translate(_SUPERSCRIPT)}"


def join_names(names: Sequence[str]) -> str:
    """Join names as in prose: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def readable(name: str) -> str:
    """Turn the underscores of a task's name into spaces."""
    return name.replace("_", " ").strip()


def short_names(names: Sequence[str]) -> list[str]:
    """Drop the words that all names share; a name that consists of shared words only stays whole."""
    split = [readable(name).split() for name in names]
    if len(split) < 2:
        return [" ".join(words) for words in split]
    shared = set(split[0]).intersection(*split[1:])
    short = [" ".join(word for word in words if word not in shared) or " ".join(words) for words in split]
    return [f"set {label}" if label.isdecimal() else label for label in short]


def visible_token(text: str) -> str:
    """A token as prose quotes it: without outer spaces, with visible line breaks and tabs."""
    visible = re.sub(r"\r\n|\r|\n", "↵", text).replace("\t", "→").strip()
    return visible or ("␣" if text else "∅")


def sentence_case(text: str) -> str:
    """Put the first letter in upper case."""
    return text[:1].upper() + text[1:]


def rounded(values: Float[np.ndarray, "*shape"], digits: int = 4) -> list:
    """Round to significant digits, as (nested) lists, which halves their size in JSON; None where not finite."""
    if values.ndim > 1:
        flat = rounded(values.reshape(-1), digits)
        width = values.shape[-1]
        return [flat[start : start + width] for start in range(0, len(flat), width)]
    short = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return [None if not math.isfinite(v) else int(v) if v.is_integer() else v for v in short]


# Characters that would end a script element, open a comment in it, or end a line of JavaScript inside a string.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def to_json(value: Any) -> str:
    """Serialise to compact JSON that is safe inside a script; numbers that aren't finite become null."""
    try:
        text = _dump(value)
    except ValueError:  # a number that isn't finite; most values have none, and looking for them costs more than this
        text = _dump(jsonable(value))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    # A lone surrogate can't be encoded as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_from_numpy)


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    raise TypeError(f"{type(value).__name__} can't be written to the page")
