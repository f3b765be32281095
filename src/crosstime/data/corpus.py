"""A corpus: text packed into blocks of tokens, all of one length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crosstime.data.positions import Positions
from crosstime.data.text import read_text
from crosstime.data.tokens import encode

BATCH_CHARACTERS = 2_000_000
"""Documents are tokenised in batches of about this size: enough for all cores, and a limit on tokens saves work."""


@dataclass(frozen=True)
class Corpus:
    """Text as blocks of token ids.

    Documents are packed one after another, separated by the EOS token (BOS where a tokenizer has no EOS); a block is
    BOS, where the policy for position 0 says so, and the next tokens of that stream. Nothing is padded.
    """

    blocks: UInt[np.ndarray, "n_blocks S"]
    """Token ids, uint16 where the vocabulary allows it, else uint32."""
    name: str
    bos: bool = True
    """Whether each block starts with BOS."""

    @classmethod
    def from_text(
        cls,
        paths: Path | str | Sequence[Path | str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        positions: Positions = Positions(),  # noqa: B008
        limit_tokens: int | None = None,
    ) -> Corpus:
        """Read UTF-8 text files (`.txt`, `.txt.xz`, `.txt.gz`), in which an empty line ends a document.

        Args:
            paths: one file or several, in order.
            tokenizer: of the models that will read the blocks.
            context: tokens in a block, S.
            positions: whether each block starts with BOS.
            limit_tokens: make at most this many tokens, from the beginning of the text.

        Raises:
            ValueError: a file is missing, not UTF-8, or cannot be decompressed; the text is empty or too short for one
                block; the limit is less than one block.
        """
        files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        if not files:
            raise ValueError("a corpus needs at least one text file")
        name = ", ".join(path.name for path in files)
        documents: list[str] = []
        for path in files:
            text = read_text(path)
            if not text.strip():
                raise ValueError(f"{path} is empty: there is no text to read")
            documents += _documents(text)
        return _pack(documents, tokenizer, context, positions, limit_tokens, name)

    @classmethod
    def from_strings(
        cls,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        positions: Positions = Positions(),  # noqa: B008
        name: str = "texts",
    ) -> Corpus:
        """Pack texts, each of which is one document.

        Raises:
            ValueError: the texts are empty or too short for one block.
        """
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError("the texts are empty: there is nothing to read")
        return _pack(texts, tokenizer, context, positions, None, name)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def context(self) -> int:
        """Tokens in a block."""
        return self.blocks.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens in all blocks, BOS included."""
        return self.blocks.size

    def take(self, n_blocks: int) -> Corpus:
        """The first blocks, at most `n_blocks` of them."""
        return replace(self, blocks=self.blocks[:n_blocks])

    def split(self, heldout_fraction: float) -> tuple[Corpus, Corpus]:
        """Cut into two by whole blocks: the beginning, and the last `heldout_fraction` of it.

        Raises:
            ValueError: the fraction is not between 0 and 1, or one part would hold no block.
        """
        if not 0 < heldout_fraction < 1:
            raise ValueError(f"the held-out fraction must lie between 0 and 1, got {heldout_fraction}")
        cut = len(self) - round(len(self) * heldout_fraction)
        if not 0 < cut < len(self):
            raise ValueError(
                f"{self.name} has {len(self)} blocks of {self.context} tokens: too few to hold out {heldout_fraction}; "
                "give more text"
            )
        return replace(self, blocks=self.blocks[:cut]), replace(self, blocks=self.blocks[cut:])


def _documents(text: str) -> list[str]:
    """The documents of a text; a line that is empty, or holds only white space, ends one."""
    documents = (document.strip("\n") for document in re.split(r"\n[ \t]*(?=\n)", text))
    return [document for document in documents if document.strip()]


def _pack(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    positions: Positions,
    limit_tokens: int | None,
    name: str,
) -> Corpus:
    """Tokenise documents and cut the stream of their tokens into blocks."""
    bos = positions.bos_ids(tokenizer)
    if context <= len(bos):
        raise ValueError(f"context = {context} leaves no room for text: a block needs at least {len(bos) + 1} tokens")
    if limit_tokens is not None and limit_tokens < context:
        raise ValueError(f"a limit of {limit_tokens} tokens is less than one block of {context}")
    new = context - len(bos)
    wanted = None if limit_tokens is None else limit_tokens // context * new
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32

    parts: list[np.ndarray] = []
    n_stream = 0
    for ids in _token_stream(documents, tokenizer, name):
        parts.append(np.fromiter(ids, dtype=dtype))
        n_stream += len(parts[-1])
        if wanted is not None and n_stream >= wanted:
            break
    if n_stream < new:
        raise ValueError(
            f"{name} has only {n_stream} tokens, fewer than one block of context = {context}: "
            "give more text or a smaller context"
        )
    n_blocks = (n_stream if wanted is None else min(n_stream, wanted)) // new
    stream = np.concatenate(parts)[: n_blocks * new].reshape(n_blocks, new)
    first = np.tile(np.array(bos, dtype=dtype), (n_blocks, 1))
    return Corpus(np.concatenate([first, stream], axis=1), name, positions.bos)


def _token_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, name: str) -> Iterator[Iterable[int]]:
    """The tokens of some documents at a time, with the token that separates documents between them."""
    ends = [token for token in (tokenizer.eos_token_id, tokenizer.bos_token_id) if isinstance(token, int)]
    separator = ends[:1]
    total = sum(map(len, documents))
    first = True
    with tqdm(total=total, desc=f"tokens of {name}", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for batch in _batches(documents):
            encoded = encode(tokenizer, batch)
            between = chain.from_iterable([*separator, *ids] for ids in encoded)
            ids = list(between)
            yield ids[len(separator) :] if first else ids
            first = False
            bar.update(sum(map(len, batch)))


def _batches(documents: Sequence[str]) -> Iterator[list[str]]:
    """Documents in order, in groups of about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
