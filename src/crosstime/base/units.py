"""Amounts as people read and write them: bytes, durations, token counts, aligned columns; and values that fit JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from crosstime.base.errors import SettingError

_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TOKENS = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3))
_DURATIONS = (("s", 1), ("min", 60), ("h", 3600))


def parse_bytes(text: str, setting: str) -> int:
    """Return an amount of memory in bytes.

    >>> parse_bytes("1.5 GiB", "memory")
    1610612736

    Args:
        text: A number and one of MB, GB, TB, MiB, GiB, TiB.
        setting: The setting's name, for the error.

    Raises:
        SettingError: The text isn't such an amount, or is zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w+)", text.strip())
    count = int(float(match[1]) * _BYTES[match[2]]) if match and match[2] in _BYTES else 0
    if not count:
        raise SettingError(setting, f'must be an amount like "20GiB", in one of {", ".join(_BYTES)}; it is "{text}"')
    return count


def format_bytes(count: int) -> str:
    """Format a number of bytes.

    >>> format_bytes(512 * 2**20), format_bytes(3_300_000_000)
    ('512 MiB', '3.1 GiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def format_duration(seconds: float) -> str:
    """Format a duration.

    >>> [format_duration(seconds) for seconds in (4.2, 192.0, 5_400.0, 1e6)]
    ['4.2 s', '3.2 min', '90 min', '12 days']
    """
    for unit, size in _DURATIONS:
        if seconds < 99.5 * size:
            return f"{seconds / size:.{0 if seconds >= 9.95 * size else 1}f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def format_tokens(count: int | None) -> str:
    """Format a number of tokens, or of anything else that is counted in millions; None is unknown.

    >>> [format_tokens(count) for count in (512, 2_097_152, 31_014_912, None)]
    ['512', '2.1M', '31M', '?']
    """
    if count is None:
        return "?"
    for unit, size in _TOKENS:
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0") + unit
    return str(count)


def align_columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Lay out cells in columns, separated by two spaces.

    >>> print(align_columns([("stage", "time"), ("survey", "46 s")], right=(1,)))
    stage   time
    survey  46 s

    Args:
        rows: Rows of equally many cells.
        right: Indices of the right-aligned columns.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def jsonable(value: Any) -> Any:
    """Replace every NaN and infinity in nested dicts, lists and tuples by None, which JSON writes as null.

    >>> jsonable({"loss": float("nan"), "l0": [12.5, 13]})
    {'loss': None, 'l0': [12.5, 13]}
    """
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
