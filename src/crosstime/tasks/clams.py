"""CLAMS: subject-verb agreement in several languages (Mueller et al. 2020), as published or as JSONL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crosstime.base.errors import InputError, SettingError, nearest
from crosstime.tasks.columns import read_pairs
from crosstime.tasks.pair_source import PairSource, PublishedFiles, as_tuple
from crosstime.tasks.task import Pair, Task
from crosstime.text.files import errors_at, read_lines, read_records

_COLUMNS = {"good": "sentence_good", "bad": "sentence_bad"}


@dataclass(frozen=True)
class ClamsPairs(PairSource):
    """CLAMS sets; the name of a pair's set is "LANGUAGE_CONSTRUCTION".

    Two forms are read. The published one is `{language}_evalset/{construction}.txt`, each line of which holds True or
    False, a tab, and a sentence: the n-th true sentence and the n-th false one are a pair, capitalised. The other is
    `{language}_{construction}.jsonl` with `sentence_good` and `sentence_bad`. The other fields of such files by
    arXiv 2509.05291 are ignored, since they are cut for BLOOM's tokenizer. (For the same reason those files hold fewer
    pairs than the published ones.)

    In both forms, the words that the sentences share at the beginning are the prefix and the next word is the answer.
    Each sentence gets a space before it, as lm-evaluation-harness scores CLAMS in the paper.

    Example:
        >>> import json, pathlib, tempfile
        >>> import crosstime as ct
        >>> record = {"sentence_good": "The authors laugh", "sentence_bad": "The authors laughs"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "en_simple_agrmt.jsonl").write_text(json.dumps(record))
        ...     task = ct.ClamsPairs(folder, languages="en", constructions="simple_agrmt").load()
        >>> task.pairs[0].prefix, task.pairs[0].right
        (' The authors', ' laugh')
    """

    source: str = field(default="clams", init=False)
    location: str = ""
    """A folder, or a dataset repository on the hub."""
    languages: str | tuple[str, ...] = ("en", "fr")
    """As in the names of the files: "de", "en", "fr", "he", "ru"; default: those of arXiv 2509.05291."""
    constructions: str | tuple[str, ...] = (
        "long_vp_coord",
        "obj_rel_across_anim",
        "obj_rel_within_anim",
        "prep_anim",
        "simple_agrmt",
        "subj_rel",
        "vp_coord",
    )
    """As in the names of the files; default: those that English and French share. Each comes in all languages."""

    def __post_init__(self) -> None:
        if not self.location:
            raise SettingError("location", "must be a folder or a dataset repository on the hub")

    def load(self, folder: Path = Path()) -> Task:
        """Load the pairs; see `PairSource.load`."""
        files = PublishedFiles(self.location, folder)
        languages = as_tuple(self.languages)
        constructions = as_tuple(self.constructions)
        return Task.join("clams", [_load(files, language, name) for name in constructions for language in languages])


def _load(files: PublishedFiles, language: str, construction: str) -> Task:
    name = f"{language}_{construction}"
    if (path := files.find(f"{name}.jsonl")) is not None:
        return read_pairs(name, read_records(path, list(_COLUMNS.values())), _COLUMNS, leading_space=True)
    if (path := files.find(f"{language}_evalset/{construction}.txt")) is not None:
        return Task.from_pairs(name, list(_read_evalset(path)))
    raise InputError(_missing(files, language, construction))


def _read_evalset(path: Path) -> Iterator[Pair]:
    sentences: dict[str, list[str]] = {"True": [], "False": []}
    for number, (line, _) in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        truth, _, sentence = line.partition("\t")
        sentence = sentence.strip()
        if truth not in sentences or not sentence:
            raise InputError(f"{path}:{number}: expected True or False, a tab and a sentence, got {line[:40]!r}")
        sentences[truth].append(f" {sentence[0].upper()}{sentence[1:]}")  # not capitalize(): German nouns have capitals
    n_true, n_false = len(sentences["True"]), len(sentences["False"])
    if n_true != n_false:
        raise InputError(f"{path} holds {n_true} true and {n_false} false sentences: expected the same number of each")
    for n, (good, bad) in enumerate(zip(*sentences.values(), strict=True), start=1):
        with errors_at(f"{path}: pair {n}"):
            pair = Pair.from_sentences(good, bad)
        yield pair


def _missing(files: PublishedFiles, language: str, construction: str) -> str:
    """Explain why there is no file for a set."""
    matches = (re.fullmatch(r"(\w\w)_(?:evalset/)?(\w+)\.(?:jsonl|txt)", name) for name in files.names())
    sets = [(match[1], match[2]) for match in matches if match]
    if not sets:
        return f"{files} holds no CLAMS sets: expected files named like en_vp_coord.jsonl or en_evalset/vp_coord.txt"
    languages = sorted({code for code, _ in sets})
    if language not in languages:
        return f"CLAMS in {files} has no language {language!r}{nearest(language, languages)}"
    known = sorted(name for code, name in sets if code == language)
    return f"CLAMS in {files} has no construction {construction!r} in {language!r}{nearest(construction, known)}"
