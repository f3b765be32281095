"""What the user says of a foreign crosscoder, and the crosscoder that it becomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import Sparsity
from crosstime.text.positions import Positions


@dataclass(frozen=True)
class Stated:
    """For what a format's files do not say; all but scale factors also in place of what they say."""

    checkpoints: Sequence[str] | None = None
    """Their names, in the order of the file, which must be that of training."""
    layer: int | None = None
    """The block whose output is read, counted from 0."""
    tokens: Sequence[int | None] | None = None
    """Tokens seen at each checkpoint."""
    scale: Sequence[float] | None = None
    """The factor c of each checkpoint that activations were multiplied with in training."""
    positions: Positions | None = None
    """The policy for position 0."""


@dataclass(frozen=True)
class Found:
    """What a format's files hold, in the words of `Crosscoder`. None: they do not say."""

    where: Path
    """The file of the weights, for error messages."""
    # [M, D, F], [F], [F, M, D] and [M, D], if the file is sound; `assemble` checks it.
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    sparsity: Sparsity
    threshold: Tensor | None = None
    scale: Sequence[float] | None = None
    checkpoints: Sequence[str] | None = None
    layer: int | None = None
    tokens: Sequence[int | None] = ()
    sources: Sequence[str] = ()
    positions: Positions | None = None


def assemble(found: Found, stated: Stated) -> Crosscoder:
    """The crosscoder of ours that computes the same function.

    Raises:
        InputError: nobody says which checkpoints, layer or scale factors; their number is not the file's; the shapes
            of the weights do not fit one another, or a weight is not finite.
    """
    m, d, f = found.W_enc.shape
    for name, shape in (("b_enc", (f,)), ("W_dec", (f, m, d)), ("b_dec", (m, d))):
        if getattr(found, name).shape != shape:
            raise InputError(
                f"{found.where}: {name} has the shape {tuple(getattr(found, name).shape)}; {shape} would fit the "
                f"encoder ({m} checkpoints, width {d}, {f} features)"
            )
    config = CrosscoderConfig(
        checkpoints=tuple(_needed(found, "checkpoints", stated.checkpoints, found.checkpoints, m)),
        layer=_layer(found, stated),
        width=d,
        features=f,
        tokens=tuple(_fitting(found, "tokens", stated.tokens or found.tokens, m)),
        sources=tuple(found.sources),
        positions=stated.positions or found.positions or Positions(),
        sparsity=found.sparsity,
    )
    if found.scale is not None and stated.scale is not None:
        raise InputError(f"{found.where}: its files say the scale factors ({list(found.scale)}): do not state others")
    scale = torch.tensor(_needed(found, "scale", stated.scale, found.scale, m), dtype=torch.float32)
    state = {name: getattr(found, name).float() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if found.threshold is not None:
        state["threshold"] = found.threshold.float()
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"{found.where}: {name} holds NaN or infinity")
    if not (scale > 0).all() or not scale.isfinite().all():
        raise InputError(f"{found.where}: scale factors must be positive; got {scale.tolist()}")
    crosscoder = Crosscoder(config)
    crosscoder.load_state_dict({**crosscoder.state_dict(), **state, "scale": scale})
    return crosscoder


def layer_of_hook(hook: str) -> int | None:
    """The layer of TransformerLens' name of a residual stream; None where it is none.

    Raises:
        InputError: the stream before the first block, which is no block's output.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    if match is None:
        return None
    layer = int(match[1]) - (match[2] == "pre")
    if layer < 0:
        raise InputError(f"{hook} is the output of the embedding, not of a block: crosstime reads blocks")
    return layer


def _layer(found: Found, stated: Stated) -> int:
    layer = found.layer if stated.layer is None else stated.layer
    if layer is None:
        raise InputError(f"{found.where}: its files do not say which block it reads: state it with `layer`")
    return layer


def _needed(found: Found, name: str, stated: Sequence | None, written: Sequence | None, number: int) -> Sequence:
    values = written if stated is None else stated
    if values is None:
        what = {"checkpoints": "which checkpoints it reads", "scale": "the scale factors that it was trained with"}
        raise InputError(f"{found.where}: its files do not say {what[name]}: state them with `{name}`")
    return _fitting(found, name, values, number)


def _fitting(found: Found, name: str, values: Sequence, number: int) -> Sequence:
    if values and len(values) != number:
        raise InputError(f"{found.where} reads {number} checkpoints; {name} has {len(values)}: {list(values)}")
    return values
