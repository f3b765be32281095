"""Packing: how the tokens of documents become blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import UInt
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.text.positions import Positions

Blocks = UInt[np.ndarray, "n_blocks S"]
Rest = UInt[np.ndarray, "_"]


@dataclass(frozen=True)
class Frame:
    """What all blocks of a corpus share."""

    context: int
    """Tokens of a block, S."""
    bos: tuple[int, ...]
    """What each block begins with: BOS, or nothing."""
    separator: tuple[int, ...]
    """What stands between packed documents: EOS (BOS where a tokenizer has no EOS)."""
    dtype: np.dtype
    """uint16 where the vocabulary allows it, else uint32; little-endian, for it is written to files."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, context: int, positions: Positions) -> Frame:
        """The frame that a tokenizer and a policy for position 0 give.

        Raises:
            InputError: the context leaves no room for text.
        """
        bos = tuple(positions.bos_ids(tokenizer))
        if context <= len(bos):
            raise InputError(
                f"context = {context} leaves no room for text: a block needs at least {len(bos) + 1} tokens"
            )
        ends = [token for token in (tokenizer.eos_token_id, tokenizer.bos_token_id) if isinstance(token, int)]
        return cls(context, bos, tuple(ends[:1]), np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4"))

    @property
    def room(self) -> int:
        """Tokens of text in a block."""
        return self.context - len(self.bos)

    def blocks(self, text: UInt[np.ndarray, "n_blocks room"]) -> Blocks:
        """Rows of text, each with what a block begins with."""
        first = np.tile(np.array(self.bos, dtype=self.dtype), (len(text), 1))
        return np.concatenate([first, text], axis=1)


@dataclass(frozen=True, kw_only=True)
class Packing(ABC):
    """A rule that makes blocks of documents. A new rule is a new class with these members."""

    min_characters: int = 0
    """Pass over documents of fewer characters, which saves tokenising them. (The paper: 2048 for BLOOM.)"""

    @abstractmethod
    def least(self, frame: Frame) -> int:
        """The fewest tokens that a document must have.

        Raises:
            InputError: no block could be made of a document that has no more.
        """

    @abstractmethod
    def cut(self, documents: Sequence[Sequence[int]], rest: Rest | None, frame: Frame) -> tuple[Blocks, Rest | None]:
        """Blocks of the next documents.

        Args:
            documents: their token ids.
            rest: what the documents before left for these; None where there were none.

        Returns:
            The blocks, and what is left for the documents that follow.
        """


@dataclass(frozen=True, kw_only=True)
class Packed(Packing):
    """Documents one after another with EOS between them, cut wherever a block is full. No token is lost or padded."""

    min_tokens: int = 0
    """Pass over documents of fewer tokens."""

    def least(self, frame: Frame) -> int:  # noqa: ARG002
        """As `min_tokens` says."""
        return self.min_tokens

    def cut(self, documents: Sequence[Sequence[int]], rest: Rest | None, frame: Frame) -> tuple[Blocks, Rest | None]:
        """See `Packing.cut`; the rest is the beginning of a block."""
        ids = np.fromiter(chain.from_iterable((*frame.separator, *ids) for ids in documents), dtype=frame.dtype)
        if rest is not None:
            ids = np.concatenate([rest, ids])
        elif documents:
            ids = ids[len(frame.separator) :]  # nothing stands before the first document
        end = len(ids) // frame.room * frame.room
        left = ids[end:] if documents else rest
        return frame.blocks(ids[:end].reshape(-1, frame.room)), left


@dataclass(frozen=True, kw_only=True)
class DocumentStart(Packing):
    """Each block is the beginning of one document; what follows in the document is not read (arXiv 2509.05291)."""

    min_tokens: int | None = None
    """Pass over documents of fewer tokens; without it, those that do not fill a block."""

    def least(self, frame: Frame) -> int:
        """As `min_tokens` says; see `Packing.least`."""
        least = frame.room if self.min_tokens is None else self.min_tokens
        if least < frame.room:
            raise InputError(
                f"min_tokens = {least} is too small: a block takes {frame.room} tokens from the beginning of a document"
            )
        return least

    def cut(self, documents: Sequence[Sequence[int]], rest: Rest | None, frame: Frame) -> tuple[Blocks, Rest | None]:
        """See `Packing.cut`; nothing is ever left."""
        starts = np.array([ids[: frame.room] for ids in documents], dtype=frame.dtype)
        return frame.blocks(starts.reshape(-1, frame.room)), rest
