"""MultiBLiMP: subject-verb agreement in a hundred languages (Jumelet et al. 2025), from the hub or a folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from crosstime.base.errors import InputError, nearest
from crosstime.tasks.published import published_file, published_files
from crosstime.tasks.task import Pair, Task
from crosstime.text.reading import read_text

REPO = "jumelet/multiblimp"
LANGUAGES = ("eng", "fra", "spa", "por", "arb", "hin")
"""Those of arXiv 2509.05291, by ISO 639-3."""
PHENOMENA = ("SV-#", "SV-G", "SV-P")
"""Agreement of subject and verb in number, gender and person."""
COLUMNS = ("sen", "wrong_sen", "phenomenon")


def load_multiblimp(
    languages: Sequence[str] = LANGUAGES, phenomena: Sequence[str] = (), source: Path | str = REPO
) -> Task:
    """MultiBLiMP sets as one task; the source of a pair is "LANGUAGE_PHENOMENON".

    The words that the two sentences of a pair share at the beginning are the prefix and the next word is the answer.
    Sentences are taken as they are, without a space before them, as lm-evaluation-harness scores MultiBLiMP.

    Args:
        languages: by ISO 639-3.
        phenomena: each must be there in every language. Without it, those of `PHENOMENA` that a language has.
        source: a dataset repository on the hub, or a folder, that holds `{language}/data.tsv`.

    Raises:
        InputError: there is no such language, or not that phenomenon in it (the nearest is named); or a file is
            malformed (file and line are named).
    """
    found = {language: _read(source, language) for language in languages}
    for language, sets in found.items():
        for name in phenomena:
            if name not in sets:
                raise InputError(f"MultiBLiMP has no phenomenon {name!r} in {language!r}{nearest(name, sorted(sets))}")
    tasks = [
        Task.from_pairs(f"{language}_{name}", sets[name])
        for name in phenomena or PHENOMENA
        for language, sets in found.items()
        if name in sets
    ]
    return Task.join("multiblimp", tasks)


def _read(source: Path | str, language: str) -> dict[str, list[Pair]]:
    """The pairs of a language by phenomenon."""
    path = published_file(source, f"{language}/data.tsv")
    if path is None:
        known = sorted(name.split("/")[0] for name in published_files(source) if name.endswith("/data.tsv"))
        raise InputError(f"MultiBLiMP in {source} has no language {language!r}{nearest(language, known)}")
    rows = csv.DictReader(StringIO(read_text(path)), delimiter="\t")
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: the column `{missing[0]}` is missing")
    found: dict[str, list[Pair]] = {}
    for row in rows:
        sentence, wrong, phenomenon = (row[column] for column in COLUMNS)
        try:
            if not (sentence and wrong and phenomenon):
                raise InputError(f"expected something in each of the columns {', '.join(COLUMNS)}")
            pair = Pair.from_sentences(sentence, wrong)
        except ValueError as error:
            raise InputError(f"{path}:{rows.line_num}: {error}") from None
        found.setdefault(phenomenon, []).append(pair)
    return found
