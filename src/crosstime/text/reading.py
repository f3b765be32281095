"""Reading text files piece by piece: UTF-8, plain or compressed, with errors that say where."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from crosstime.base.errors import InputError

PIECE = 1 << 20
"""Bytes read at a time."""

LINE_END = re.compile(r"\n")

_OPENERS = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
}

COMPRESSIONS = tuple(_OPENERS)
"""Suffixes of compressed files."""


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file (`.xz`, `.gz` and `.zst` are decompressed), without a byte order mark, lines ending in
    `\\n`.

    Raises:
        InputError: the file does not exist, cannot be decompressed, or is not UTF-8 (the byte offset is named).
    """
    with _Reader(Path(path)) as reader:
        return "".join(iter(lambda: reader.read(PIECE), ""))


def split_text(path: Path, separator: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    """The parts of a text file between the matches of `separator`, each with the bytes of the file read so far.

    Only the part at hand is in memory. A separator may look ahead but not behind.

    Raises:
        InputError: see `read_text`.
    """
    with _Reader(path) as reader:
        rest = ""
        # A part without an end in sight is searched again with each piece, so the pieces grow with it.
        while piece := reader.read(max(PIECE, len(rest))):
            *parts, rest = separator.split(rest + piece)
            for part in parts:
                yield part, reader.position
        yield rest, reader.position


class _Reader:
    """Decodes a file as it is read. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
        self._n_bytes = 0

    def __enter__(self) -> _Reader:
        with _named_errors(self.path):
            self._raw = self.path.open("rb")
            opener = _OPENERS.get(self.path.suffix)
            self._file: IO[bytes] | Any = opener(self._raw) if opener else self._raw
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._raw.close()

    @property
    def position(self) -> int:
        """Bytes read of the file as it lies on disk."""
        return self._raw.tell()

    def read(self, size: int) -> str:
        """The text of the next bytes, about `size` of them; empty at the end of the file."""
        while True:
            with _named_errors(self.path):
                raw = self._file.read(size)
            self._n_bytes += len(raw)
            try:
                text = self._decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                # What is decoded may begin with some bytes of the piece before.
                offset = self._n_bytes - len(error.object) + error.start
                raise InputError(
                    f"{self.path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset}; "
                    "convert it to UTF-8 first"
                ) from None
            if text or not raw:
                return text


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (IsADirectoryError, NotADirectoryError):
        raise InputError(f"{path} is not a file") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: permission denied") from None
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own, not a decompressor's
        raise InputError(f"{path} cannot be decompressed: {error}; is it complete?") from None
