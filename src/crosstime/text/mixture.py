"""Mixtures: blocks of several texts in one file, spread so that every stretch of it has the shares of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from crosstime.text.packing import Blocks

WRITE_BLOCKS = 4096
"""Blocks written at a time."""


@dataclass(frozen=True)
class BlockSubset:
    """Some of a text's blocks, in an order of their own."""

    blocks: Blocks
    index: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.index)


def hold_out(blocks: Blocks, heldout_share: float, shuffle_seed: int | None = None) -> tuple[BlockSubset, BlockSubset]:
    """Split a text's blocks into those to train on and those held out.

    Args:
        blocks: All blocks of the text.
        heldout_share: Share to hold out, from the end.
        shuffle_seed: Shuffle the blocks first, so that those held out come from everywhere. (Neighbours among packed
            blocks share a document.)
    """
    n = len(blocks)
    index = np.arange(n) if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(n)
    cut = n - round(n * heldout_share)
    return BlockSubset(blocks, index[:cut]), BlockSubset(blocks, index[cut:])


def write_mixed(path: Path, subsets: Sequence[BlockSubset]) -> None:
    """Write the blocks of all subsets into one NumPy file, [n_blocks, S], spread evenly, without reading them at once.

    Raises:
        OSError: The disk is full.
    """
    first = subsets[0].blocks
    shape = (sum(map(len, subsets)), first.shape[1])
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for blocks in _mixed(subsets):
            # Not through a memory map: a full disk would kill the process there.
            file.write(blocks.data)


def _mixed(subsets: Sequence[BlockSubset]) -> Iterator[Blocks]:
    # The k-th of a subset's n blocks belongs at (k + 1/2)/n of the whole; of two at one place, the earlier subset's.
    places = np.concatenate([(np.arange(len(subset)) + 0.5) / len(subset) for subset in subsets])
    order = np.argsort(places, kind="stable")
    owner = np.repeat(np.arange(len(subsets)), list(map(len, subsets)))[order]
    index = np.concatenate([subset.index for subset in subsets])[order]
    for start in range(0, len(order), WRITE_BLOCKS):
        owners, rows = owner[start : start + WRITE_BLOCKS], index[start : start + WRITE_BLOCKS]
        mixed = np.empty((len(rows), subsets[0].blocks.shape[1]), dtype=subsets[0].blocks.dtype)
        for number, subset in enumerate(subsets):
            mixed[owners == number] = subset.blocks[rows[owners == number]]
        yield mixed
