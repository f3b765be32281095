"""What the importers share: read files of other projects without running code, and build a crosscoder from them."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import Sparsity
from crosstime.text.positions import Positions


@dataclass(frozen=True)
class Facts:
    """What a crosscoder was trained on, by its files or by the user; see `import_crosscoder`. None if unknown."""

    checkpoints: Sequence[str] | None = None
    layer: int | None = None
    tokens: Sequence[int | None] | None = None
    scale: Sequence[float] | None = None
    positions: Positions | None = None


@dataclass(frozen=True)
class Format:
    """A file format of crosscoders."""

    name: str
    """What users call it."""
    fits: Callable[[Path], bool]
    """Whether a file or folder has this format."""
    read: Callable[[Path, Facts], Crosscoder]
    """Read a file or folder of this format, given the facts that the user passed."""


@dataclass(frozen=True)
class Contents:
    """What a format's files hold, in crosstime's terms."""

    path: Path
    """The file of the weights, for error messages."""
    # Shapes [M, D, F], [F], [F, M, D] and [M, D] if the file is sound; `assemble` checks.
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    sparsity: Sparsity
    threshold: Tensor | None = None
    sources: Sequence[str] = ()
    facts: Facts = Facts()


def assemble(contents: Contents, given: Facts) -> Crosscoder:
    """Build a crosscoder that computes the same function; facts given by the user replace those of the files.

    Raises:
        InputError: Checkpoints, layer or scale factors are neither in the files nor passed; their number isn't the
            file's; the shapes of the weights don't fit one another; or a weight isn't finite.
    """
    path, (m, d, f) = contents.path, contents.W_enc.shape
    for name, shape in (("b_enc", (f,)), ("W_dec", (f, m, d)), ("b_dec", (m, d))):
        actual = tuple(getattr(contents, name).shape)
        if actual != shape:
            raise InputError(
                f"{path}: {name} has the shape {actual}, not {shape} as its encoder ({m} checkpoints, width {d}, {f} "
                "features)"
            )
    if contents.facts.scale is not None and given.scale is not None:
        raise InputError(f"{path}: the files have scale factors ({list(contents.facts.scale)}): don't pass `scale`")
    facts = replace(contents.facts, **{name: value for name, value in vars(given).items() if value is not None})
    checkpoints = _one_per_checkpoint(contents, "checkpoints", facts.checkpoints)
    if facts.layer is None:
        raise InputError(f"{path}: the files lack `layer`, the block whose output it reads: pass it")
    config = CrosscoderConfig(
        checkpoints=tuple(checkpoints),
        layer=facts.layer,
        width=d,
        features=f,
        tokens=tuple(_one_per_checkpoint(contents, "tokens", facts.tokens)) if facts.tokens else (),
        sources=tuple(contents.sources),
        positions=facts.positions or Positions(),
        sparsity=contents.sparsity,
    )
    scale = torch.tensor(_one_per_checkpoint(contents, "scale", facts.scale), dtype=torch.float32)
    if not (scale > 0).all() or not scale.isfinite().all():
        raise InputError(f"{path}: scale factors must be positive, not {scale.tolist()}")
    state = {name: getattr(contents, name).float() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if contents.threshold is not None:
        state["threshold"] = contents.threshold.float()
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinity")
    crosscoder = Crosscoder(config)
    crosscoder.load_state_dict({**crosscoder.state_dict(), **state, "scale": scale})
    return crosscoder


def _one_per_checkpoint(contents: Contents, name: str, values: Sequence[Any] | None) -> Sequence[Any]:
    number = len(contents.W_enc)
    if values is None:
        raise InputError(f"{contents.path}: the files lack `{name}` ({number} values, one per checkpoint): pass it")
    if len(values) != number:
        raise InputError(f"{contents.path} has {number} checkpoints, but {name} has {len(values)}: {list(values)}")
    return values


def layer_of_hook(hook: str) -> int | None:
    """Parse TransformerLens' name of a residual stream into a layer; return None for other names.

    Raises:
        InputError: It is the stream before the first block, which is no block's output.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    if match is None:
        return None
    layer = int(match[1]) - (match[2] == "pre")
    if layer < 0:
        raise InputError(f"{hook} is the output of the embedding, not of a block: crosstime reads the output of blocks")
    return layer


@dataclass(frozen=True)
class ForeignFile:
    """A file of weights of another project, and the configuration that describes it."""

    path: Path
    tensors: Mapping[str, Any]
    config_path: Path
    config: Mapping[str, Any]

    def tensor(self, name: str, dimensions: int) -> Tensor:
        """Return a tensor; raise InputError if it is missing or has another number of dimensions."""
        tensor = self.tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise InputError(f"{self.path} holds no tensor {name!r}; it has {', '.join(sorted(self.tensors)[:12])}")
        if tensor.ndim != dimensions:
            raise InputError(f"{self.path}: {name} must have {dimensions} dimensions, not {list(tensor.shape)}")
        return tensor

    def setting(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return a value of the configuration; raise InputError if it is missing or of another type."""
        value = self.config.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise InputError(f"{self.config_path}: `{name}` is missing or of the wrong type ({value!r})")
        return value

    def numbers(self, names: Mapping[str, str], kind: type) -> dict[str, Any]:
        """Return numbers of the configuration under other names; leave out those that are missing or null.

        Args:
            names: New name → name in the configuration.
            kind: int or float.
        """
        present = {ours: theirs for ours, theirs in names.items() if self.config.get(theirs) is not None}
        return {ours: kind(self.setting(theirs, (int, kind))) for ours, theirs in present.items()}


def read_tensors(path: Path) -> dict[str, Any]:
    """Read the tensors and plain values of a .safetensors or .pt file by name.

    Raises:
        InputError: The file is damaged, or a pickle that holds anything else. Reading a pickle can run code, so only
            tensors and plain values are read from one.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} was not read: it is damaged, or holds more than tensors, and reading such a file can run code"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise InputError if the file is missing or holds something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}, which describes the crosscoder, is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must be a JSON object")
    return config


def config_of_folder(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder; return an empty one if it is missing or unreadable."""
    try:
        return read_config(folder / "config.json")
    except (InputError, NotADirectoryError):
        return {}


def only_file(folder: Path, files: Sequence[Path]) -> Path:
    """Return the only file of a list; raise InputError if there is none, or more than one."""
    if len(files) != 1:
        names = ", ".join(sorted(file.name for file in files)) or "none"
        raise InputError(f"{folder} should hold the weights of one crosscoder; it has {names}: name the file itself")
    return files[0]
