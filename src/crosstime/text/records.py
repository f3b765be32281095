"""Records of tables, one after another, with errors that name the file and the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosstime.base.errors import InputError, nearest
from crosstime.text.reading import COMPRESSIONS, LINE_END, read_text, split_text

Record = tuple[str, dict[str, Any]]
"""Where a record is, "file:line", and its values by column."""

BATCH_ROWS = 1000
"""Rows of a Parquet file read at a time."""


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Iterate over the records of a file; its name decides how it is read.

    `.csv` and `.tsv` files have a line of column names, `.parquet` files have columns, and in any other file each line
    is a JSON object. All but Parquet may be compressed (`.gz`, `.xz`, `.zst`).

    Args:
        path: The file.
        columns: Columns that every record must have; Parquet reads no others.

    Raises:
        InputError: The file is missing, empty or not UTF-8; a line isn't a record, or has no such column.
    """
    suffix = (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix
    if suffix == ".parquet":
        records = _read_parquet(path, columns)
    else:
        records = _read_csv(path, _DELIMITERS[suffix]) if suffix in _DELIMITERS else _read_json_lines(path)
    is_empty = True
    for where, record in records:
        is_empty = False
        for column in columns or ():
            if column not in record:
                raise InputError(f"{where}: {no_column(column, list(record))}")
        yield where, record
    if is_empty:
        raise InputError(f"{path} is empty: there is nothing to read")


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def _read_json_lines(path: Path) -> Iterator[Record]:
    # Not splitlines(): JSON strings may hold the other characters that it cuts at.
    for number, (line, _) in enumerate(split_text(path, LINE_END), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_record(line, where)


def _read_csv(path: Path, delimiter: str) -> Iterator[Record]:
    rows = csv.DictReader(StringIO(read_text(path)), delimiter=delimiter)
    for row in rows:
        where = f"{path}:{rows.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where}: expected {len(rows.fieldnames or ())} columns, as in the first line")
        yield where, row


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise InputError(f"{path}: {no_column(column, file.schema_arrow.names)}")
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own
        raise InputError(f"{path} is not a parquet file, or is damaged: {str(error).splitlines()[0]}") from None


def no_column(column: str, names: Sequence[str]) -> str:
    """Say that a column is missing, and which are there."""
    return f"there is no column {column!r} among {', '.join(map(repr, names))}{nearest(column, names)}"


def parse_record(line: str, where: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        InputError: it is not one; `where` is named.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object in {{}}, got {_json_type(record)}")
    return record


def text_fields(record: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """The strings under some keys of a record.

    Raises:
        InputError: a key is missing or its value is not a string.
    """
    for key in keys:
        if key not in record:
            raise InputError(f"the key `{key}` is missing")
        if not isinstance(record[key], str):
            raise InputError(f"`{key}` must be a string, got {_json_type(record[key])}")
        if not _is_unicode(record[key]):
            raise InputError(f"`{key}` holds half of a surrogate pair, which is no character")
    return [record[key] for key in keys]


def _is_unicode(text: str) -> bool:
    """JSON can escape what no encoding can write, and tokenizers refuse."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _json_type(value: Any) -> str:
    names = {
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(type(value), "null")
