"""Packing: how documents become blocks of tokens, step by step, so that any step can be the last for a while."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import UInt
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.models.tokenizer import tokenise
from crosstime.text.positions import Positions
from crosstime.text.sources import Document, Source

Blocks = UInt[np.ndarray, "n_blocks S"]
Remainder = UInt[np.ndarray, "_"]
"""Tokens that don't fill a block yet."""

BATCH_CHARACTERS = 2_000_000
"""Documents are tokenised in batches of about this size: enough for all cores, and a limit on tokens saves work."""


@dataclass(frozen=True)
class BlockLayout:
    """What all blocks of a corpus have in common."""

    context: int
    """Tokens per block, S."""
    bos: tuple[int, ...]
    """Ids that each block starts with: BOS, or nothing."""
    separator: tuple[int, ...]
    """Ids between packed documents: EOS (BOS if the tokenizer has no EOS)."""
    dtype: np.dtype
    """uint16 if the vocabulary fits, else uint32; little-endian, since blocks are written to files."""

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, context: int, positions: Positions) -> BlockLayout:
        """Derive the layout from a tokenizer and the policy for position 0.

        Raises:
            InputError: The context leaves no room for text.
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
        """Tokens of text per block."""
        return self.context - len(self.bos)

    def blocks(self, text: UInt[np.ndarray, "n_blocks room"]) -> Blocks:
        """Put BOS, if any, before each row of text."""
        first = np.tile(np.array(self.bos, dtype=self.dtype), (len(text), 1))
        return np.concatenate([first, text], axis=1)


@dataclass(frozen=True, kw_only=True)
class Packing(ABC):
    """A rule that makes blocks of documents. A new rule is a subclass with these methods."""

    min_tokens: int | None = None
    """Skip documents of fewer tokens; default: see the rule."""
    min_characters: int = 0
    """Skip documents of fewer characters, which saves tokenising them. (The paper: 2048 for BLOOM.)"""

    @abstractmethod
    def min_document(self, layout: BlockLayout) -> int:
        """Return the smallest number of tokens of a document that is used.

        Raises:
            InputError: `min_tokens` is too small for this rule.
        """

    @abstractmethod
    def pack(
        self, documents: Sequence[Sequence[int]], remainder: Remainder | None, layout: BlockLayout
    ) -> tuple[Blocks, Remainder | None]:
        """Make blocks of the next documents.

        Args:
            documents: Their token ids.
            remainder: What the documents before left over; None at the beginning.
            layout: Layout of the blocks.

        Returns:
            The blocks, and what is left over for the documents that follow.
        """


@dataclass(frozen=True, kw_only=True)
class Packed(Packing):
    """Documents one after another with EOS between them, cut wherever a block is full. No token is lost or padded.

    All documents are used unless `min_tokens` is given.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> tokenizer = ct.Suite.from_folder(demo.SUITE, ["step1000", "step3786"]).tokenizer
        >>> texts = ["The keys are on the table.", "A dog barked."]
        >>> corpus = ct.Corpus.from_strings(texts, tokenizer, context=6, packing=ct.Packed())
        >>> tokenizer.decode(corpus.blocks[1])
        '<|endoftext|> the table.<|endoftext|>A'
    """

    def min_document(self, layout: BlockLayout) -> int:  # noqa: ARG002
        """See `Packing.min_document`."""
        return self.min_tokens or 0

    def pack(
        self, documents: Sequence[Sequence[int]], remainder: Remainder | None, layout: BlockLayout
    ) -> tuple[Blocks, Remainder | None]:
        """See `Packing.pack`; the remainder is the beginning of a block."""
        ids = np.fromiter(chain.from_iterable((*layout.separator, *ids) for ids in documents), dtype=layout.dtype)
        if remainder is not None:
            ids = np.concatenate([remainder, ids])
        elif documents:
            ids = ids[len(layout.separator) :]  # nothing comes before the first document
        end = len(ids) // layout.room * layout.room
        return layout.blocks(ids[:end].reshape(-1, layout.room)), ids[end:] if documents else remainder


@dataclass(frozen=True, kw_only=True)
class DocumentStart(Packing):
    """Each block is the beginning of one document; the rest of the document isn't used (arXiv 2509.05291).

    Documents that don't fill a block are skipped; `min_tokens` can only ask for longer ones.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> tokenizer = ct.Suite.from_folder(demo.SUITE, ["step1000", "step3786"]).tokenizer
        >>> texts = ["The keys are on the table.", "A dog.", "The children play in the garden."]
        >>> corpus = ct.Corpus.from_strings(texts, tokenizer, context=6, packing=ct.DocumentStart())
        >>> [tokenizer.decode(block) for block in corpus.blocks]
        ['<|endoftext|>The keys are on', '<|endoftext|>The children play in the']
    """

    def min_document(self, layout: BlockLayout) -> int:
        """See `Packing.min_document`."""
        least = layout.room if self.min_tokens is None else self.min_tokens
        if least < layout.room:
            raise InputError(
                f"min_tokens = {least} is too small: a block takes {layout.room} tokens from the start of a document"
            )
        return least

    def pack(
        self, documents: Sequence[Sequence[int]], remainder: Remainder | None, layout: BlockLayout
    ) -> tuple[Blocks, Remainder | None]:
        """See `Packing.pack`; nothing is ever left over."""
        starts = np.array([ids[: layout.room] for ids in documents], dtype=layout.dtype)
        return layout.blocks(starts.reshape(-1, layout.room)), remainder


@dataclass(frozen=True)
class TokeniseProgress:
    """How much of a source has been tokenised: all that's needed to resume."""

    resume_point: Any = None
    """See `Document.resume_point`; None at the beginning."""
    remainder: Remainder | None = None
    """See `Packing.pack`."""
    documents: int = 0
    """Documents read."""
    kept: int = 0
    """Documents that were long enough."""
    tokens: int = 0
    """Tokens of those documents."""
    blocks: int = 0
    """Blocks made."""
    ended: bool = False
    """Whether the source has no more documents."""


@dataclass(frozen=True)
class Tokenisation:
    """A source, and how its documents become blocks."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    context: int
    positions: Positions
    packing: Packing

    @cached_property
    def layout(self) -> BlockLayout:
        """Layout of the blocks."""
        return BlockLayout.from_tokenizer(self.tokenizer, self.context, self.positions)

    def steps(
        self, limit: int | None = None, start: TokeniseProgress | None = None
    ) -> Iterator[tuple[Blocks, TokeniseProgress]]:
        """Iterate over the blocks of a few documents at a time, with the progress after them.

        Args:
            limit: Stop at this many blocks in total, or a few more.
            start: Progress after the last step done before.

        Raises:
            InputError: The source can't be read, or is too short for one block.
        """
        progress, min_document = start or TokeniseProgress(), self.packing.min_document(self.layout)
        documents = self.source.documents(progress.resume_point)
        with self._bar(limit) as bar:
            while not progress.ended and (limit is None or progress.blocks < limit):
                batch = _take(documents)
                texts = [document.text for document in batch if len(document.text) >= self.packing.min_characters]
                encoded = [ids for ids in tokenise(self.tokenizer, texts) if len(ids) >= min_document]
                blocks, remainder = self.packing.pack(encoded, progress.remainder, self.layout)
                progress = TokeniseProgress(
                    resume_point=batch[-1].resume_point if batch else progress.resume_point,
                    remainder=remainder,
                    documents=progress.documents + len(batch),
                    kept=progress.kept + len(encoded),
                    tokens=progress.tokens + sum(map(len, encoded)),
                    blocks=progress.blocks + len(blocks),
                    ended=not batch,
                )
                if progress.ended and not progress.blocks:
                    raise InputError(self._too_short(progress))
                yield blocks, progress
                done = (batch[-1].n_read if batch else None) if limit is None else progress.blocks * self.context
                bar.update((done or bar.n) - bar.n)

    def _bar(self, limit: int | None) -> tqdm:
        """A progress bar of tokens if their number is known, else of the source's size."""
        total, unit = (self.source.size, "B") if limit is None else (limit * self.context, "token")
        title = f"tokens of {self.source.name}"
        return tqdm(total=total, desc=title, unit=unit, unit_scale=True, leave=False, disable=None)

    def _too_short(self, progress: TokeniseProgress) -> str:
        dropped = progress.documents - progress.kept
        others = f" (and {dropped} of its {progress.documents} documents are too short to be used)" if dropped else ""
        return (
            f"{self.source.name} has only {progress.tokens} tokens, fewer than one block of context = {self.context}"
            f"{others}: give more text or a smaller context"
        )


def blocks_within(limit_tokens: int | None, context: int) -> int | None:
    """Return how many blocks a limit on tokens allows; None for no limit.

    Raises:
        InputError: Not one.
    """
    if limit_tokens is None:
        return None
    if limit_tokens < context:
        raise InputError(f"a limit of {limit_tokens} tokens is less than one block of {context}")
    return limit_tokens // context


def _take(documents: Iterator[Document]) -> list[Document]:
    """Take the next documents, of about BATCH_CHARACTERS together; none at the end."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            break
    return batch
