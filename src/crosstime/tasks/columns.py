"""Minimal pairs in the columns of a table: a user's files, or any dataset on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from crosstime.base.errors import InputError, SettingError
from crosstime.tasks.pair_source import PairSource, as_tuple
from crosstime.tasks.task import Pair, Task
from crosstime.text.files import Record, errors_at, read_records, text_fields
from crosstime.text.hub import read_dataset

_TEXTS = ("good", "bad", "prefix", "right", "wrong", "patch")
_ANSWERS = {name: name for name in ("prefix", "right", "wrong")}
_SENTENCES = ({"good": "good", "bad": "bad"}, {"good": "sentence_good", "bad": "sentence_bad"})


@dataclass(frozen=True)
class JsonlPairs(PairSource):
    """Files with one pair per line, each a JSON object.

    An object holds `prefix`, `right` and `wrong`, or two whole sentences, `good` and `bad` (or `sentence_good` and
    `sentence_bad`); other keys are ignored. Texts are taken as they are, so write the space before an answer:
    `{"prefix": "The keys to the cabinet", "right": " are", "wrong": " is"}`. Of two sentences, the words that they
    share at the beginning are the prefix, and the first word that differs is the answer. With either form, `patch` is
    a second prefix, for effects against a counterfactual (`{"prefix": "The keys", "patch": "The key", ...}`).

    Example:
        >>> import pathlib, tempfile
        >>> import crosstime as ct
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "pairs.jsonl")
        ...     _ = path.write_text('{"good": "The keys are here.", "bad": "The keys is here."}')
        ...     task = ct.JsonlPairs(str(path)).load()
        >>> task.name, task.pairs[0].prefix, task.pairs[0].right
        ('pairs', 'The keys', ' are')
    """

    named_by_task: ClassVar[bool] = True

    source: str = field(default="jsonl", init=False)
    files: str | tuple[str, ...] = ()
    """UTF-8 files, each of which is a set; they may be compressed, and empty lines are ignored."""

    def __post_init__(self) -> None:
        if not self.files:
            raise SettingError("files", "must name at least one file")

    def load(self, folder: Path = Path()) -> Task:
        """Load the pairs; see `PairSource.load`."""
        paths = [folder / Path(name).expanduser() for name in as_tuple(self.files)]
        tasks = [read_pairs(_stem(path), read_records(path)) for path in paths]
        return Task.join(tasks[0].name, tasks)


@dataclass(frozen=True)
class ColumnPairs(PairSource):
    """Columns of a table: of files (JSON lines, CSV, TSV, Parquet), or of a dataset on the Hugging Face hub.

    Name the columns of two sentences, `good` and `bad`, or those of a `prefix` and its answers, `right` and `wrong`, or
    both; and that of a second prefix, `patch`, if there is one. Of two sentences alone, the words that they share at
    the beginning are the prefix, and the first word that differs is the answer.

    Example:
        >>> import pathlib, tempfile
        >>> import crosstime as ct
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "pairs.csv")
        ...     _ = path.write_text("yes,no,kind\\nThe keys are here.,The keys is here.,number\\n")
        ...     task = ct.ColumnPairs(str(path), good="yes", bad="no", group="kind", leading_space=True).load()
        >>> task.set_names, task.pairs[0].prefix
        (('number',), ' The keys')
    """

    named_by_task: ClassVar[bool] = True

    source: str = field(default="columns", init=False)
    files: str | tuple[str, ...] = ()
    """Files: .jsonl, .csv, .tsv or .parquet; all but the last may be compressed. Each is a set, unless `group` is."""
    repo: str = ""
    """Instead of files, a dataset repository on the hub, "owner/name", or a folder that `datasets` can load."""
    config: str | tuple[str, ...] = ()
    """Configurations of `repo`, if it has several; each is a set, unless `group` is."""
    split: str = "train"
    """Split of `repo`."""
    revision: str = "main"
    """Branch, tag or commit of `repo`."""
    good: str = ""
    """Column of the acceptable sentence."""
    bad: str = ""
    """Column of the unacceptable sentence."""
    prefix: str = ""
    """Column of the text before the answers."""
    right: str = ""
    """Column of the right continuation of the prefix."""
    wrong: str = ""
    """Column of the wrong continuation of the prefix."""
    patch: str = ""
    """Column of a second, counterfactual prefix."""
    group: str = ""
    """Column that names the set of each pair."""
    leading_space: bool = False
    """Put a space before every sentence and prefix, as BLiMP is scored."""

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.repo):
            raise SettingError("files", "or `repo` must say where the table is: one of them, not both")
        for form in (("good", "bad"), ("prefix", "right", "wrong")):
            missing = [name for name in form if not getattr(self, name)]
            if 0 < len(missing) < len(form):
                raise SettingError(missing[0], f"is missing: {' and '.join(f'`{name}`' for name in form)} go together")
        if not (self.good or self.prefix):
            raise SettingError("good", "and `bad`, or `prefix`, `right` and `wrong`, must name columns")

    def load(self, folder: Path = Path()) -> Task:
        """Load the pairs; see `PairSource.load`."""
        columns = {name: getattr(self, name) for name in _TEXTS if getattr(self, name)}
        needed = [*columns.values(), *([self.group] if self.group else [])]
        tasks = [
            read_pairs(name, records, columns, group=self.group, leading_space=self.leading_space)
            for name, records in self._tables(folder, needed)
        ]
        return Task.join(tasks[0].name, tasks)

    def _tables(self, folder: Path, columns: list[str]) -> Iterator[tuple[str, Iterable[Record]]]:
        """Each table with the name of its set."""
        for name in as_tuple(self.files):
            path = folder / Path(name).expanduser()
            yield _stem(path), read_records(path, columns)
        if self.repo:
            local = folder / Path(self.repo).expanduser()
            repo, revision = (str(local), None) if local.is_dir() else (self.repo, self.revision)
            for config in as_tuple(self.config) or (None,):
                yield config or Path(self.repo).name, read_dataset(repo, config, self.split, columns, revision)


def read_pairs(
    name: str,
    records: Iterable[Record],
    columns: Mapping[str, str] | None = None,
    *,
    group: str = "",
    leading_space: bool = False,
) -> Task:
    """Read the pairs of a table.

    Args:
        name: Name of the task, and of its set without `group`.
        records: The rows of the table.
        columns: For fields of `Pair`, the column; default: those of `JsonlPairs`, whichever a record has.
        group: Column that names the set of each pair.
        leading_space: Put a space before every sentence and prefix.

    Raises:
        InputError: There are no records, or one doesn't hold a pair; the message says which.
    """
    pairs, set_names = [], []
    for record in records:
        with errors_at(record.where):
            found = _standard_columns(record.values) if columns is None else columns
            pairs.append(_pair(record.values, found, leading_space))
            set_names += text_fields(record.values, (group,)) if group else [name]
    return Task(name, tuple(pairs), tuple(set_names))


def _standard_columns(record: Mapping[str, object]) -> dict[str, str]:
    sentences = next((columns for columns in _SENTENCES if columns.values() & record.keys()), {})
    answers = _ANSWERS if _ANSWERS.keys() & record.keys() else {}
    if not (sentences or answers):
        found = ", ".join(f"`{key}`" for key in record) or "nothing"
        raise InputError(
            "expected `prefix`, `right` and `wrong`, or `good` and `bad` (or `sentence_good` and `sentence_bad`); "
            f"found {found}"
        )
    return {**sentences, **answers, **({"patch": "patch"} if "patch" in record else {})}


def _pair(record: dict[str, object], columns: Mapping[str, str], leading_space: bool) -> Pair:
    texts = dict(zip(columns, text_fields(record, tuple(columns.values())), strict=True))
    for name, text in texts.items():
        if not text.strip() and name != "prefix":
            raise InputError(f"`{columns[name]}` is empty")
        if leading_space and name not in ("right", "wrong"):
            texts[name] = f" {text}"
    return Pair(**texts) if "prefix" in texts else Pair.from_sentences(**texts)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
