"""Text in the cells of a spreadsheet, which takes one that begins with = + - or @ for a formula and runs it."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What runs, and what would be taken for a guarded form of it."""


def guarded(text: str) -> str:
    """The text as a spreadsheet leaves it alone: with an apostrophe before it where it would run."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguarded(cell: str) -> str:
    """The text that `guarded` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
