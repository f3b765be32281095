"""Numbers and names as a reader wants to see them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

THIN_SPACE = "\u202f"
MINUS = "\u2212"
DASH = "\u2013"
APOSTROPHE = "\u2019"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def share(value: float) -> str:
    """A number between 0 and 1 as tables print accuracies: ".62", "1.00"."""
    if math.isnan(value):
        return DASH
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0") else text


def percent(value: float, digits: int = 0) -> str:
    """A share as a percentage: "11 %"; below the last digit "< 1 %"."""
    if math.isnan(value):
        return DASH
    smallest = 10.0**-digits
    if 0 < 100 * abs(value) < smallest / 2:
        return f"<{THIN_SPACE}{smallest:.{digits}f}{THIN_SPACE}%"
    return f"{100 * value:.{digits}f}{THIN_SPACE}%".replace("-", MINUS)


def number(value: float, digits: int = 2) -> str:
    """A real number with a true minus sign, in scientific notation where it would print as zero; a dash for NaN."""
    if math.isnan(value):
        return DASH
    if value != 0 and abs(value) < 0.5 * 10.0**-digits:
        return power(value)
    return f"{value:,.{digits}f}".replace("-", MINUS)


def fixed(value: float, digits: int = 2) -> str:
    """A real number with so many decimals, zero where it rounds to zero; a dash for NaN."""
    if math.isnan(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def power(value: float) -> str:
    """A real number in scientific notation: "3·10⁻⁵"."""
    exponent = math.floor(math.log10(abs(value)))
    mantissa = round(value / 10.0**exponent)
    return f"{mantissa}·10{str(exponent).translate(SUPERSCRIPT)}".replace("-", MINUS)


def probability(value: float) -> str:
    """A p-value: "p = .003", "p < 10⁻⁹"."""
    if value >= 0.001:
        return f"p = {value:.3f}".replace("0.", ".")
    exponent = -300 if value <= 1e-300 else math.ceil(math.log10(value))
    return f"p < 10{str(exponent).translate(SUPERSCRIPT)}"


def listed(items: Sequence[str], last: str = "and") -> str:
    """Items as prose: "a", "a and b", "a, b and c"."""
    if len(items) <= 1:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def name(text: str) -> str:
    """A task's name as text: underscores become spaces."""
    return text.replace("_", " ").strip()


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them share: what tells the members of a group apart.

    A member that consists of shared words only keeps its whole name.
    """
    words = [name(text).split() for text in names]
    if len(words) < 2:
        return [" ".join(parts) for parts in words]
    shared = set(words[0]).intersection(*words[1:])
    short = [" ".join(word for word in parts if word not in shared) or " ".join(parts) for parts in words]
    return [f"set {label}" if label.isdecimal() else label for label in short]


def token(text: str) -> str:
    """A token as it is quoted in prose: without outer spaces, line breaks made visible."""
    visible = re.sub(r"\r\n|\r|\n", "↵", text).replace("\t", "→").strip()
    return visible or ("␣" if text else "∅")


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
