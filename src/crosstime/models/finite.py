"""Activations that are numbers: a checkpoint whose weights are broken is found where it first shows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.models.split import SplitLM


def finite_residual(
    lm: SplitLM, tokens: Int[Tensor, "B S"], tokenizer: PreTrainedTokenizerBase | None = None
) -> Float[Tensor, "B S D"]:
    """`lm.lower(tokens)`, refused where it holds NaN or infinity.

    Args:
        lm: a checkpoint, whose name the error gives.
        tokens: rows without padding.
        tokenizer: lets the error show text instead of token ids.

    Raises:
        InputError: an activation is not finite; the checkpoint and the token are named.
    """
    residual = lm.lower(tokens.to(lm.device))
    # The sum over D is not finite where an entry is not, and is cheaper to look through than the entries.
    finite = residual.float().sum(-1).isfinite().all(-1)
    if finite.all() or residual.isfinite().all():
        return residual
    ids = tokens[int(finite.int().argmin())].tolist()
    position = _first_not_finite(lm, ids)
    token = f"token id {ids[position]}, position {position}"
    if tokenizer is not None:
        text = tokenizer.decode(ids[position : position + 1])
        token = f"token {text!r}, position {position} of {tokenizer.decode(ids)!r}"
    raise InputError(
        f"checkpoint {lm.name}: the activation after block {lm.layer} is not finite at {token}; "
        "leave this checkpoint out, or try float32"
    )


def _first_not_finite(lm: SplitLM, ids: list[int]) -> int:
    """The position at which a text first gives a value that is not finite."""
    # Within one pass NaN also reaches positions before it: attention weighs them with zero, and zero times NaN is NaN.
    for end in range(1, len(ids)):
        if not lm.lower(torch.tensor([ids[:end]], device=lm.device)).isfinite().all():
            return end - 1
    return len(ids) - 1
