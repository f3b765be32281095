"""JSON records, one object per line, with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError
from crosstime.text.reading import LINE_END, split_text


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file with one a line, each with its place, "file:line".

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is not a JSON object.
    """
    found = False
    # Not splitlines(): JSON strings may hold the other characters that it cuts at.
    for number, (line, _) in enumerate(split_text(path, LINE_END), start=1):
        if line.strip():
            found = True
            where = f"{path}:{number}"
            yield where, parse_record(line, where)
    if not found:
        raise InputError(f"{path} is empty: there is nothing to read")


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
