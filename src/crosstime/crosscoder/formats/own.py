"""Our own format, read as `Crosscoder.from_pretrained` reads it."""

from __future__ import annotations

from pathlib import Path

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import config_in
from crosstime.crosscoder.formats.stated import Stated


def fits(path: Path) -> bool:
    """Whether a folder is of this format, of any version."""
    return str(config_in(path).get("format")).startswith("crosstime-crosscoder-")


def read(path: Path, stated: Stated) -> Crosscoder:
    """Read a folder; it says everything itself.

    Raises:
        InputError: see `Crosscoder.from_pretrained`; or something was stated.
    """
    if stated != Stated():
        raise InputError(f"{path} is a crosscoder of crosstime and says itself what it reads: state nothing")
    return Crosscoder.from_pretrained(path)
