"""MultiBLiMP: subject-verb agreement in a hundred languages (Jumelet et al. 2025), from the hub or a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crosstime.base.errors import InputError, nearest
from crosstime.tasks.columns import read_pairs
from crosstime.tasks.pair_source import PairSource, PublishedFiles, as_tuple
from crosstime.tasks.task import Task
from crosstime.text.files import read_records

PHENOMENA = ("SV-#", "SV-G", "SV-P")
"""Agreement of subject and verb in number, gender and person."""

_COLUMNS = {"good": "sen", "bad": "wrong_sen"}


@dataclass(frozen=True)
class MultiBlimpPairs(PairSource):
    """MultiBLiMP sets; the name of a pair's set is "LANGUAGE_PHENOMENON".

    The words that the two sentences of a pair share at the beginning are the prefix and the next word is the answer.
    Sentences are taken as they are, without a space before them, as lm-evaluation-harness scores MultiBLiMP.

    Example:
        >>> import pathlib, tempfile
        >>> import crosstime as ct
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pathlib.Path(folder, "eng").mkdir()
        ...     table = "sen\\twrong_sen\\tphenomenon\\nI am tall.\\tI is tall.\\tSV-P\\n"
        ...     _ = pathlib.Path(folder, "eng", "data.tsv").write_text(table)
        ...     task = ct.MultiBlimpPairs("eng", location=folder).load()
        >>> task.set_names, task.pairs[0].right
        (('eng_SV-P',), ' am')
    """

    source: str = field(default="multiblimp", init=False)
    languages: str | tuple[str, ...] = ("eng", "fra", "spa", "por", "arb", "hin")
    """Languages by ISO 639-3; default: those of arXiv 2509.05291."""
    phenomena: str | tuple[str, ...] = ()
    """Each must exist in every language; default: those of SV-# (number), SV-G (gender), SV-P (person) that exist."""
    location: str = "jumelet/multiblimp"
    """A folder, or a dataset repository on the hub, with `{language}/data.tsv`."""

    def load(self, folder: Path = Path()) -> Task:
        """Load the pairs; see `PairSource.load`."""
        files = PublishedFiles(self.location, folder)
        languages = as_tuple(self.languages)
        phenomena = as_tuple(self.phenomena)
        sets = {language: _load(files, language) for language in languages}
        for language, known in sets.items():
            for name in phenomena:
                if name not in known:
                    hint = nearest(name, sorted(known))
                    raise InputError(f"MultiBLiMP has no phenomenon {name!r} in {language!r}{hint}")
        tasks = [
            Task.from_pairs(f"{language}_{name}", known[name].pairs)
            for name in phenomena or PHENOMENA
            for language, known in sets.items()
            if name in known
        ]
        return Task.join("multiblimp", tasks)


def _load(files: PublishedFiles, language: str) -> dict[str, Task]:
    """Read the pairs of a language, by phenomenon."""
    path = files.find(f"{language}/data.tsv")
    if path is None:
        known = sorted(name.split("/")[0] for name in files.names() if name.endswith("/data.tsv"))
        raise InputError(f"MultiBLiMP in {files} has no language {language!r}{nearest(language, known)}")
    records = read_records(path, [*_COLUMNS.values(), "phenomenon"])
    task = read_pairs(language, records, _COLUMNS, group="phenomenon")
    return {part.name: part for part in task.by_set()}
