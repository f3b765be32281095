"""Pair sources: where the minimal pairs of a task come from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from crosstime.base.errors import InputError
from crosstime.base.registry import Family
from crosstime.models.hub import fetch_data, list_data
from crosstime.tasks.task import Task


@dataclass(frozen=True)
class PairSource(Family, ABC):
    """Base of all sources of minimal pairs. A new source is a subclass with a `source` name and settings as fields.

    run.toml chooses one by its name: `pairs = { source = "blimp", sets = ["distractor"] }`.
    """

    variant_key: ClassVar[str] = "source"
    named_by_task: ClassVar[bool] = False
    """Whether the only set of a task takes the task's name, because its own is just that of a file, say."""

    source: str = field(default="", init=False)
    """Name of the source in run.toml; each subclass has its own."""

    @abstractmethod
    def load(self, folder: Path = Path()) -> Task:
        """Load the pairs.

        Args:
            folder: Relative paths start here; it's the folder of run.toml.

        Raises:
            InputError: Something isn't there (the message names the nearest), or a file is malformed (file and line).
        """


class PublishedFiles:
    """Files of a published task, in a folder or in a dataset repository on the Hugging Face hub.

    Args:
        location: A folder, or a repository, "owner/name"; a folder wins over a repository of the same name.
        folder: A relative `location` starts here.
    """

    def __init__(self, location: str, folder: Path) -> None:
        path = folder / Path(location).expanduser()
        self._folder = path if path.is_dir() else None
        self._location = location
        self._name = str(path) if self._folder else location

    def __str__(self) -> str:
        return self._name

    def find(self, name: str) -> Path | None:
        """Return the path of a file, which is downloaded if need be; None if there is no such file.

        Args:
            name: Path inside the folder or repository, with "/" between its parts.

        Raises:
            InputError: There is neither a folder nor a repository, or the hub can't be reached and its cache doesn't
                hold the file.
        """
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self._location):
            raise InputError(f"there is no folder {self}")
        try:
            return fetch_data(self._location, name)
        except InputError as error:
            raise InputError(f"there is no folder {self}, and no such dataset on the hub: {error}") from None

    def names(self) -> list[str]:
        """List the paths of all files; empty if the hub doesn't answer, since this only improves error messages."""
        if self._folder is not None:
            found = (path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file())
            return sorted(path.as_posix() for path in found)
        return list_data(self._location)


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return one name as a tuple of one."""
    return (names,) if isinstance(names, str) else names
