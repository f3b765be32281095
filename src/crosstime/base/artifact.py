"""Artifact folders: written whole or not at all, and checked when read.

An artifact is a folder with a `manifest.json` that names the content hash of every other file in it. It is written to a
hidden sibling, synced, and renamed, so a folder under its own name is always complete; a folder without a manifest
does not exist for us. What a killed process left behind is removed by `sweep` at the next start.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crosstime.base.errors import DamagedArtifact

MANIFEST = "manifest.json"
_WRITING = ".writing"
_REPLACED = ".replaced"
_PACKAGES = ("crosstime", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What stands in an artifact folder, and what it was made from."""

    files: dict[str, str]
    """sha256 of every file, by its path inside the folder."""
    settings: dict[str, Any]
    """Every setting and every fact about an input file that the content depends on, by its name."""
    inputs: dict[str, str]
    """Content hash of each artifact (or of one file in it) that was read, by its path in the run folder."""
    versions: dict[str, str]
    """Versions of the packages that computed it."""
    seconds: float
    """Wall time of the computation, unfinished attempts that it went on from included."""

    @property
    def content(self) -> str:
        """One hash for all files: equal where two artifacts hold the same, whenever and wherever they were computed."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hash of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artifact; None where there is none, and hence no artifact.

    Raises:
        DamagedArtifact: the manifest itself is damaged.
    """
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):
        raise _damaged(folder, MANIFEST) from None
    if not isinstance(manifest.files, dict) or not isinstance(manifest.inputs, dict):
        raise _damaged(folder, MANIFEST)
    return manifest


def verify(folder: Path) -> Manifest:
    """Reads every file of an artifact and compares it with the manifest.

    Raises:
        FileNotFoundError: there is no artifact.
        DamagedArtifact: a file is missing, truncated or altered.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(errno.ENOENT, "there is no finished artifact here", str(folder))
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != expected:
            raise _damaged(folder, name)
    return manifest


def _damaged(folder: Path, name: str) -> DamagedArtifact:
    return DamagedArtifact(f"{folder / name} is altered or damaged: delete the folder {folder} to compute it again")


@contextmanager
def writing(
    folder: Path, *, settings: Mapping[str, Any], inputs: Mapping[str, str], seconds_before: float = 0.0
) -> Iterator[Path]:
    """Gives a new empty folder to write into, and makes it the artifact `folder` if the block ends well.

    If the block raises, the new folder is removed and the artifact that stood there before stands there still.

    Args:
        folder: the artifact's final place.
        settings: see `Manifest.settings`; values that JSON can hold.
        inputs: see `Manifest.inputs`.
        seconds_before: wall time of the unfinished attempts that this one goes on from.
    """
    draft = _sibling(folder, _WRITING)
    _remove(draft)
    draft.mkdir(parents=True)
    begin = time.perf_counter()
    try:
        yield draft
        files = {
            path.relative_to(draft).as_posix(): sha256_of(path) for path in sorted(draft.rglob("*")) if path.is_file()
        }
        seconds = round(seconds_before + time.perf_counter() - begin, 3)
        manifest = Manifest(files, dict(settings), dict(inputs), _versions(), seconds)
        (draft / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _sync_tree(draft)
        _replace(draft, folder)
    except BaseException:
        _remove(draft)
        raise


def sweep(run_dir: Path) -> None:
    """Removes what killed processes left in a run folder, and puts back an artifact caught between two renames.

    Call it only while no other process writes here.
    """
    for path in run_dir.glob(f".*{_WRITING}"):
        _remove(path)
    for path in run_dir.glob(f".*{_REPLACED}"):
        folder = run_dir / path.name[1 : -len(_REPLACED)]
        if folder.exists():
            _remove(path)
        else:
            path.rename(folder)


def discard(folder: Path, run_dir: Path) -> None:
    """Deletes a folder, if it is there, so that a killed process never leaves a part of it under its name.

    It is first moved to where `sweep(run_dir)` removes what is left of it.
    """
    leaving = _sibling(run_dir / folder.name, _WRITING)
    _remove(leaving)
    try:
        folder.rename(leaving)
    except FileNotFoundError:
        return
    _remove(leaving)


def write_text(path: Path, text: str) -> None:
    """Writes a single file whole or not at all."""
    draft = path.with_name(f".{path.name}{_WRITING}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}{suffix}")


def _replace(draft: Path, folder: Path) -> None:
    """Puts `draft` in the place of `folder`. Between the two renames the old artifact waits where `sweep` finds it."""
    replaced = _sibling(folder, _REPLACED)
    if folder.exists():
        _remove(replaced)
        folder.rename(replaced)
    try:
        draft.rename(folder)
    except BaseException:
        if replaced.exists():
            replaced.rename(folder)
        raise
    _sync(folder.parent)
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
