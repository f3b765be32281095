"""Mixtures: the blocks of several texts in one file, spread so that every stretch of it has the shares of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from crosstime.text.packing import Blocks

PIECE = 4096
"""Blocks written at a time."""


@dataclass(frozen=True)
class Part:
    """Some blocks of a text, in an order of their own."""

    blocks: Blocks
    rows: Int[np.ndarray, " n"]
    """Which of the blocks, in which order."""


def part(blocks: Blocks, heldout_share: float, shuffle_seed: int | None = None) -> tuple[Part, Part]:
    """Blocks to train on, and those held out of them.

    Args:
        blocks: all of a text.
        heldout_share: how many to hold out: the last ones.
        shuffle_seed: shuffle the blocks before, so that those held out come from everywhere. (Of packed blocks,
            neighbours share a document.)
    """
    n = len(blocks)
    rows = np.arange(n) if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(n)
    cut = n - round(n * heldout_share)
    return Part(blocks, rows[:cut]), Part(blocks, rows[cut:])


def write_mixed(path: Path, parts: Sequence[Part]) -> None:
    """Write the blocks of all parts into one NumPy file, [n_blocks, S], spread evenly; memory does not grow with them.

    Raises:
        OSError: the disk is full.
    """
    first = parts[0].blocks
    shape = (sum(len(part.rows) for part in parts), first.shape[1])
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in _mixed(parts):
            # Not through a memory map: a full disk would kill the process there.
            file.write(piece.data)


def _mixed(parts: Sequence[Part]) -> Iterator[Blocks]:
    counts = [len(part.rows) for part in parts]
    # The k-th of n blocks of a part stands at (k + 1/2)/n of the whole; where two fall together, the earlier part's.
    places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    order = np.argsort(places, kind="stable")
    owner = np.repeat(np.arange(len(parts)), counts)[order]
    row = np.concatenate([part.rows for part in parts])[order]
    for start in range(0, len(order), PIECE):
        owners, rows = owner[start : start + PIECE], row[start : start + PIECE]
        piece = np.empty((len(rows), parts[0].blocks.shape[1]), dtype=parts[0].blocks.dtype)
        for number, part in enumerate(parts):
            piece[owners == number] = part.blocks[rows[owners == number]]
        yield piece
