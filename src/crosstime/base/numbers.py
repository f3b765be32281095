"""Numbers as JSON can hold them, and as a sentence says them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_UNITS = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3))


def finite(value: Any) -> Any:
    """The value, nested as it may be, with None (JSON's null) in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def token_count(count: int | None) -> str:
    """A number of tokens: "524K", "2.1M", "31M", "4.2B", or "?" where it is unknown."""
    if count is None:
        return "?"
    for unit, size in _UNITS:
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0") + unit
    return str(count)
