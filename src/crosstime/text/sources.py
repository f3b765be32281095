"""Text sources: documents in a fixed order, which can be read again from any of them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from crosstime.base.errors import InputError


class Document(NamedTuple):
    """One document of a source."""

    text: str
    resume_point: Any
    """Where its source continues after it, as a JSON value."""
    n_read: int | None = None
    """How much of `Source.size` has been read, this document included."""


class Source(ABC):
    """Documents in an order that never changes. A new kind of source is a subclass with these members."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in messages."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Total size, in bytes or the like; None if unknown."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what decides the documents, as JSON values: equal for two sources that give the same documents."""

    @abstractmethod
    def documents(self, resume_point: Any = None) -> Iterator[Document]:
        """Iterate over the documents after a resume point, or over all of them.

        Raises:
            InputError: The source, or a document in it, can't be read.
        """


@dataclass(frozen=True)
class Strings(Source):
    """Texts in memory, each of which is one document; empty ones are skipped."""

    texts: Sequence[str]

    @property
    def name(self) -> str:
        """A word for all of them."""
        return "texts"

    @property
    def size(self) -> int:
        """Characters in all texts."""
        return sum(map(len, self.texts))

    def identity(self) -> dict[str, Any]:
        """Return a hash of the texts."""
        return {"texts": hashlib.sha256(json.dumps(list(self.texts)).encode()).hexdigest()}

    def documents(self, resume_point: int | None = None) -> Iterator[Document]:
        """Iterate over the texts after the first `resume_point` of them.

        Raises:
            InputError: All texts are empty.
        """
        if not any(self.texts):
            raise InputError(f"the {self.name} are empty: there is nothing to read")
        n_read = 0
        for number, text in enumerate(self.texts, 1):
            n_read += len(text)
            if text and number > (resume_point or 0):
                yield Document(text, number, n_read)
