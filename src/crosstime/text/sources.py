"""Where text comes from: a source gives documents one after another, and can go on after any of them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from crosstime.base.errors import InputError


class Document(NamedTuple):
    """A text that stands on its own."""

    text: str
    place: Any
    """From where its source goes on after it; JSON can hold it."""
    position: int | None = None
    """How much of `Source.size` has been read with it."""


class Source(ABC):
    """Documents in an order that never changes. A new kind of source is a new class with these members."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call it in messages."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Bytes to read in all, where that is known."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the documents, as JSON can hold it: equal where two sources give the same ones."""

    @abstractmethod
    def documents(self, place: Any = None) -> Iterator[Document]:
        """The documents after a place, or all of them.

        Raises:
            InputError: the source, or a document in it, cannot be read.
        """


@dataclass(frozen=True)
class Strings(Source):
    """Texts in memory, each of which is one document; empty ones are passed over."""

    texts: Sequence[str]
    title: str = "texts"

    @property
    def name(self) -> str:
        """As they are titled."""
        return self.title

    @property
    def size(self) -> int:
        """Characters in all."""
        return sum(map(len, self.texts))

    def identity(self) -> dict[str, Any]:
        """A hash of the texts."""
        return {"texts": hashlib.sha256(json.dumps(list(self.texts)).encode()).hexdigest()}

    def documents(self, place: int | None = None) -> Iterator[Document]:
        """The texts after the first `place` of them.

        Raises:
            InputError: all texts are empty.
        """
        if not any(self.texts):
            raise InputError(f"the {self.name} are empty: there is nothing to read")
        position = 0
        for number, text in enumerate(self.texts, 1):
            position += len(text)
            if text and number > (place or 0):
                yield Document(text, number, position)
