"""Text in files: plain text, JSON lines and parquet, read document by document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosstime.base.artifact import sha256_of
from crosstime.base.errors import InputError
from crosstime.text.reading import COMPRESSIONS, LINE_END, split_text
from crosstime.text.records import no_column, parse_record, text_fields
from crosstime.text.sources import Document, Source

DOCUMENT_END = re.compile(r"\n[ \t]*(?=\n)")
"""In plain text, a line that is empty, or holds only white space, ends a document."""

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")

ROWS = 1000
"""Rows of a parquet file read at a time."""


@dataclass(frozen=True)
class Files(Source):
    """Files of documents, one file after another: what a file holds follows from its name.

    `.jsonl`, `.ndjson` and `.json` (one object a line) and `.parquet` hold a document under `column` in each record; a
    record without text (null, or only white space) is passed over. Anything else is UTF-8 text in which an empty line
    ends a document. All but parquet may be compressed (`.gz`, `.xz`, `.zst`).
    """

    paths: Sequence[Path]
    column: str = "text"

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError("a text needs at least one file")

    @property
    def name(self) -> str:
        """The names of the first files."""
        more = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        return ", ".join(path.name for path in self.paths[:3]) + more

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths if path.is_file())

    def identity(self) -> dict[str, Any]:
        """The hash of each file, and the column.

        Raises:
            InputError: a file does not exist.
        """
        for path in self.paths:
            if not path.exists():
                raise InputError(f"{path} does not exist")
        stats = [path.stat() for path in self.paths]
        hashes = [_hash(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats, strict=True)]
        return {"files": hashes, "column": self.column}

    def documents(self, place: Sequence[int] | None = None) -> Iterator[Document]:
        """The documents after a place: a number of files, and of documents in the next one.

        Raises:
            InputError: a file is missing, empty or damaged, or not UTF-8 (the offset is named); a line is not a JSON
                object, or a record has no such column (file and line are named).
        """
        first, done = place or (0, 0)
        before = sum(path.stat().st_size for path in self.paths[:first])
        for number, path in enumerate(self.paths[first:], first):
            read = 0
            for text, position in self._read(path):
                read += 1
                if read > done:
                    yield Document(text, (number, read), before + position)
            if not read:
                raise InputError(f"{path} is empty: there is no text to read")
            done = 0
            before += path.stat().st_size

    def _read(self, path: Path) -> Iterator[tuple[str, int]]:
        """The documents of a file, with the bytes read so far."""
        inner = path.with_suffix("") if path.suffix in COMPRESSIONS else path
        if inner.suffix == ".parquet":
            return _parquet_documents(path, self.column)
        if inner.suffix in JSON_SUFFIXES:
            return _json_documents(path, self.column)
        return _text_documents(path)


@lru_cache
def _hash(path: Path, _size: int, _changed: int) -> str:
    """The hash of a file's content, computed once for a file that stays as it is: texts may be large."""
    return sha256_of(path)


def _text_documents(path: Path) -> Iterator[tuple[str, int]]:
    for part, position in split_text(path, DOCUMENT_END):
        document = part.strip("\n")
        if document.strip():
            yield document, position


def _json_documents(path: Path, column: str) -> Iterator[tuple[str, int]]:
    for number, (line, position) in enumerate(split_text(path, LINE_END), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_record(line, where)
        if column not in record:
            raise InputError(f"{where}: {no_column(column, list(record))}")
        if record[column] is None:
            continue
        try:
            (text,) = text_fields(record, (column,))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if text.strip():
            yield text, position


def _parquet_documents(path: Path, column: str) -> Iterator[tuple[str, int]]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            _check_column(path, file.schema_arrow, column)
            size, n_rows, read = path.stat().st_size, file.metadata.num_rows, 0
            for batch in file.iter_batches(ROWS, columns=[column]):
                for text in batch.column(column).to_pylist():
                    read += 1
                    if text is not None and text.strip():
                        yield text, size * read // n_rows
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own
        raise InputError(f"{path} is not a parquet file, or is damaged: {str(error).splitlines()[0]}") from None


def _check_column(path: Path, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise InputError(f"{path}: {no_column(column, schema.names)}")
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{path}: the column `{column}` holds {kind}, not text")
