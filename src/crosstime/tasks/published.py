"""Files of published tasks, from a folder or from a dataset repository on the hub."""

from __future__ import annotations

from pathlib import Path

from crosstime.base.errors import InputError
from crosstime.models.hub import fetch_data, list_data


def published_file(source: Path | str, name: str) -> Path | None:
    """A file of a folder or, where there is no such folder, of a dataset repository, "owner/name"; None if it has none.

    Args:
        source: the folder or repository.
        name: the file's path there, parts separated by "/".

    Raises:
        InputError: there is neither, or the hub cannot be reached and its cache does not hold the file.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    if isinstance(source, Path):
        raise InputError(f"there is no folder {source}")
    try:
        return fetch_data(source, name)
    except ValueError as error:
        raise InputError(f"there is no folder {source}, and of that name on the hub: {error}") from None


def published_files(source: Path | str) -> list[str]:
    """The paths of all files there; none if the hub does not answer, for this only improves error messages."""
    if Path(source).is_dir():
        return sorted(path.relative_to(source).as_posix() for path in Path(source).rglob("*") if path.is_file())
    return list_data(str(source))
