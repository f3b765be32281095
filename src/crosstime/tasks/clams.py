"""CLAMS: subject-verb agreement in several languages (Mueller et al. 2020), as published or as JSONL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from crosstime.base.errors import InputError, nearest
from crosstime.tasks.published import published_file, published_files
from crosstime.tasks.task import Pair, Task
from crosstime.text.reading import read_text
from crosstime.text.records import read_records, text_fields

CONSTRUCTIONS = (
    "long_vp_coord",
    "obj_rel_across_anim",
    "obj_rel_within_anim",
    "prep_anim",
    "simple_agrmt",
    "subj_rel",
    "vp_coord",
)
"""Those that English and French share; the files of a language may hold more."""
LANGUAGES = ("en", "fr")
"""Those of arXiv 2509.05291; there are also de, he and ru."""


def load_clams(
    source: Path | str, languages: Sequence[str] = LANGUAGES, constructions: Sequence[str] = CONSTRUCTIONS
) -> Task:
    """CLAMS sets as one task; the source of a pair is "LANGUAGE_CONSTRUCTION".

    Two forms are read. The published one is `{language}_evalset/{construction}.txt`, in which each line holds True or
    False, a tab, and a sentence: the n-th true sentence and the n-th false one are a pair, written with a capital. The
    other is `{language}_{construction}.jsonl` with `sentence_good` and `sentence_bad`. The other fields of the files of
    that form that belong to arXiv 2509.05291 are not read: they are cut for BLOOM's tokenizer. (For the same reason
    those files hold fewer pairs than the published ones.)

    In both, the words that the sentences share at the beginning are the prefix and the next word is the answer. A space
    stands before each sentence, as lm-evaluation-harness scores CLAMS in the paper.

    Args:
        source: a folder, or a dataset repository on the hub ("owner/name"), that holds the files.
        languages: codes, as in the names of the files.
        constructions: as in the names of the files. Sets come in their order, each in all languages.

    Raises:
        InputError: there is no such language or construction (the nearest is named), or a file is malformed (file and
            line are named).
    """
    tasks = [_load(source, language, name) for name in constructions for language in languages]
    return Task.join("clams", tasks)


def _load(source: Path | str, language: str, construction: str) -> Task:
    name = f"{language}_{construction}"
    if (path := published_file(source, f"{name}.jsonl")) is not None:
        return Task.from_pairs(name, list(_from_jsonl(path)))
    if (path := published_file(source, f"{language}_evalset/{construction}.txt")) is not None:
        return Task.from_pairs(name, list(_from_evalset(path)))
    raise InputError(_missing(source, language, construction))


def _from_jsonl(path: Path) -> Iterator[Pair]:
    for where, record in read_records(path):
        try:
            yield _pair(*text_fields(record, ("sentence_good", "sentence_bad")))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None


def _from_evalset(path: Path) -> Iterator[Pair]:
    found: dict[str, list[str]] = {"True": [], "False": []}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        truth, _, sentence = line.partition("\t")
        if truth not in found or not sentence.strip():
            raise InputError(f"{path}:{number}: expected True or False, a tab and a sentence, got {line[:40]!r}")
        sentence = sentence.strip()
        found[truth].append(sentence[0].upper() + sentence[1:])  # not capitalize(): German nouns have capitals
    n_true, n_false = len(found["True"]), len(found["False"])
    if n_true != n_false:
        raise InputError(f"{path} holds {n_true} true and {n_false} false sentences: there must be as many")
    for n, (good, bad) in enumerate(zip(*found.values(), strict=True), start=1):
        try:
            yield _pair(good, bad)
        except ValueError as error:
            raise InputError(f"{path}: pair {n}: {error}") from None


def _pair(good: str, bad: str) -> Pair:
    return Pair.from_sentences(f" {good}", f" {bad}")


def _missing(source: Path | str, language: str, construction: str) -> str:
    """What to say where there is no file of a set."""
    matches = (re.fullmatch(r"(\w\w)_(?:evalset/)?(\w+)\.(?:jsonl|txt)", name) for name in published_files(source))
    sets = [(match[1], match[2]) for match in matches if match]
    if not sets:
        return f"{source} holds no CLAMS sets: expected files named like en_vp_coord.jsonl or en_evalset/vp_coord.txt"
    languages = {found for found, _ in sets}
    if language not in languages:
        return f"CLAMS in {source} has no language {language!r}{nearest(language, sorted(languages))}"
    known = sorted(name for found, name in sets if found == language)
    return f"CLAMS in {source} has no construction {construction!r} in {language!r}{nearest(construction, known)}"
