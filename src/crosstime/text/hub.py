"""Datasets on the Hugging Face hub: streamed as text from a fixed commit, or read as a table."""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import fsspec.compression
import pyarrow as pa
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of whichever HTTP library this version of the client uses)
)

from crosstime.base.errors import InputError, first_line, nearest
from crosstime.models import hub
from crosstime.text.files import Record, no_column
from crosstime.text.sources import Document, Source

if TYPE_CHECKING:
    from datasets import IterableDataset

_CONNECTION_ERRORS = (HTTPError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class HubText(Source):
    """A text column of a dataset on the hub: each value is one document; null and empty ones are skipped.

    It's streamed with `datasets`: nothing is kept on disk, and a broken connection is resumed after the last document.
    To resume in another process, the file of the dataset that holds that document is read from its beginning.

    Example:
        >>> import crosstime as ct
        >>> text = ct.HubText("allenai/c4", commit="1588ec454efa1a09f29cd18ddd04fe05fc8653a2", config="en")
        >>> text.name
        'allenai/c4/en/train'

        `ct.HubText.from_revision("allenai/c4", config="en")` looks up the newest commit, and
        `ct.Corpus.from_text(text, tokenizer, context=1024, limit_tokens=1_000_000)` reads its first million tokens.
    """

    repo: str
    """Name of the repository, "owner/name"."""
    commit: str
    """A commit, so that the text can never change."""
    config: str | None = None
    """Configuration of a dataset that has several: a language, a subset."""
    split: str = "train"
    column: str = "text"

    @classmethod
    def from_revision(
        cls, repo: str, revision: str = "main", config: str | None = None, split: str = "train", column: str = "text"
    ) -> HubText:
        """Fix the text at the commit that a branch or tag points to now.

        Raises:
            InputError: There is no such repository or revision, or the hub can't be reached.
        """
        return cls(repo, hub.dataset_commit(repo, revision), config, split, column)

    @property
    def name(self) -> str:
        """Repository, configuration and split."""
        return "/".join(filter(None, (self.repo, self.config, self.split)))

    @property
    def size(self) -> None:
        """Unknown."""

    def identity(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def check(self) -> None:
        """Read the first record, to find mistakes before any long work.

        Raises:
            InputError: As for `documents`.
        """
        next(self.documents(), None)

    def documents(self, resume_point: dict[str, Any] | None = None) -> Iterator[Document]:
        """Iterate over the documents after a resume point.

        Raises:
            InputError: The dataset has no such configuration, split or column (the message names the nearest), or can't
                be streamed; or the hub failed several times in a row.
        """
        stream, waits = None, list(hub.RETRY_WAITS)
        while True:
            try:
                stream = stream or self._open()
                for text, after in self._texts(stream, resume_point):
                    resume_point, waits = after, list(hub.RETRY_WAITS)
                    if text is not None and text.strip():
                        yield Document(text, resume_point)
                return
            except _CONNECTION_ERRORS as error:
                _wait(error, waits, self.name)

    def _texts(
        self, stream: IterableDataset, resume_point: dict[str, Any] | None
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """The values of the column after a resume point, each with the resume point after it."""
        if resume_point is not None:
            stream.load_state_dict(resume_point)
        records = iter(stream)
        while True:
            try:
                record = next(records, None)
            except _CONNECTION_ERRORS:
                raise
            except (ValueError, EOFError, OSError, zlib.error) as error:  # (those of pyarrow and of the library too)
                raise InputError(f"{self.name}: a file of the dataset is damaged: {first_line(error)}") from None
            if record is None:
                return
            if self.column not in record:
                raise InputError(f"{self.name}: {no_column(self.column, list(record))}")
            text = record[self.column]
            if not isinstance(text, str | None):
                raise InputError(f"{self.name}: the column {self.column!r} holds {type(text).__name__}, not text")
            yield text, stream.state_dict()

    def _open(self) -> IterableDataset:
        stream = _open(self.repo, self.config, self.split, self.commit, streaming=True)
        # The other columns needn't become Python objects. (If the columns aren't known yet, each record is checked.)
        return stream.select_columns([self.column]) if self.column in (stream.column_names or ()) else stream


def read_dataset(
    repo: str, config: str | None, split: str, columns: Sequence[str], revision: str | None = "main"
) -> Iterator[Record]:
    """Iterate over the records of a dataset, which is downloaded as a whole into the cache of `datasets`.

    Args:
        repo: Repository on the hub, "owner/name", or a local folder.
        config: Configuration of a dataset that has several.
        split: Split of the dataset.
        columns: Columns to read.
        revision: Branch, tag or commit; None for a folder.

    Raises:
        InputError: There is no such configuration, split or column (the message names the nearest), or the dataset
            can't be read.
    """
    name = "/".join(filter(None, (repo, config, split)))
    table, waits = None, list(hub.RETRY_WAITS)
    while table is None:
        try:
            table = _open(repo, config, split, revision, streaming=False)
        except _CONNECTION_ERRORS as error:
            _wait(error, waits, name)
    for column in columns:
        if column not in table.column_names:
            raise InputError(f"{name}: {no_column(column, table.column_names)}")
    for number, values in enumerate(table.select_columns(list(columns)), start=1):
        yield Record(f"{name}, row {number}", values)


def _wait(error: Exception, waits: list[float], name: str) -> None:
    """Wait before another attempt, or give up if the error won't pass or no attempts are left."""
    if not waits or not hub.is_transient(error):
        raise InputError(f"{name} could not be read from the hub: {first_line(error)}") from None
    time.sleep(waits.pop(0))


def _open(repo: str, config: str | None, split: str, revision: str | None, *, streaming: bool) -> Any:
    """Open a split with `datasets`, whose errors become ours; those of a connection are raised as they are."""
    try:
        splits = _library().load_dataset(repo, config, revision=revision, streaming=streaming)
    except _CONNECTION_ERRORS:
        raise
    except ValueError as error:
        raise InputError(f"{repo}: {_wrong_config(repo, config, revision, first_line(error))}") from None
    except (OSError, RuntimeError, EOFError, zlib.error) as error:  # no data, a script, or a damaged file
        raise InputError(f"{repo} cannot be {'streamed' if streaming else 'read'}: {first_line(error)}") from None
    if split not in splits:
        raise InputError(f"{repo} has no split {split!r}{nearest(split, splits)}")
    return splits[split]


def _wrong_config(repo: str, config: str | None, revision: str | None, otherwise: str) -> str:
    """Explain why a dataset can't be opened under a configuration."""
    names = _library().get_dataset_config_names(repo, revision=revision)
    if config is None and len(names) > 1:
        return f"name one of its configurations: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    if config is not None and config not in names:
        return f"there is no configuration {config!r}{nearest(config, names)}"
    return otherwise


def _library() -> Any:
    """Import `datasets` on first use, since it takes a second."""
    import datasets
    from datasets import config

    # When a read fails, it reads again; but what it had decompressed of the file before the failure is then lost. So a
    # failure must reach us, and we resume after the last document.
    config.STREAMING_READ_MAX_RETRIES = 1
    if "zstd" not in fsspec.compression.compr:  # as the Pile is compressed
        fsspec.compression.register_compression("zstd", _zstd, "zst")
    return datasets


def _zstd(file: Any, **_: Any) -> io.BufferedReader:
    """A reader of a compressed file by pyarrow, which is a dependency anyway."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
