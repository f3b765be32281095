"""Reading files that others wrote, without running what they may hold."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosstime.base.errors import InputError


def read_tensors(path: Path) -> dict[str, Any]:
    """What a .safetensors or a .pt file holds by name: tensors, and plain values.

    Raises:
        InputError: the file is damaged, or a pickle that holds more than that. A pickle can run code when it is read,
            so only tensors and plain values are taken out of one.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file, or damaged: {error}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} was not read: it is damaged, or it holds more than tensors, and such a file can run code"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return content


def take(path: Path, tensors: Mapping[str, Any], name: str, dimensions: int) -> Tensor:
    """One tensor of a file.

    Raises:
        InputError: there is no such tensor, or it has other dimensions.
    """
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor):
        raise InputError(f"{path} holds no tensor {name!r}; it has {', '.join(sorted(tensors)[:12])}")
    if tensor.ndim != dimensions:
        raise InputError(f"{path}: {name} must have {dimensions} dimensions, not the shape {tuple(tensor.shape)}")
    return tensor


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}, which describes the crosscoder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must be a JSON object")
    return config


def config_in(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty where there is none, or none that can be read."""
    try:
        return read_config(folder / "config.json")
    except (ValueError, NotADirectoryError):
        return {}


def setting(path: Path, config: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """One value of a configuration.

    Raises:
        InputError: it is missing, or of another type.
    """
    value = config.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{path}: `{name}` is missing or not what this format has there ({value!r})")
    return value


def numbers(path: Path, config: Mapping[str, Any], names: Mapping[str, str], kind: type) -> dict[str, Any]:
    """The numbers that a configuration states, under other names; what it lacks or leaves empty is left out.

    Args:
        path: of the configuration.
        config: its content.
        names: its names, by those to give them.
        kind: int or float.

    Raises:
        InputError: one is no number.
    """
    stated = {ours: theirs for ours, theirs in names.items() if config.get(theirs) is not None}
    return {ours: kind(setting(path, config, theirs, (int, kind))) for ours, theirs in stated.items()}


def only(where: Path, files: Sequence[Path]) -> Path:
    """The one file among candidates.

    Raises:
        InputError: there is none, or there are several to choose from.
    """
    if len(files) != 1:
        found = ", ".join(sorted(file.name for file in files)) or "none"
        raise InputError(f"{where} should hold the weights of one crosscoder; it has {found}: name the file itself")
    return files[0]
