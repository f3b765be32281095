"""Logits of many positions in bounded memory, and the cross-entropy of a text from them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.models.split import SplitLM

LOGITS_AT_ONCE = 2**25
"""Logits held in memory at a time (128 MiB in float32); fewer than one sequence's cannot be made."""


def logits_in_parts(
    model: SplitLM, residual: Float[Tensor, "B S D"]
) -> Iterator[tuple[slice, Float[Tensor, "rows S V"]]]:
    """The logits of a batch, a few rows at a time.

    Args:
        model: a checkpoint with its upper blocks.
        residual: what its `lower` gave, or something in place of that; on any device.

    Yields:
        which rows, and their logits in the model's dtype.
    """
    rows = max(1, LOGITS_AT_ONCE // (residual.shape[1] * model.vocab_size))
    for start in range(0, len(residual), rows):
        part = slice(start, start + rows)
        yield part, model.upper(residual[part].to(model.device))


def cross_entropy(
    model: SplitLM, residual: Float[Tensor, "B S D"], tokens: Int[Tensor, "B S"], first: int
) -> Float[Tensor, "B n"]:
    """Nats of each token given those before it, for the predictions made at positions `first` .. S-2; on the CPU.

    Args:
        model: a checkpoint with its upper blocks.
        residual: as for `logits_in_parts`.
        tokens: the text.
        first: the first position whose prediction counts; n = S - 1 - first.
    """
    nats = []
    for part, logits in logits_in_parts(model, residual):
        predicted = logits[:, first:-1].float()
        targets = tokens[part, first + 1 :].to(predicted.device)
        nats.append(torch.nn.functional.cross_entropy(predicted.flatten(0, 1), targets.flatten(), reduction="none"))
    return torch.cat(nats).cpu().reshape(len(tokens), -1)
