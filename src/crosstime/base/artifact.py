"""Artifact folders: written completely or not at all, and verified when read.

An artifact is a folder with a `manifest.json` that holds the hash of every other file in it. It is written to a hidden
sibling, synced and renamed, so a folder under its own name is always complete, and a folder without a manifest counts
as absent. `sweep` removes what a killed process left behind.
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
    """What an artifact folder contains, and what it was computed from."""

    files: dict[str, str]
    """SHA-256 of every file, by its path in the folder."""
    settings: dict[str, Any]
    """Every setting, and every fact about an input file, that the content depends on."""
    inputs: dict[str, str]
    """Content hash of each artifact (or of one of its files) that was read, by its path in the run folder."""
    versions: dict[str, str]
    """Versions of the packages that computed it."""
    seconds: float
    """Wall time of the computation, including interrupted attempts that it resumed."""

    @property
    def content(self) -> str:
        """One hash over all files: equal for artifacts with equal content, whenever and wherever they were computed."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of an artifact; return None if there is no artifact.

    Raises:
        DamagedArtifact: The manifest itself is damaged.
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
    """Compare every file of an artifact with its manifest, and return the manifest.

    Raises:
        FileNotFoundError: There is no artifact.
        DamagedArtifact: A file is missing, truncated or altered.
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
    """Provide an empty folder to write to, and make it the artifact `folder` once the block succeeds.

    If the block raises, the new folder is removed and a previous artifact stays as it was.

    Args:
        folder: Final path of the artifact.
        settings: See `Manifest.settings`; must be JSON-serialisable.
        inputs: See `Manifest.inputs`.
        seconds_before: Wall time of interrupted attempts that this one resumes.
    """
    draft = _sibling(folder, _WRITING)
    _remove(draft)
    draft.mkdir(parents=True)
    begin = time.perf_counter()
    try:
        yield draft
        paths = sorted(path for path in draft.rglob("*") if path.is_file())
        files = {path.relative_to(draft).as_posix(): sha256_of(path) for path in paths}
        seconds = round(seconds_before + time.perf_counter() - begin, 3)
        manifest = Manifest(files, dict(settings), dict(inputs), _versions(), seconds)
        (draft / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _sync_tree(draft)
        _replace(draft, folder)
    except BaseException:
        _remove(draft)
        raise


def sweep(run_dir: Path) -> None:
    """Remove what killed processes left in a run folder, and restore an artifact caught between two renames.

    Call it only while no other process writes to the folder.
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
    """Delete a folder if it exists; a killed process never leaves part of it under its name.

    The folder is first moved to where `sweep(run_dir)` removes what is left of it.
    """
    doomed = _sibling(run_dir / folder.name, _WRITING)
    _remove(doomed)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    _remove(doomed)


def write_text(path: Path, text: str) -> None:
    """Write a single file atomically."""
    draft = _sibling(path, _WRITING)
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


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _replace(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`. Between the two renames the old artifact is where `sweep` finds it."""
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
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions
