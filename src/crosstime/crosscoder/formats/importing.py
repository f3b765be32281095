"""Reading a crosscoder in whatever format it lies on disk or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from crosstime.base.errors import InputError, nearest
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats import ckkissane, dictionary_learning, llamascopium, own, paper
from crosstime.crosscoder.formats.source import locate
from crosstime.crosscoder.formats.stated import Stated
from crosstime.text.positions import Positions


class Format(Protocol):
    """What the module of a format offers."""

    @staticmethod
    def fits(path: Path, /) -> bool:
        """Whether a file or folder is of this format."""
        ...

    @staticmethod
    def read(path: Path, stated: Stated, /) -> Crosscoder:
        """Read it."""
        ...


FORMATS: dict[str, Format] = {
    "crosstime": own,
    "paper": paper,
    "ckkissane": ckkissane,
    "llamascopium": llamascopium,
    "dictionary-learning": dictionary_learning,
}
"""A new format is a new module and a line here. Of two that fit, the first is taken."""


def import_crosscoder(
    source: str | Path,
    format: str | None = None,
    *,
    checkpoints: Sequence[str] | None = None,
    layer: int | None = None,
    scale: Sequence[float] | None = None,
    tokens: Sequence[int | None] | None = None,
    positions: Positions | None = None,
    revision: str | None = None,
) -> Crosscoder:
    """Read a crosscoder of ours or of another project (docs/formats.md); it computes what it computed there.

    What is stated here stands in place of what the files say; but for scale factors, which are theirs where they have
    them.

    Args:
        source: a folder or a file of weights; or on the hub "owner/name", or "owner/name:path" for what lies deeper.
        format: one of `FORMATS`; without it, that which fits.
        checkpoints: their names, in the order of training, which must be that of the file.
        layer: the block whose output is read, counted from 0.
        scale: the factor that each checkpoint's activations were multiplied with in training.
        tokens: tokens that each checkpoint had seen.
        positions: the policy for position 0 that it was trained under.
        revision: of the hub's repository.

    Raises:
        InputError: nothing is there, or nothing of a known format; a file is damaged, or a pickle that could run code;
            something is needed that nobody says; or a part of the crosscoder has no counterpart here.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"there is no format {format!r}{nearest(format, FORMATS)}")
    path = locate(str(source), revision)
    fitting = [name for name, known in FORMATS.items() if known.fits(path)] if format is None else [format]
    if not fitting:
        raise InputError(f"{path} holds no crosscoder of a known format ({', '.join(FORMATS)}): name one with `format`")
    stated = Stated(checkpoints=checkpoints, layer=layer, tokens=tokens, scale=scale, positions=positions)
    return FORMATS[fitting[0]].read(path, stated)
