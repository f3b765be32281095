"""The format of OpenMOSS/Language-Model-SAEs (Llamascopium): config.json with sae_weights.safetensors.

A head of these crosscoders is a checkpoint here. `W_E` [M, D, F]; `b_E` [M, F], which are summed over heads; `W_D`
[M, F, D]; `b_D` [M, D]; `activation_function.log_jumprelu_threshold` [F]; and `dataset_average_activation_norm.HEAD`,
the mean norm n of a head's activations, which are multiplied by sqrt(D) / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import (
    Contents,
    Facts,
    ForeignFile,
    assemble,
    config_of_folder,
    layer_of_hook,
    read_config,
    read_tensors,
)
from crosstime.crosscoder.sparsity.rules import L1, JumpReLU

_CONFIG = "config.json"
_WEIGHTS = tuple(
    f"{name}.{suffix}"
    for name in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for suffix in ("safetensors", "pt")
)


def fits(path: Path) -> bool:
    """Whether a folder has this format."""
    return config_of_folder(path).get("sae_type") == "crosscoder"


def read(path: Path, given: Facts) -> Crosscoder:
    """Read a folder with config.json and weights.

    Raises:
        InputError: As `assemble`; a file is missing or invalid; or the crosscoder has a part without a counterpart
            here.
    """
    config, weights = read_config(path / _CONFIG), _weights(path)
    tensors = read_tensors(weights)
    # In a .pt file the tensors are nested one level deeper.
    file = ForeignFile(weights, tensors.get("sae", tensors), path / _CONFIG, config)
    heads = file.setting("hook_points", list)
    contents = Contents(
        path=weights,
        W_enc=file.tensor("W_E", 3),
        b_enc=file.tensor("b_E", 2).float().sum(0),
        W_dec=file.tensor("W_D", 3).transpose(0, 1),
        b_dec=file.tensor("b_D", 2),
        facts=Facts(scale=_scale(file, heads), **_checkpoints(heads)),
        **_sparsity(file),
    )
    return assemble(contents, given)


def _scale(file: ForeignFile, heads: Sequence[str]) -> list[float]:
    mode = file.setting("norm_activation", str)
    if mode == "inference":  # the factors were folded into the weights; any norms still in the file mean nothing
        return [1.0] * len(heads)
    if mode != "dataset-wise":
        raise InputError(
            f"{file.config_path}: norm_activation {mode!r} scales each token or batch by itself; crosstime has one "
            "scale factor per checkpoint"
        )
    norms = [float(file.tensor(f"dataset_average_activation_norm.{head}", 0)) for head in heads]
    return [math.sqrt(file.setting("d_model", int)) / norm for norm in norms]


def _checkpoints(heads: Sequence[str]) -> dict[str, Any]:
    """Name checkpoints after their heads, unless those are TransformerLens' names of places in one model."""
    layers = [layer_of_hook(head) for head in heads]
    if any(layer is not None for layer in layers):
        return {"layer": layers[0] if len(set(layers)) == 1 else None}
    return {"checkpoints": heads}


def _sparsity(file: ForeignFile) -> dict[str, Any]:
    act_fn = str(file.config.get("act_fn", "relu")).lower()
    if act_fn == "relu":
        return {"sparsity": L1(weight=0.0)}  # the files don't hold the penalty of training
    if act_fn != "jumprelu":
        raise InputError(
            f"{file.config_path}: act_fn {act_fn!r} selects features for each checkpoint separately; crosstime selects "
            "them over all checkpoints, and can read relu and jumprelu"
        )
    if file.config.get("sparsity_include_decoder_norm") is False:
        raise InputError(
            f"{file.config_path}: sparsity_include_decoder_norm is false; crosstime gates by decoder norms"
        )
    rule = JumpReLU(**file.numbers({"window": "jumprelu_threshold_window"}, float))
    return {"sparsity": rule, "threshold": file.tensor("activation_function.log_jumprelu_threshold", 1)}


def _weights(path: Path) -> Path:
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path} holds no weights that crosstime reads: {', '.join(_WEIGHTS)}")
