"""From the documents of a source to blocks of tokens, step by step, so that any step can be the last for a while."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.text.packing import Blocks, Frame, Packing, Rest
from crosstime.text.positions import Positions
from crosstime.text.sources import Document, Source
from crosstime.text.tokens import encode

BATCH_CHARACTERS = 2_000_000
"""Documents are tokenised in batches of about this size: enough for all cores, and a limit on tokens saves work."""


@dataclass(frozen=True)
class Progress:
    """How far a source has been tokenised: all that is needed to go on."""

    place: Any = None
    """See `Document.place`; None at the beginning."""
    rest: Rest | None = None
    """See `Packing.cut`."""
    documents: int = 0
    """Documents read."""
    kept: int = 0
    """Those of them that were long enough."""
    tokens: int = 0
    """Tokens of the kept ones."""
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
    def frame(self) -> Frame:
        """What all its blocks share."""
        return Frame.of(self.tokenizer, self.context, self.positions)

    def steps(self, limit: int | None = None, start: Progress | None = None) -> Iterator[tuple[Blocks, Progress]]:
        """The blocks of some documents at a time, with the progress after them.

        Args:
            limit: stop once there are at least this many blocks in all.
            start: the progress after the last step that was done before.

        Raises:
            InputError: the source cannot be read, or is too short for one block.
        """
        progress, least = start or Progress(), self.packing.least(self.frame)
        documents = self.source.documents(progress.place)
        with self._bar(limit) as bar:
            while not progress.ended and (limit is None or progress.blocks < limit):
                batch = _take(documents)
                texts = [document.text for document in batch if len(document.text) >= self.packing.min_characters]
                encoded = [ids for ids in encode(self.tokenizer, texts) if len(ids) >= least]
                blocks, rest = self.packing.cut(encoded, progress.rest, self.frame)
                progress = Progress(
                    place=batch[-1].place if batch else progress.place,
                    rest=rest,
                    documents=progress.documents + len(batch),
                    kept=progress.kept + len(encoded),
                    tokens=progress.tokens + sum(map(len, encoded)),
                    blocks=progress.blocks + len(blocks),
                    ended=not batch,
                )
                if progress.ended and not progress.blocks:
                    raise InputError(self._too_short(progress))
                yield blocks, progress
                done = (batch[-1].position if batch else None) if limit is None else progress.blocks * self.context
                bar.update((done or bar.n) - bar.n)

    def _bar(self, limit: int | None) -> tqdm:
        """Counts tokens where their number is known, else how much of the source has been read."""
        total, unit = (self.source.size, "B") if limit is None else (limit * self.context, "token")
        return tqdm(
            total=total, desc=f"tokens of {self.source.name}", unit=unit, unit_scale=True, leave=False, disable=None
        )

    def _too_short(self, progress: Progress) -> str:
        dropped = progress.documents - progress.kept
        others = f" (and {dropped} of its {progress.documents} documents are too short to be read)" if dropped else ""
        return (
            f"{self.source.name} has only {progress.tokens} tokens, fewer than one block of context = {self.context}"
            f"{others}: give more text or a smaller context"
        )


def blocks_of(limit_tokens: int, context: int) -> int:
    """The blocks that a limit on tokens allows.

    Raises:
        InputError: not one.
    """
    if limit_tokens < context:
        raise InputError(f"a limit of {limit_tokens} tokens is less than one block of {context}")
    return limit_tokens // context


def _take(documents: Iterator[Document]) -> list[Document]:
    """The next documents, of about BATCH_CHARACTERS together; none at the end."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            break
    return batch
