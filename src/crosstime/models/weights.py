"""Weight files of a checkpoint folder: find them, read them safely, hash their contents, load the model."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from crosstime.base.artifact import sha256_of
from crosstime.base.errors import InputError, first_line

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; each may also be an index of shards, `<name>.index.json`."""

_Stamp = tuple[str, int, int, int]
_hashes: dict[tuple[_Stamp, ...], str] = {}
"""Hashes computed by this process, so that loading a checkpoint doesn't read its files twice."""


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files that transformers would load from a folder.

    Raises:
        InputError: There are none, or an index is malformed or names a missing file.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    raise InputError(f"{folder} holds no weights: expected {' or '.join(WEIGHT_NAMES)}, or an index of its shards")


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds all weight files of a checkpoint."""
    try:
        return bool(find_weights(folder))
    except InputError:
        return False


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{index} is not an index of weights: expected a JSON object with `weight_map`") from None
    shards = [index.parent / name for name in names]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{index} names weights that are missing: {', '.join(missing)}")
    return shards


def hash_weights(files: list[Path]) -> str:
    """Return a SHA-256 over the names, dtypes, shapes and bytes of all tensors, sorted by name.

    Format, sharding and metadata don't change it. Files that haven't been written to since this process hashed them
    aren't read again.

    Raises:
        InputError: A file is damaged, or is a pickle that holds more than tensors (which is never executed).
    """
    # Taken before the files are read, so a file that is written to meanwhile gets another stamp.
    stamps = tuple(_stamp(file) for file in files)
    if stamps not in _hashes:
        _hashes[stamps] = _hash_tensors(files)
    return _hashes[stamps]


def _stamp(file: Path) -> _Stamp:
    """Return what changes when a file is written to: its size, and its times (a copy may keep an old `mtime`)."""
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
    """Yield the tensors of a file, one in memory at a time if the format allows it."""
    return _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it has keys, but can't be iterated)
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged or truncated ({error}): copy or download it again") from None


def _pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files written before torch 1.6 are not archives and can't be mapped into memory.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError:
        raise InputError(
            f"{file} was refused: it is damaged, or it is a pickle that holds more than tensors and could run code; "
            "convert it to safetensors if you trust its origin"
        ) from None
    except (RuntimeError, OSError, EOFError) as error:
        raise InputError(f"{file} is damaged or truncated ({first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} is not a model's state: expected a dictionary of tensors")
    yield from state.items()


def check_blob(file: Path) -> None:
    """Compare a file in the hub's cache with its name there, which for large files is its SHA-256.

    Raises:
        InputError: The contents are not those that were downloaded.
    """
    name = file.resolve().name
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) and sha256_of(file) != name:
        raise InputError(f"{file} is damaged: its SHA-256 differs from its name in the hub's cache; delete it")


def load_model(
    folder: Path, files: list[Path], dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint's causal language model on the CPU.

    Args:
        folder: The checkpoint's folder.
        files: Its weight files (`find_weights`). Pickles are read with `torch.load(weights_only=True)`.
        dtype: Precision of the weights.
        trust_remote_code: Run modelling code that comes with the checkpoint.

    Raises:
        InputError: The weights don't fill the model that the configuration describes, or can't be read.
    """
    try:
        with _quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=all(file.suffix == ".safetensors" for file in files),
                weights_only=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from None
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(key) for key in info.get(problem, ())):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"the weights in {folder} do not fit its config.json: {problem[:-5]} {names[0]}{more}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings; `load_model` raises what matters in them as errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
