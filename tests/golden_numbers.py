"""The golden numbers of the paper's public code (tests/golden), and how closely ours must come to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.text.positions import Positions

FOLDER = Path(__file__).parent / "golden"
POSITIONS = Positions(bos=False, encode_first=True, train_first=False)
NAMES = ("step0", "step1", "step2")
LAYER, WIDTH, FEATURES = 1, 32, 96


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def read_json(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def crosscoder(weights: dict[str, Tensor], sparsity: Sparsity | None = None, scale: Tensor | None = None) -> Crosscoder:
    """A crosscoder with stored weights; `scale` is 1 where the rows are scaled already."""
    config = CrosscoderConfig(NAMES, LAYER, WIDTH, FEATURES, positions=POSITIONS, sparsity=sparsity or L1())
    made = Crosscoder(config)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(made, name).copy_(weights[name])
        if scale is not None:
            made.scale.copy_(scale)
    return made


def part(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by their last name."""
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def assert_golden(ours: Tensor, golden: Tensor, relative: float = 1e-5) -> None:
    """Equal to `relative` of the largest stored value: float32 sums of another order differ by no more."""
    torch.testing.assert_close(ours.to(golden.dtype), golden, rtol=relative, atol=relative * float(golden.abs().max()))
