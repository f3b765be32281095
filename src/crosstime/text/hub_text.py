"""Text on the Hugging Face hub, streamed document by document from the commit that was asked for."""

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
from crosstime.text.records import Record, no_column
from crosstime.text.sources import Document, Source

if TYPE_CHECKING:
    from datasets import IterableDataset

_FAILURES = (HTTPError, ConnectionError, TimeoutError)
"""What a connection dies of."""


@dataclass(frozen=True)
class HubText(Source):
    """A column of a data set on the hub, each value of which is one document; null and empty ones are passed over.

    It is streamed with `datasets`: nothing is kept on disk, and a connection that breaks is taken up again after the
    last document. To go on later means to read the file of the data set in which that document lies from its beginning.
    """

    repo: str
    """Name of the repository, "owner/name"."""
    commit: str
    """A commit, so that the text can never change; `HubText.at` finds that of a branch."""
    config: str | None = None
    """Which configuration, where the data set has several: a language, a subset."""
    split: str = "train"
    column: str = "text"

    @classmethod
    def at(
        cls, repo: str, revision: str = "main", config: str | None = None, split: str = "train", column: str = "text"
    ) -> HubText:
        """The text at a branch or tag as it is now.

        Raises:
            InputError: there is no such repository or revision, or the hub cannot be reached.
        """
        return cls(repo, hub.dataset_commit(repo, revision), config, split, column)

    @property
    def name(self) -> str:
        """Repository, configuration and split."""
        return "/".join(filter(None, (self.repo, self.config, self.split)))

    @property
    def size(self) -> None:
        """Not known."""

    def identity(self) -> dict[str, Any]:
        """All that says which documents are meant."""
        return asdict(self)

    def check(self) -> None:
        """Finds what is wrong before any long work, by reading the first record.

        Raises:
            InputError: see `documents`.
        """
        next(self.documents(), None)

    def documents(self, place: dict[str, Any] | None = None) -> Iterator[Document]:
        """The documents after a place.

        Raises:
            InputError: the data set has no such configuration, split or column (the nearest is named), or is none that
                can be streamed; or the hub has failed several times in a row.
        """
        stream, waits = None, list(hub.RETRY_WAITS)
        while True:
            try:
                stream = stream or self._open()
                for text, after in self._texts(stream, place):
                    place, waits = after, list(hub.RETRY_WAITS)
                    if text is not None and text.strip():
                        yield Document(text, place)
                return
            except _FAILURES as error:
                if not waits or not hub.is_transient(error):
                    raise InputError(f"{self.name} could not be read from the hub: {first_line(error)}") from None
                time.sleep(waits.pop(0))

    def _texts(
        self, stream: IterableDataset, place: dict[str, Any] | None
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """The column after a place, with the place after each value."""
        if place is not None:
            stream.load_state_dict(place)
        records = iter(stream)
        while True:
            try:
                record = next(records, None)
            except _FAILURES:
                raise
            except (ValueError, EOFError, OSError, zlib.error) as error:  # (those of pyarrow and of the library too)
                raise InputError(f"{self.name}: a file of the data set is damaged: {first_line(error)}") from None
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
        # The other columns need not become Python objects. (Where the columns are not known, each record tells.)
        return stream.select_columns([self.column]) if self.column in (stream.column_names or ()) else stream


def read_dataset(
    repo: str, config: str | None, split: str, columns: Sequence[str], revision: str | None = "main"
) -> Iterator[Record]:
    """Iterate over the records of a dataset, which is downloaded as a whole and kept in the cache of `datasets`.

    Args:
        repo: Name of the repository on the hub, "owner/name", or a local folder.
        config: Its configuration, if it has several.
        split: Its split.
        columns: Columns to read.
        revision: A branch, tag or commit; None for a folder.

    Raises:
        InputError: There is no such configuration, split or column (the message names the nearest), or the dataset
            can't be read.
    """
    name = "/".join(filter(None, (repo, config, split)))
    waits = list(hub.RETRY_WAITS)
    while True:
        try:
            table = _open(repo, config, split, revision, streaming=False)
            break
        except _FAILURES as error:
            if not waits or not hub.is_transient(error):
                raise InputError(f"{name} could not be read from the hub: {first_line(error)}") from None
            time.sleep(waits.pop(0))
    for column in columns:
        if column not in table.column_names:
            raise InputError(f"{name}: {no_column(column, table.column_names)}")
    for number, record in enumerate(table.select_columns(list(columns)), start=1):
        yield f"{name}, row {number}", record


def _open(repo: str, config: str | None, split: str, revision: str | None, *, streaming: bool) -> Any:
    """Open a split with `datasets`, whose errors become ours; those of a connection are raised as they are."""
    try:
        splits = _library().load_dataset(repo, config, revision=revision, streaming=streaming)
    except _FAILURES:
        raise
    except ValueError as error:
        raise InputError(f"{repo}: {_wrong_config(repo, config, revision, first_line(error))}") from None
    except (OSError, RuntimeError, EOFError, zlib.error) as error:  # no data, a script, or a damaged file
        raise InputError(f"{repo} cannot be {'streamed' if streaming else 'read'}: {first_line(error)}") from None
    if split not in splits:
        raise InputError(f"{repo} has no split {split!r}{nearest(split, splits)}")
    return splits[split]


def _wrong_config(repo: str, config: str | None, revision: str | None, otherwise: str) -> str:
    """Explain why a dataset can't be opened under its configuration."""
    names = _library().get_dataset_config_names(repo, revision=revision)
    if config is None and len(names) > 1:
        return f"name one of its configurations: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    if config is not None and config not in names:
        return f"there is no configuration {config!r}{nearest(config, names)}"
    return otherwise


def _library() -> Any:
    """`datasets`, imported when text is on the hub: it takes a second."""
    import datasets
    from datasets import config

    # When a read fails, it reads again. Where the file is compressed, what was decompressed before the failure is lost
    # then. So a failure must reach us, and we go on after the last document.
    config.STREAMING_READ_MAX_RETRIES = 1
    if "zstd" not in fsspec.compression.compr:  # the Pile is compressed so
        fsspec.compression.register_compression("zstd", _zstd, "zst")
    return datasets


def _zstd(file: Any, **_: Any) -> io.BufferedReader:
    """A reader of a compressed file, by pyarrow, which is here anyhow."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
