"""The weight files of a checkpoint folder: found, read safely, hashed by their contents."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crosstime.base.errors import InputError

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; each may also be an index of shards, `<name>.index.json`."""

CHUNK = 1 << 22

_Stamp = tuple[str, int, int, int]
_known: dict[tuple[_Stamp, ...], str] = {}
"""Hashes of weights that this process has read, so that loading a checkpoint does not read its files twice."""


def find_weights(folder: Path) -> list[Path]:
    """The weight files that transformers would load from a folder.

    Raises:
        InputError: there are none; or an index names a file that is missing or is itself malformed.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    raise InputError(f"{folder} holds no weights: expected {' or '.join(WEIGHT_NAMES)}, or an index of its shards")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds all weight files of a checkpoint."""
    try:
        return bool(find_weights(folder))
    except ValueError:
        return False


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{index} is not an index of weights: a JSON object with `weight_map` is expected") from None
    shards = [index.parent / name for name in names]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{index} names weights that are missing: {', '.join(missing)}")
    return shards


def is_safetensors(files: list[Path]) -> bool:
    return all(file.suffix == ".safetensors" for file in files)


def hash_weights(files: list[Path]) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors, by name.

    The same weights give the same hash however they were saved: format, shards and metadata do not count. Files that
    have not been written to since this process hashed them are not read again.

    Raises:
        InputError: a file is damaged, or a pickle that holds more than tensors (which is never executed).
    """
    # Taken before the files are read: one that is written to meanwhile will have another stamp.
    stamps = tuple(_stamp(file) for file in files)
    if stamps not in _known:
        _known[stamps] = _hash_tensors(files)
    return _known[stamps]


def _stamp(file: Path) -> _Stamp:
    """What changes when a file is written to: its size, and its times (a copy may bring along an old `mtime`)."""
    state = file.stat()
    return str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _hash_tensors(files: list[Path]) -> str:
    digests = {name: _digest(tensor) for file in files for name, tensor in _tensors(file)}
    whole = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file, one in memory at a time where the format allows it."""
    return _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it has keys, but cannot be iterated)
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged or truncated ({error}): copy or download it again") from None


def _pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files of before torch 1.6 are not archives and cannot be mapped into memory.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError:
        raise InputError(
            f"{file} was refused: it is damaged, or it is a pickle that holds more than tensors and could run code; "
            "convert it to safetensors if you trust its origin"
        ) from None
    except (RuntimeError, OSError, EOFError) as error:
        raise InputError(f"{file} is damaged or truncated ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} is not a model's state: expected a dictionary of tensors")
    yield from state.items()


def check_blob(file: Path) -> None:
    """Compare a file of the hub's cache with its name there, which for large files is their SHA-256.

    Raises:
        InputError: the contents are not those that were downloaded.
    """
    name = file.resolve().name
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) and _file_digest(file) != name:
        raise InputError(
            f"{file} is damaged: its contents do not have the hash of its name in the hub's cache; delete it"
        )


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
