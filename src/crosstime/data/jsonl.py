"""A user's minimal pairs: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crosstime.data.task import Pair, Task
from crosstime.data.text import LINE_END, split_text

SENTENCES = (("good", "bad"), ("sentence_good", "sentence_bad"))
ANSWERS = ("prefix", "right", "wrong")
FORMS = "`prefix`, `right` and `wrong`, or `good` and `bad` (or `sentence_good` and `sentence_bad`)"


def load_jsonl(path: Path | str, name: str | None = None) -> Task:
    """Read minimal pairs from a file with one JSON object a line.

    An object holds `prefix`, `right` and `wrong`, or two whole sentences, `good` and `bad` (or `sentence_good` and
    `sentence_bad`); other keys are ignored. Texts are taken as they are: write the space that stands before an answer
    (`{"prefix": "The keys to the cabinet", "right": " are", "wrong": " is"}`). Of two sentences, the words that they
    share at the beginning are the prefix, and the first word that differs is the answer. Beside either form, `patch` is
    a second prefix, for effects against a counterfactual (`{"prefix": "The keys", "patch": "The key", ...}`).

    Args:
        path: a UTF-8 file; empty lines are passed over.
        name: of the task; the file's name by default.

    Raises:
        ValueError: the file is missing, empty or not UTF-8; or a line is not a JSON object of that form: file and line
            are named.
    """
    path = Path(path)
    pairs = []
    for where, record in read_records(path):
        try:
            pairs.append(_pair(record))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Task.from_pairs(name or path.name.split(".")[0], pairs)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file with one a line, each with its place, "file:line".

    Raises:
        ValueError: the file is missing, empty or not UTF-8, or a line is not a JSON object.
    """
    found = False
    # Not splitlines(): JSON strings may hold the other characters that it cuts at.
    for number, (line, _) in enumerate(split_text(path, LINE_END), start=1):
        if line.strip():
            found = True
            where = f"{path}:{number}"
            yield where, parse_record(line, where)
    if not found:
        raise ValueError(f"{path} is empty: there is nothing to read")


def parse_record(line: str, where: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        ValueError: it is not one; `where` is named.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object in {{}}, got {_json_type(record)}")
    return record


def text_fields(record: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """The strings under some keys of a record.

    Raises:
        ValueError: a key is missing or its value is not a string.
    """
    for key in keys:
        if key not in record:
            raise ValueError(f"the key `{key}` is missing")
        if not isinstance(record[key], str):
            raise ValueError(f"`{key}` must be a string, got {_json_type(record[key])}")
        if not _is_unicode(record[key]):
            raise ValueError(f"`{key}` holds half of a surrogate pair, which is no character")
    return [record[key] for key in keys]


def _pair(record: dict[str, Any]) -> Pair:
    """One record as a pair, in all the forms that it holds or that follow from it."""
    sentences = next((keys for keys in SENTENCES if any(key in record for key in keys)), None)
    has_answers = any(key in record for key in ANSWERS)
    if not has_answers and sentences is None:
        found = ", ".join(f"`{key}`" for key in record) or "nothing"
        raise ValueError(f"expected {FORMS}; found {found}")
    good, bad = text_fields(record, sentences) if sentences else (None, None)
    prefix, right, wrong = text_fields(record, ANSWERS) if has_answers else (None, None, None)
    (patch,) = text_fields(record, ("patch",)) if "patch" in record else (None,)
    for key, text in (("right", right), ("wrong", wrong), ("good", good), ("bad", bad), ("patch", patch)):
        if text is not None and not text.strip():
            raise ValueError(f"`{key}` is empty")
    if good is not None and bad is not None and prefix is None:
        return Pair.from_sentences(good, bad, patch)
    return Pair(good, bad, prefix, right, wrong, patch)


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
