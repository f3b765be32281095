"""The hint of an error message about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """The existing name that looks most like `name`, as a clause to end a message with; empty if there are none."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"; the nearest is {found[0]!r}" if found else ""
