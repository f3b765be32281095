"""The token file: blocks on disk, and how far the text behind them has been read, so that any kill can be survived."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crosstime.base.artifact import write_text
from crosstime.base.errors import InputError
from crosstime.models.tokenizer import fingerprint
from crosstime.text.blocks import Progress, Tokenisation
from crosstime.text.packing import Blocks

BLOCKS = "blocks.bin"
POSITION = "position.json"

SECONDS_TO_KEEP = 60.0
"""Unfinished tokens of other settings that took longer are for the user to delete; others are begun anew."""


@dataclass(frozen=True)
class TokenFile:
    """A folder with the blocks of one tokenisation, and a JSON file that says how many of them count.

    New blocks are appended and synced before the position moves past them, and the position is written whole or not at
    all: what a kill leaves is a position and perhaps some bytes after it, which are cut off at the next start.
    """

    folder: Path
    tokenisation: Tokenisation

    def fill(self, limit: int | None = None) -> Blocks:
        """Tokenise from where the file stands until it holds `limit` blocks, or the whole source.

        Returns:
            The blocks, mapped from the file: memory does not grow with them.

        Raises:
            InputError: the file was begun with other settings or another text (named), or is damaged; or the source
                cannot be read, or is too short for one block.
            OSError: the disk is full; the file stands as it stood before the last step.
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
                    self._write_position(after, time.perf_counter() - begin)
                    progress = after
        return self._map(progress.blocks)[:limit]

    def _restore(self) -> tuple[Progress, float]:
        """How far the file stands, and the seconds that it took; what lies after that is cut off."""
        saved = read_position(self.folder)
        if saved is None or not self._goes_on(saved):
            progress, seconds = Progress(), 0.0
        else:
            rest, seconds = saved["progress"].pop("rest"), saved["seconds"]
            ids = None if rest is None else np.array(rest, dtype=self.tokenisation.frame.dtype)
            progress = Progress(**saved["progress"], rest=ids)
        with (self.folder / BLOCKS).open("ab") as file:
            if file.tell() < self._size(progress.blocks):
                raise InputError(f"{self.folder / BLOCKS} is damaged: delete the folder {self.folder} to start anew")
            file.truncate(self._size(progress.blocks))
        return progress, seconds

    def _write_position(self, progress: Progress, seconds: float) -> None:
        rest = None if progress.rest is None else progress.rest.tolist()
        position = {**vars(progress), "rest": rest}
        saved = {"settings": self._settings, "progress": position, "seconds": round(seconds, 3)}
        write_text(self.folder / POSITION, json.dumps(saved, indent=1, allow_nan=False) + "\n")

    def _map(self, n_blocks: int) -> Blocks:
        frame = self.tokenisation.frame
        return np.memmap(self.folder / BLOCKS, dtype=frame.dtype, mode="r", shape=(n_blocks, frame.context))

    def _size(self, n_blocks: int) -> int:
        """Bytes of so many blocks."""
        return n_blocks * self.tokenisation.frame.context * self.tokenisation.frame.dtype.itemsize

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

    def _goes_on(self, saved: Mapping[str, Any]) -> bool:
        """Whether what is there was begun with the same text and settings."""
        then, now = saved["settings"], self._settings
        changed = [
            f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if changed and saved["seconds"] > SECONDS_TO_KEEP:
            raise InputError(
                f"the unfinished tokens in {self.folder} were begun with another text or other settings "
                f"({'; '.join(changed)[:400]}): put them back to go on, or delete that folder to start anew"
            )
        return not changed


def read_position(folder: Path) -> dict[str, Any] | None:
    """What a token file's folder says of it: `settings`, `progress` and `seconds`; None where nothing is written."""
    try:
        return json.loads((folder / POSITION).read_bytes())
    except FileNotFoundError:
        return None
