"""A corpus: text packed into blocks of tokens, all of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.text.blocks import Tokenisation, blocks_of
from crosstime.text.files import Files
from crosstime.text.packing import Blocks, Packed, Packing
from crosstime.text.positions import Positions
from crosstime.text.sources import Source, Strings
from crosstime.text.token_file import TokenFile


@dataclass(frozen=True)
class Corpus:
    """Text as blocks of token ids.

    By default, documents are packed one after another, separated by the EOS token (BOS where a tokenizer has no EOS); a
    block is BOS, where the policy for position 0 says so, and the next tokens of that stream. Nothing is padded. Other
    ways are in `crosstime.text.packing`.
    """

    blocks: Blocks
    """Token ids, uint16 where the vocabulary allows it, else uint32. They may lie in a file (np.memmap)."""
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
        packing: Packing = Packed(),  # noqa: B008
        column: str = "text",
        folder: Path | None = None,
    ) -> Corpus:
        """Read files of text: plain (an empty line ends a document), JSON lines or parquet; see `Files`.

        Args:
            paths: one file or several, in order.
            column: the key or column of the documents, in files of records.
            tokenizer, context, positions, limit_tokens, packing, folder: see `from_source`.

        Raises:
            InputError: a file is missing, empty, damaged or not UTF-8, a record has no such column; see also
                `from_source`.
        """
        files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        return cls.from_source(
            Files(files, column),
            tokenizer,
            context=context,
            positions=positions,
            limit_tokens=limit_tokens,
            packing=packing,
            folder=folder,
        )

    @classmethod
    def from_strings(
        cls,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        positions: Positions = Positions(),  # noqa: B008
        packing: Packing = Packed(),  # noqa: B008
        name: str = "texts",
    ) -> Corpus:
        """Read texts, each of which is one document.

        Raises:
            InputError: the texts are empty or too short for one block.
        """
        return cls.from_source(Strings(texts, name), tokenizer, context=context, positions=positions, packing=packing)

    @classmethod
    def from_source(
        cls,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        positions: Positions = Positions(),  # noqa: B008
        limit_tokens: int | None = None,
        packing: Packing = Packed(),  # noqa: B008
        folder: Path | None = None,
    ) -> Corpus:
        """Read the documents of a source: files, or a data set on the hub (`HubText`).

        Args:
            source: gives the documents.
            tokenizer: of the models that will read the blocks.
            context: tokens in a block, S.
            positions: whether each block starts with BOS.
            limit_tokens: make at most this many tokens, from the beginning of the text.
            packing: how documents become blocks.
            folder: keep the blocks in a file there instead of in memory, and go on where an earlier call was cut off.

        Raises:
            InputError: the source cannot be read, is empty or too short for one block; the limit is less than one
                block; or what `folder` holds was begun with another text or other settings.
        """
        tokenisation = Tokenisation(source, tokenizer, context, positions, packing)
        limit = None if limit_tokens is None else blocks_of(limit_tokens, context)
        if folder is not None:
            blocks = TokenFile(Path(folder), tokenisation).fill(limit)
        else:
            blocks = np.concatenate([blocks for blocks, _ in tokenisation.steps(limit)])[:limit]
        return cls(blocks, source.name, positions.bos)

    @classmethod
    def open(cls, path: Path | str, *, bos: bool) -> Corpus:
        """Blocks in a NumPy file, [n_blocks, S], such as `tokens/train.npy` of a run; they are mapped, not read.

        Raises:
            InputError: the file is missing or does not hold blocks of tokens.
        """
        path = Path(path)
        try:
            blocks = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist") from None
        except (ValueError, EOFError) as error:
            raise InputError(f"{path} is not a NumPy file of token blocks: {error}") from None
        if blocks.ndim != 2 or blocks.dtype.kind != "u" or not len(blocks):
            raise InputError(
                f"{path} holds {blocks.dtype} {blocks.shape}: expected blocks of tokens, unsigned, [n_blocks, S]"
            )
        return cls(blocks, path.name, bos)

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
            InputError: the fraction is not between 0 and 1, or one part would hold no block.
        """
        if not 0 < heldout_fraction < 1:
            raise InputError(f"the held-out fraction must lie between 0 and 1, got {heldout_fraction}")
        cut = len(self) - round(len(self) * heldout_fraction)
        if not 0 < cut < len(self):
            raise InputError(
                f"{self.name} has {len(self)} blocks of {self.context} tokens: too few to hold out {heldout_fraction}; "
                "give more text"
            )
        return replace(self, blocks=self.blocks[:cut]), replace(self, blocks=self.blocks[cut:])
