"""The formats of the code of Crosscoding Through Time (arXiv 2509.05291) and of ckkissane, from which it descends.

The paper's are N.pt with N_cfg.json. N.pt is a state dict with W_enc [M, D, F], W_dec [F, M, D], b_enc [F] and b_dec
[M, D]; for BatchTopK crosscoders also k and threshold. They are in scaled units; the factors c are
`estimated_act_norm_list` in N_cfg.json.

Those of ckkissane/crosscoder-model-diff-replication are cc_weights.pt, with the same tensors for two models, and
cfg.json. The files name neither the models nor the scale factors; the factors of
ckkissane/crosscoder-gemma-2-2b-model-diff were published separately (docs/formats.md).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import (
    Contents,
    Facts,
    ForeignFile,
    assemble,
    layer_of_hook,
    only_file,
    read_config,
    read_tensors,
)
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK
from crosstime.models.metadata import tokens_seen
from crosstime.text.positions import Positions

POSITIONS = Positions(bos=False, encode_first=True, train_first=False)
"""Sequences have no BOS; position 0 isn't trained on, but is encoded in every analysis."""

CKKISSANE_POSITIONS = Positions(bos=True, encode_first=False)
"""Sequences begin with BOS, which is dropped."""

# Settings of `BatchTopK` → their names in N_cfg.json.
_BATCH_TOPK_COUNTS = {
    "k": "batch_topk_final",
    "k_start": "batch_topk_init",
    "k_steps": "topk_annealing_steps",
    "threshold_start": "threshold_start_step",
    "dead_tokens": "dead_feature_threshold",
}
_BATCH_TOPK_SHARES = {"threshold_decay": "threshold_beta", "aux_weight": "auxk_alpha"}


def fits(path: Path) -> bool:
    """Whether a folder or file has the paper's format."""
    return any(_config_of(file).is_file() for file in _weights(path))


def read(path: Path, given: Facts) -> Crosscoder:
    """Read a file N.pt, or a folder with one of them."""
    weights = only_file(path, _weights(path))
    file = _read_file(weights, _config_of(weights))
    names = None if given.checkpoints else _checkpoints(file)
    model = str(file.config.get("model_name", ""))
    facts = Facts(
        checkpoints=names,
        layer=_layer(file),
        tokens=[tokens_seen(model, name) for name in names] if names else None,
        scale=file.config.get("estimated_act_norm_list"),
        positions=POSITIONS,
    )
    sources = [f"{model}@{name}" for name in names or ()]
    return assemble(Contents(file.path, **_weights_of(file), **_sparsity(file), sources=sources, facts=facts), given)


def fits_ckkissane(path: Path) -> bool:
    """Whether a folder or file has ckkissane's format."""
    return _ckkissane_weights(path).is_file()


def read_ckkissane(path: Path, given: Facts) -> Crosscoder:
    """Read cc_weights.pt, or a folder with it."""
    weights = _ckkissane_weights(path)
    file = _read_file(weights, weights.with_name("cfg.json"))
    facts = Facts(layer=_layer(file), positions=CKKISSANE_POSITIONS)
    return assemble(Contents(file.path, **_weights_of(file), sparsity=_l1(file), facts=facts), given)


def _ckkissane_weights(path: Path) -> Path:
    return path if path.name == "cc_weights.pt" else path / "cc_weights.pt"


def _read_file(weights: Path, config: Path) -> ForeignFile:
    described = read_config(config)
    return ForeignFile(weights, read_tensors(weights), config, described)


def _weights_of(file: ForeignFile) -> dict[str, Any]:
    """Return the weights; both formats have the same names and shapes as crosstime."""
    dimensions = {"W_enc": 3, "b_enc": 1, "W_dec": 3, "b_dec": 2}
    return {name: file.tensor(name, n) for name, n in dimensions.items()}


def _layer(file: ForeignFile) -> int | None:
    return layer_of_hook(file.setting("hook_point", str))


def _l1(file: ForeignFile) -> L1:
    """Return the penalty of a configuration; the paper's default for settings that it lacks."""
    return L1(**file.numbers({"weight": "l1_coeff", "warmup": "l1_warmup_pct"}, float))


def _sparsity(file: ForeignFile) -> dict[str, Any]:
    if "threshold" not in file.tensors:
        return {"sparsity": _l1(file)}
    settings = {"k": int(file.tensor("k", 0))}
    settings |= file.numbers(_BATCH_TOPK_COUNTS, int)
    settings |= file.numbers(_BATCH_TOPK_SHARES, float)
    return {"sparsity": BatchTopK(**settings), "threshold": file.tensor("threshold", 0)}


def _checkpoints(file: ForeignFile) -> list[str] | None:
    """Split `revision_list`, which the training script joins by "_" for OLMo, whose revisions have "-", else by "-"."""
    config = file.config
    if "revision_list" not in config:
        return None
    joined, separator = str(config["revision_list"]), "_" if "olmo" in str(config.get("model_name")).lower() else "-"
    names = joined.split(separator)
    if len(names) != config.get("n_models", len(names)):
        raise InputError(
            f"{file.config_path}: `revision_list` {joined!r} has {len(names)} names when split at {separator!r}, but "
            f"n_models is {config['n_models']}: pass `checkpoints`"
        )
    return names


def _weights(path: Path) -> list[Path]:
    """Return the files N.pt of a folder, or the one that was named."""
    files = path.iterdir() if path.is_dir() else [path]
    return [file for file in files if re.fullmatch(r"\d+\.pt", file.name)]


def _config_of(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}_cfg.json")
