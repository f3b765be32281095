"""Corpora: text as blocks of token ids, in memory or in files that survive any interruption."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from crosstime.base.artifact import write_text
from crosstime.base.errors import InputError
from crosstime.models.tokenizer import fingerprint
from crosstime.text.files import Files
from crosstime.text.packing import Blocks, Packed, Packing, Tokenisation, TokeniseProgress, blocks_within
from crosstime.text.positions import Positions
from crosstime.text.sources import Source, Strings

BLOCKS = "blocks.bin"
PROGRESS = "progress.json"

SECONDS_TO_KEEP = 60.0
"""Unfinished tokens of other settings that took longer are for the user to delete; others are begun anew."""


@dataclass(frozen=True)
class Corpus:
    """Text as blocks of token ids, all of one length.

    By default, documents are packed one after another, separated by the EOS token (BOS if a tokenizer has no EOS). A
    block is BOS, if the policy for position 0 asks for it, and the next tokens of that stream. Nothing is padded.
    `crosstime.text.packing` has other rules.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> tokenizer = ct.Suite.from_folder(demo.SUITE, ["step1000", "step3786"]).tokenizer
        >>> corpus = ct.Corpus.from_text(demo.HELDOUT_TEXT, tokenizer, context=64, limit_tokens=6400)
        >>> corpus.blocks.shape
        (100, 64)
        >>> training, heldout = corpus.split(0.1)
        >>> len(training), len(heldout)
        (90, 10)
    """

    blocks: Blocks
    """Token ids, uint16 if the vocabulary fits, else uint32. They may lie in a file (np.memmap)."""
    name: str
    bos: bool = True
    """Whether each block starts with BOS."""

    @classmethod
    def from_text(
        cls,
        text: Source | Path | str | Sequence[Path | str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        positions: Positions = Positions(),  # noqa: B008
        limit_tokens: int | None = None,
        packing: Packing = Packed(),  # noqa: B008
        folder: Path | None = None,
    ) -> Corpus:
        """Tokenise text.

        Args:
            text: A file or several in order: plain text (an empty line ends a document), or tables with a column
                `text`; or a source: `Files` with another column, or `HubText`.
            tokenizer: Tokenizer of the models that will read the blocks.
            context: Tokens per block, S.
            positions: Whether each block starts with BOS.
            limit_tokens: Largest number of tokens, from the beginning of the text.
            packing: How documents become blocks.
            folder: Keep the blocks in a file there instead of in memory, and resume an earlier call.

        Raises:
            InputError: The text can't be read, is empty or too short for one block; the limit is less than one block;
                or `folder` was begun with another text or other settings.
        """
        if not isinstance(text, Source):
            text = Files([Path(path) for path in ([text] if isinstance(text, str | Path) else text)])
        tokenisation = Tokenisation(text, tokenizer, context, positions, packing)
        limit = blocks_within(limit_tokens, context)
        if folder is not None:
            blocks = TokenFile(Path(folder), tokenisation).fill(limit)
        else:
            blocks = np.concatenate([blocks for blocks, _ in tokenisation.steps(limit)])[:limit]
        return cls(blocks, text.name, positions.bos)

    @classmethod
    def from_strings(
        cls,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        positions: Positions = Positions(),  # noqa: B008
        packing: Packing = Packed(),  # noqa: B008
    ) -> Corpus:
        """Tokenise texts in memory, each of which is one document; arguments and errors as for `from_text`."""
        return cls.from_text(Strings(texts), tokenizer, context=context, positions=positions, packing=packing)

    @classmethod
    def open(cls, path: Path | str, *, bos: bool) -> Corpus:
        """Map the blocks in a NumPy file, [n_blocks, S], such as `tokens/train.npy` of a run, into memory.

        Raises:
            InputError: The file is missing or doesn't hold blocks of tokens.
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
        """Tokens per block, S."""
        return self.blocks.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens in all blocks, BOS included."""
        return self.blocks.size

    def take(self, n_blocks: int) -> Corpus:
        """Take the first `n_blocks` blocks, or all if there are fewer."""
        return replace(self, blocks=self.blocks[:n_blocks])

    def split(self, heldout_fraction: float) -> tuple[Corpus, Corpus]:
        """Split off the last `heldout_fraction` of the blocks.

        Raises:
            InputError: The fraction isn't between 0 and 1, or one part would hold no block.
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


@dataclass(frozen=True)
class TokenFile:
    """A folder with the blocks of one tokenisation, and a JSON file with the progress that they stand for.

    New blocks are appended and synced before the progress is written, which happens whole or not at all. So a killed
    process leaves a progress and perhaps some bytes after it, which are cut off at the next start.
    """

    folder: Path
    tokenisation: Tokenisation

    def fill(self, limit: int | None = None) -> Blocks:
        """Tokenise from the saved progress until there are `limit` blocks, or to the end of the source.

        Returns:
            The blocks, mapped from the file: memory doesn't grow with them.

        Raises:
            InputError: The folder was begun with another text or other settings (named), or is damaged; or the source
                can't be read, or is too short for one block.
            OSError: The disk is full; what was saved before the last step is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        progress, seconds = self._restore()
        if not progress.ended:
            begin = time.perf_counter() - seconds
            with (self.folder / BLOCKS).open("ab") as file:
                for blocks, after in self.tokenisation.steps(limit, progress):
                    file.write(np.ascontiguousarray(blocks).data)
                    file.flush()
                    os.fsync(file.fileno())
                    self._save(after, time.perf_counter() - begin)
                    progress = after
        layout = self.tokenisation.layout
        shape = (progress.blocks, layout.context)
        return np.memmap(self.folder / BLOCKS, dtype=layout.dtype, mode="r", shape=shape)[:limit]

    def _restore(self) -> tuple[TokeniseProgress, float]:
        """Return the saved progress and the seconds that it took, and cut off what lies after it."""
        saved, layout = read_progress(self.folder), self.tokenisation.layout
        if saved is None or not self._can_resume(saved):
            progress, seconds = TokeniseProgress(), 0.0
        else:
            remainder, seconds = saved["progress"].pop("remainder"), saved["seconds"]
            ids = None if remainder is None else np.array(remainder, dtype=layout.dtype)
            progress = TokeniseProgress(**saved["progress"], remainder=ids)
        size = progress.blocks * layout.context * layout.dtype.itemsize
        with (self.folder / BLOCKS).open("ab") as file:
            if file.tell() < size:
                raise InputError(f"{self.folder / BLOCKS} is damaged: delete the folder {self.folder} to start anew")
            file.truncate(size)
        return progress, seconds

    def _save(self, progress: TokeniseProgress, seconds: float) -> None:
        remainder = None if progress.remainder is None else progress.remainder.tolist()
        values = {**vars(progress), "remainder": remainder}
        saved = {"settings": self._settings, "progress": values, "seconds": round(seconds, 3)}
        write_text(self.folder / PROGRESS, json.dumps(saved, indent=1, allow_nan=False) + "\n")

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """All that the blocks depend on, flat, so that a difference can be named. (The limit only ends them.)"""
        tokenisation = self.tokenisation
        packing = {f"packing.{name}": value for name, value in vars(tokenisation.packing).items()}
        return {
            "tokenizer": fingerprint(tokenisation.tokenizer),
            "context": tokenisation.context,
            "bos": tokenisation.positions.bos,
            "packing": type(tokenisation.packing).__name__,
            **packing,
            **{f"text.{name}": value for name, value in tokenisation.source.identity().items()},
        }

    def _can_resume(self, saved: Mapping[str, Any]) -> bool:
        """Whether the saved progress was begun with the same text and settings."""
        then, now = saved["settings"], self._settings
        changed = [
            f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if changed and saved["seconds"] > SECONDS_TO_KEEP:
            raise InputError(
                f"the unfinished tokens in {self.folder} were begun with another text or other settings "
                f"({'; '.join(changed)[:400]}): restore those to resume, or delete that folder to start anew"
            )
        return not changed


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Read `settings`, `progress` and `seconds` of a `TokenFile`; None if nothing has been saved."""
    try:
        return json.loads((folder / PROGRESS).read_bytes())
    except FileNotFoundError:
        return None
