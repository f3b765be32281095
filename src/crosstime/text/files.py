"""Files of text and of records: plain text, JSON lines, CSV, TSV and Parquet, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from crosstime.base.artifact import sha256_of
from crosstime.base.errors import InputError, first_line, nearest
from crosstime.text.sources import Document, Source

BATCH_ROWS = 1000
"""Rows of a Parquet file read at a time."""

_DECOMPRESSORS = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".zst": lambda file: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")),
}


@dataclass(frozen=True)
class Files(Source):
    """Files of documents, one file after another.

    Tables (JSON lines, CSV, TSV, Parquet; see `read_records`) hold one document per record, under `column`; a record
    without text (null, or only white space) is skipped. Any other file is UTF-8 text in which an empty line, or one of
    only white space, ends a document. All but Parquet may be compressed (`.gz`, `.xz`, `.zst`).

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> files = ct.Files([demo.HELDOUT_TEXT])
        >>> files.name
        'heldout.txt.xz'
        >>> next(files.documents()).n_read > 0
        True
    """

    paths: Sequence[Path]
    column: str = "text"

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError("a text needs at least one file")

    @property
    def name(self) -> str:
        """Names of the first files."""
        more = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        return ", ".join(path.name for path in self.paths[:3]) + more

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths if path.is_file())

    def identity(self) -> dict[str, Any]:
        """Return the hash of each file, and the column.

        Raises:
            InputError: A file doesn't exist.
        """
        for path in self.paths:
            if not path.exists():
                raise InputError(f"{path} does not exist")
        stats = [path.stat() for path in self.paths]
        hashes = [_hash(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats, strict=True)]
        return {"files": hashes, "column": self.column}

    def documents(self, resume_point: Sequence[int] | None = None) -> Iterator[Document]:
        """Iterate over the documents after a resume point: a number of files, and of documents in the next one.

        Raises:
            InputError: A file is missing, empty, damaged or not UTF-8 (the message names the offset); or a record is
                malformed or has no such column (file and line).
        """
        first, n_done = resume_point or (0, 0)
        n_before = sum(path.stat().st_size for path in self.paths[:first])
        for number, path in enumerate(self.paths[first:], first):
            count = 0
            for text, n_read in self._read(path):
                if not text.strip():
                    continue
                count += 1
                if count > n_done:
                    yield Document(text, (number, count), n_before + n_read)
            if not count:
                raise InputError(f"{path} is empty: there is no text to read")
            n_done = 0
            n_before += path.stat().st_size

    def _read(self, path: Path) -> Iterator[tuple[str, int]]:
        """The documents of a file, with the bytes read so far."""
        if _format(path) not in _READERS:
            yield from _read_paragraphs(path)
            return
        for where, record, n_read in read_records(path, [self.column]):
            if record[self.column] is not None:
                with errors_at(where):
                    (text,) = text_fields(record, (self.column,))
                yield text, n_read


@lru_cache
def _hash(path: Path, _size: int, _modified: int) -> str:
    """Hash a file's content, once for a file that doesn't change: texts may be large."""
    return sha256_of(path)


def _read_paragraphs(path: Path) -> Iterator[tuple[str, int]]:
    lines, n_read = [], 0
    for line, n_read in read_lines(path):
        if line.strip(" \t"):
            lines.append(line)
        elif lines:
            yield "\n".join(lines), n_read
            lines = []
    yield "\n".join(lines), n_read


def read_lines(path: Path) -> Iterator[tuple[str, int]]:
    r"""Iterate over the lines of a UTF-8 file, each with the bytes of the file read so far.

    Line ends ("\n", "\r\n" or "\r") and a byte order mark are dropped; `.xz`, `.gz` and `.zst` are decompressed.

    Raises:
        InputError: The file doesn't exist, can't be decompressed, or isn't UTF-8 (the message names the byte offset).
    """
    opener = _DECOMPRESSORS.get(path.suffix, nullcontext)
    with _named_errors(path, "cannot be decompressed (is it complete?)"), path.open("rb") as raw, opener(raw) as file:
        offset = 0
        for line in file:
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path} is not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start}; "
                    "convert it to UTF-8 first"
                ) from None
            if not offset:
                text = text.removeprefix("\ufeff")
            offset += len(line)
            for part in text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"):
                yield part, raw.tell()


@contextmanager
def _named_errors(path: Path, damage: str) -> Iterator[None]:
    """Name the file in errors.

    Args:
        path: The file.
        damage: What an error of the library that reads it means.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (IsADirectoryError, NotADirectoryError):
        raise InputError(f"{path} is not a file") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: permission denied") from None
    except (lzma.LZMAError, zlib.error, EOFError, pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own
        raise InputError(f"{path} {damage}: {first_line(error)}") from None


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Say in errors where a record is.

    Raises:
        InputError: As raised inside, but starting with `where`.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


class Record(NamedTuple):
    """One record of a table."""

    where: str
    """File and line, or the like, for messages."""
    values: dict[str, Any]
    """Values by column."""
    n_read: int = 0
    """Bytes of the file read so far."""


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Iterate over the records of a table, whose format is decided by its name.

    `.jsonl`, `.ndjson` and `.json` files hold one JSON object per line, as do files with any other name; `.csv` and
    `.tsv` files start with a line of column names. All but `.parquet` may be compressed (`.gz`, `.xz`, `.zst`).

    Args:
        path: The file.
        columns: Columns that every record must have; of a Parquet file no others are read.

    Raises:
        InputError: The file is missing, empty, damaged or not UTF-8; or a line isn't a record, or has no such column.
    """
    is_empty = True
    for record in _READERS.get(_format(path), _read_json_lines)(path, columns):
        is_empty = False
        for column in columns or ():
            if column not in record.values:
                raise InputError(f"{record.where}: {no_column(column, list(record.values))}")
        yield record
    if is_empty:
        raise InputError(f"{path} is empty: there is nothing to read")


def _read_json_lines(path: Path, _columns: Sequence[str] | None) -> Iterator[Record]:
    for number, (line, n_read) in enumerate(read_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield Record(where, _parse(line, where), n_read)


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object in {{}}, not {line.strip()[:40]}")
    return record


def _read_csv(path: Path, _columns: Sequence[str] | None) -> Iterator[Record]:
    lines = (f"{line}\n" for line, _ in read_lines(path))
    rows = csv.DictReader(lines, delimiter="\t" if _format(path) == ".tsv" else ",")
    for row in rows:
        where = f"{path}:{rows.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where}: expected {len(rows.fieldnames or ())} columns, as in the first line")
        yield Record(where, row)


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    damage = "is not a parquet file, or is damaged"
    with _named_errors(path, damage), path.open("rb") as raw, pq.ParquetFile(raw) as file:
        names, size, n_rows = file.schema_arrow.names, path.stat().st_size, file.metadata.num_rows
        for column in columns or ():
            if column not in names:
                raise InputError(f"{path}: {no_column(column, names)}")
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for values in batch.to_pylist():
                number += 1
                yield Record(f"{path}, row {number}", values, size * number // n_rows)


_READERS = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""Readers of tables, by suffix."""


def _format(path: Path) -> str:
    """Suffix of a file's name without that of its compression."""
    return (path.with_suffix("") if path.suffix in _DECOMPRESSORS else path).suffix


def no_column(column: str, names: Sequence[str]) -> str:
    """Say that a column is missing, and which are there."""
    return f"there is no column {column!r} among {', '.join(map(repr, names))}{nearest(column, names)}"


def text_fields(record: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Return the strings under some keys of a record.

    Raises:
        InputError: A key is missing or its value isn't a string.
    """
    for key in keys:
        if key not in record:
            raise InputError(f"the key `{key}` is missing")
        if not isinstance(record[key], str):
            raise InputError(f"`{key}` must be a string, not {json.dumps(record[key], default=str)[:40]}")
        # JSON can escape what no encoding can write, and tokenizers refuse.
        if any("\ud800" <= character <= "\udfff" for character in record[key]):
            raise InputError(f"`{key}` holds half of a surrogate pair, which is no character")
    return [record[key] for key in keys]
