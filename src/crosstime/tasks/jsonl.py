"""A user's minimal pairs: one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError
from crosstime.tasks.task import Pair, Task
from crosstime.text.records import read_records, text_fields

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
        InputError: the file is missing, empty or not UTF-8; or a line is not a JSON object of that form: file and line
            are named.
    """
    path = Path(path)
    pairs = []
    for where, record in read_records(path):
        try:
            pairs.append(_pair(record))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
    return Task.from_pairs(name or path.name.split(".")[0], pairs)


def _pair(record: dict[str, Any]) -> Pair:
    """One record as a pair, in all the forms that it holds or that follow from it."""
    sentences = next((keys for keys in SENTENCES if any(key in record for key in keys)), None)
    has_answers = any(key in record for key in ANSWERS)
    if not has_answers and sentences is None:
        found = ", ".join(f"`{key}`" for key in record) or "nothing"
        raise InputError(f"expected {FORMS}; found {found}")
    good, bad = text_fields(record, sentences) if sentences else (None, None)
    prefix, right, wrong = text_fields(record, ANSWERS) if has_answers else (None, None, None)
    (patch,) = text_fields(record, ("patch",)) if "patch" in record else (None,)
    for key, text in (("right", right), ("wrong", wrong), ("good", good), ("bad", bad), ("patch", patch)):
        if text is not None and not text.strip():
            raise InputError(f"`{key}` is empty")
    if good is not None and bad is not None and prefix is None:
        return Pair.from_sentences(good, bad, patch)
    return Pair(good, bad, prefix, right, wrong, patch)
