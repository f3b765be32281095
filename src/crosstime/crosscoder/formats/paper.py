"""The format of the public code of Crosscoding Through Time (arXiv 2509.05291): N.pt and N_cfg.json.

N.pt is a state dict with W_enc [M, D, F], W_dec [F, M, D], b_enc [F], b_dec [M, D]; of BatchTopK crosscoders also k and
threshold. They are in scaled units; the factors c are `estimated_act_norm_list` in N_cfg.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import numbers, only, read_config, read_tensors, setting, take
from crosstime.crosscoder.formats.stated import Found, Stated, assemble, layer_of_hook
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK
from crosstime.models.metadata import tokens_seen
from crosstime.text.positions import Positions

POSITIONS = Positions(bos=False, encode_first=True, train_first=False)
"""No BOS is put before its sequences; position 0 is left out of training, and encoded in every analysis."""

BATCH_TOPK_COUNTS = {
    "k": "batch_topk_final",
    "k_start": "batch_topk_init",
    "k_steps": "topk_annealing_steps",
    "threshold_start": "threshold_start_step",
    "dead_tokens": "dead_feature_threshold",
}
BATCH_TOPK_SHARES = {"threshold_decay": "threshold_beta", "aux_weight": "auxk_alpha"}
"""What N_cfg.json calls the settings of `BatchTopK`."""


def fits(path: Path) -> bool:
    """Whether a folder or file is of this format."""
    return any(_config_of(file).is_file() for file in _weights(path))


def read(path: Path, stated: Stated) -> Crosscoder:
    """Read a file N.pt, or a folder with one of them.

    Raises:
        InputError: see `assemble`; or a file is missing or not of this format.
    """
    weights = only(path, _weights(path))
    where = _config_of(weights)
    config, tensors = read_config(where), read_tensors(weights)
    names = None if stated.checkpoints else _checkpoints(where, config)
    model = str(config.get("model_name", ""))
    found = Found(
        **matrices(weights, tensors),
        **_sparsity(where, config, weights, tensors),
        scale=config.get("estimated_act_norm_list"),
        checkpoints=names,
        layer=layer_of_hook(setting(where, config, "hook_point", str)),
        tokens=[tokens_seen(model, name) for name in names or ()],
        sources=[f"{model}@{name}" for name in names or ()],
        positions=POSITIONS,
    )
    return assemble(found, stated)


def matrices(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The weights under their names in this format, which are ours."""
    dimensions = {"W_enc": 3, "b_enc": 1, "W_dec": 3, "b_dec": 2}
    return {"where": path} | {name: take(path, tensors, name, n) for name, n in dimensions.items()}


def l1(path: Path, config: Mapping[str, Any]) -> L1:
    """The penalty that a configuration states; the paper's where it is silent."""
    return L1(**numbers(path, config, {"weight": "l1_coeff", "warmup": "l1_warmup_pct"}, float))


def _sparsity(path: Path, config: Mapping[str, Any], weights: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    if "threshold" not in tensors:
        return {"sparsity": l1(path, config)}
    settings = {"k": int(take(weights, tensors, "k", 0))}
    settings |= numbers(path, config, BATCH_TOPK_COUNTS, int)
    settings |= numbers(path, config, BATCH_TOPK_SHARES, float)
    return {"sparsity": BatchTopK(**settings), "threshold": take(weights, tensors, "threshold", 0)}


def _checkpoints(path: Path, config: Mapping[str, Any]) -> list[str] | None:
    """`revision_list`, which the training script joins by "_" for OLMo, whose revisions hold "-", else by "-"."""
    if "revision_list" not in config:
        return None
    joined, separator = str(config["revision_list"]), "_" if "olmo" in str(config.get("model_name")).lower() else "-"
    names = joined.split(separator)
    if len(names) != config.get("n_models", len(names)):
        raise InputError(
            f"{path}: `revision_list` {joined!r} names {len(names)} checkpoints when split at {separator!r}; n_models "
            f"is {config['n_models']}: state them with `checkpoints`"
        )
    return names


def _weights(path: Path) -> list[Path]:
    """The files N.pt of a folder, or the one that was named."""
    files = path.iterdir() if path.is_dir() else [path]
    return [file for file in files if re.fullmatch(r"\d+\.pt", file.name)]


def _config_of(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}_cfg.json")
