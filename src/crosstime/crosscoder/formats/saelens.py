"""Export each checkpoint's part of a crosscoder as a sparse autoencoder for SAELens: cfg.json and weights.

A crosscoder's feature activations depend on all checkpoints, those of an autoencoder on one. So the encoder is an
approximation: it has the checkpoint's own slice of W_enc and lacks what the other checkpoints add to the
pre-activations. The decoder is exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SAELENS_VERSION = "6.0.0"
"""The first version of SAELens with this layout of cfg.json."""
_ABOUT = (
    "One checkpoint's column of a crosscoder. The decoder is the crosscoder's. The encoder is only this checkpoint's "
    "slice of it. The crosscoder's feature activations depend on all checkpoints, so those computed here are an "
    "approximation."
)


@torch.no_grad()
def export_saelens(crosscoder: Crosscoder, folder: str | Path) -> list[Path]:
    """Write one autoencoder per checkpoint, for raw activations, into subfolders named after the checkpoints.

    Each holds W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], and `threshold` [F] if the sparsity rule has one
    (architecture "jumprelu", otherwise "standard").

    Args:
        crosscoder: With any sparsity rule that decides on each feature separately (not TopK).
        folder: Where to write; created if needed.

    Returns:
        The subfolders, in the order of the checkpoints.

    Raises:
        InputError: The sparsity rule compares features with one another, or two checkpoints would share a folder.

    Example:
        >>> import tempfile
        >>> from crosstime import Crosscoder, CrosscoderConfig, export_saelens
        >>> crosscoder = Crosscoder(CrosscoderConfig(("step256", "main"), layer=3, width=16, features=64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export_saelens(crosscoder, folder)]
        ['step256', 'main']
    """
    folded, config = crosscoder.fold(), crosscoder.config
    folders = [Path(folder) / name.replace("/", "_") for name in config.checkpoints]
    if len(set(folders)) < len(folders):
        raise InputError(f"two of the checkpoints {list(config.checkpoints)} would be written to the same folder")
    columns = []
    for m in range(len(config.checkpoints)):
        threshold = config.sparsity.activation_threshold(crosscoder.decoder_norms(), m, crosscoder.threshold)
        if threshold is None:
            raise InputError(
                f"the sparsity rule {config.sparsity.rule!r} compares the features of a token with one another, so an "
                "autoencoder of one checkpoint can't keep the same ones"
            )
        columns.append(
            {"W_enc": folded.W_enc[m], "b_enc": folded.b_enc, "W_dec": folded.W_dec[:, m], "b_dec": folded.b_dec[m]}
            | ({"threshold": threshold} if threshold.any() else {})
        )
    for m, (path, column) in enumerate(zip(folders, columns, strict=True)):
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in column.items()}, path / _WEIGHTS)
        architecture = "jumprelu" if "threshold" in column else "standard"
        (path / _CONFIG).write_text(json.dumps(_config(crosscoder, m, architecture), indent=2) + "\n", encoding="utf-8")
    return folders


def _config(crosscoder: Crosscoder, m: int, architecture: str) -> dict[str, Any]:
    """Return cfg.json of checkpoint m's column."""
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
            "sae_lens_version": _SAELENS_VERSION,
            "model_name": model or None,
            "model_from_pretrained_kwargs": {"revision": revision} if revision else {},
            "hook_name": f"blocks.{config.layer}.hook_resid_post",
            "prepend_bos": config.positions.bos,
            "crosscoder_checkpoint": config.checkpoints[m],
            "crosscoder_checkpoints": list(config.checkpoints),
            "about": _ABOUT,
        },
    }
