"""The format of OpenMOSS/Language-Model-SAEs (Llamascopium): config.json with sae_weights.safetensors.

Its crosscoders have, per head, which is a checkpoint here: `W_E` [M, D, F], `b_E` [M, F], which are summed, `W_D`
[M, F, D], `b_D` [M, D]; `activation_function.log_jumprelu_threshold` [F]; and `dataset_average_activation_norm.HEAD`,
the mean norm n of a head's activations, which are multiplied with sqrt(D) / n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import config_in, numbers, read_config, read_tensors, setting, take
from crosstime.crosscoder.formats.stated import Found, Stated, assemble, layer_of_hook
from crosstime.crosscoder.sparsity.rules import L1, JumpReLU

CONFIG = "config.json"
WEIGHTS = tuple(
    f"{name}.{suffix}"
    for name in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for suffix in ("safetensors", "pt")
)
THRESHOLD = "activation_function.log_jumprelu_threshold"


def fits(path: Path) -> bool:
    """Whether a folder is of this format."""
    return config_in(path).get("sae_type") == "crosscoder"


def read(path: Path, stated: Stated) -> Crosscoder:
    """Read a folder with config.json and weights.

    Raises:
        InputError: see `assemble`; a file is missing or not of this format; or the crosscoder has a part that ours
            cannot have, which the message names.
    """
    config, weights = read_config(path / CONFIG), _weights(path)
    tensors = read_tensors(weights)
    tensors = tensors.get("sae", tensors)  # in a .pt file they lie one level deeper
    heads = setting(path / CONFIG, config, "hook_points", list)
    found = Found(
        where=weights,
        W_enc=take(weights, tensors, "W_E", 3),
        b_enc=take(weights, tensors, "b_E", 2).float().sum(0),
        W_dec=take(weights, tensors, "W_D", 3).transpose(0, 1),
        b_dec=take(weights, tensors, "b_D", 2),
        scale=_scale(path / CONFIG, config, weights, tensors, heads),
        **_checkpoints(heads),
        **_sparsity(path / CONFIG, config, weights, tensors),
    )
    return assemble(found, stated)


def _scale(
    path: Path, config: Mapping[str, Any], weights: Path, tensors: Mapping[str, Any], heads: Sequence[str]
) -> list[float]:
    how = setting(path, config, "norm_activation", str)
    if how == "inference":  # the factors were worked into the weights; the norms that are still there mean nothing
        return [1.0] * len(heads)
    if how != "dataset-wise":
        raise InputError(
            f"{path}: norm_activation {how!r} scales every token or batch by itself, which crosstime cannot: it has "
            "one scale factor a checkpoint"
        )
    norms = [float(take(weights, tensors, f"dataset_average_activation_norm.{head}", 0)) for head in heads]
    return [math.sqrt(setting(path, config, "d_model", int)) / norm for norm in norms]


def _checkpoints(heads: Sequence[str]) -> dict[str, Any]:
    """Checkpoints are called as their heads, unless those are the places in one model that TransformerLens names."""
    layers = [layer_of_hook(head) for head in heads]
    if any(layer is not None for layer in layers):
        return {"layer": layers[0] if len(set(layers)) == 1 else None}
    return {"checkpoints": heads}


def _sparsity(path: Path, config: Mapping[str, Any], weights: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    act_fn = str(config.get("act_fn", "relu")).lower()
    if act_fn == "relu":
        return {"sparsity": L1(weight=0.0)}  # what it was trained with is not in the files
    if act_fn == "jumprelu":
        if config.get("sparsity_include_decoder_norm") is False:
            raise InputError(f"{path}: sparsity_include_decoder_norm is false; crosstime gates by decoder norms")
        rule = JumpReLU(**numbers(path, config, {"window": "jumprelu_threshold_window"}, float))
        return {"sparsity": rule, "threshold": take(weights, tensors, THRESHOLD, 1)}
    raise InputError(
        f"{path}: act_fn {act_fn!r} chooses the largest features of every checkpoint by itself, which crosstime "
        "cannot: it chooses them over all checkpoints; readable are relu and jumprelu"
    )


def _weights(path: Path) -> Path:
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path} holds no weights that crosstime reads: {', '.join(WEIGHTS)}")
