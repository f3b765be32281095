"""Errors of libraries, in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
