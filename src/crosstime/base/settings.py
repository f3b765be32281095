"""What the settings dataclasses of all packages share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosstime.base.errors import SettingError

ASIDE = {"matters": False}
"""Metadata of a field that changes how something is computed, never what comes out: it makes no artifact stale."""


def check_at_least(least: int, **settings: int | None) -> None:
    """Check that settings aren't below a minimum; None passes.

    Example:
        >>> check_at_least(1, blocks=64, max_pairs=None)
        >>> check_at_least(1, blocks=0)
        Traceback (most recent call last):
        crosstime.base.errors.SettingError: blocks must be at least 1, not 0

    Raises:
        SettingError: One of them is below it.
    """
    for name, value in settings.items():
        if value is not None and value < least:
            raise SettingError(name, f"must be at least {least}, not {value}")


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ, or that only one of two sets of settings has.

    >>> differing({"lr": 0.1, "seed": 1}, {"lr": 0.1, "seed": 2, "steps": 10})
    ['seed', 'steps']
    """
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
