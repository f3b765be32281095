"""Reading text files: UTF-8, plain or compressed, with errors that say where."""

from __future__ import annotations

import codecs
import gzip
import lzma
import zlib
from pathlib import Path


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file (`.xz` and `.gz` are decompressed), without a byte order mark, lines ending in `\\n`.

    Raises:
        ValueError: the file does not exist, cannot be decompressed, or is not UTF-8 (the byte offset is named).
    """
    path = Path(path)
    raw = _read_bytes(path)
    start = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset}; convert it to UTF-8 first"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(raw)
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (IsADirectoryError, NotADirectoryError):
        raise ValueError(f"{path} is not a file") from None
    except PermissionError:
        raise ValueError(f"{path} may not be read: permission denied") from None
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}; is it complete?") from None
