"""Writing each checkpoint's part of a crosscoder as a sparse autoencoder that SAELens loads: cfg.json and weights.

A crosscoder's code depends on all checkpoints, and an autoencoder sees one. So a column is an approximation: it has the
checkpoint's own slice of the encoder, and what the other checkpoints would add to the pre-activations is missing. Its
decoder is exact: given the crosscoder's code, it decodes what the crosscoder decodes for that checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUT = "6.0.0"
"""The version of SAELens that introduced this layout of cfg.json."""
ABOUT = (
    "One checkpoint's column of a crosscoder. The decoder is the crosscoder's. The encoder is only this checkpoint's "
    "slice of it: the crosscoder's codes depend on all its checkpoints, so codes computed here are an approximation."
)


@torch.no_grad()
def export_saelens(crosscoder: Crosscoder, folder: str | Path) -> list[Path]:
    """Write one autoencoder a checkpoint, for raw activations, into subfolders named as the checkpoints.

    Each holds W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], and `threshold` [F] where the sparsity rule has one
    (architecture "jumprelu", otherwise "standard").

    Args:
        crosscoder: of any rule by which a feature's own code decides whether it is kept (not TopK).
        folder: made if need be.

    Returns:
        The subfolders, in the order of the checkpoints.

    Raises:
        InputError: the sparsity rule compares features with one another; or two checkpoints would share a folder.
    """
    folded, config = crosscoder.fold(), crosscoder.config
    folders = [Path(folder) / name.replace("/", "_") for name in config.checkpoints]
    if len(set(folders)) < len(folders):
        raise InputError(f"two of the checkpoints {list(config.checkpoints)} would be written into one folder")
    columns = []
    for m in range(len(config.checkpoints)):
        least = config.sparsity.least_code(crosscoder.decoder_norms(), m, crosscoder.threshold)
        if least is None:
            raise InputError(
                f"the sparsity rule {config.sparsity.rule!r} compares the features of a row with one another, so no "
                "autoencoder of one checkpoint can keep the same ones"
            )
        columns.append(
            {"W_enc": folded.W_enc[m], "b_enc": folded.b_enc, "W_dec": folded.W_dec[:, m], "b_dec": folded.b_dec[m]}
            | ({"threshold": least} if least.any() else {})
        )
    for m, (path, column) in enumerate(zip(folders, columns, strict=True)):
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in column.items()}, path / WEIGHTS)
        architecture = "jumprelu" if "threshold" in column else "standard"
        (path / CONFIG).write_text(json.dumps(_config(crosscoder, m, architecture), indent=2) + "\n", encoding="utf-8")
    return folders


def _config(crosscoder: Crosscoder, m: int, architecture: str) -> dict[str, Any]:
    """cfg.json of checkpoint m's column."""
    config = crosscoder.config
    model, _, revision = (config.sources[m] if config.sources else "").partition("@")
    return {
        "architecture": architecture,
        "d_in": config.width,
        "d_sae": config.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": LAYOUT,
            "model_name": model or None,
            "model_from_pretrained_kwargs": {"revision": revision} if revision else {},
            "hook_name": f"blocks.{config.layer}.hook_resid_post",
            "prepend_bos": config.positions.bos,
            "crosscoder_checkpoint": config.checkpoints[m],
            "crosscoder_checkpoints": list(config.checkpoints),
            "about": ABOUT,
        },
    }
