"""Where every analysis begins: the residual streams of all checkpoints on the same tokens, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from crosstime.base.errors import InputError
from crosstime.base.memory import AdaptiveBatches
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM, finite_residual
from crosstime.text.corpus import Corpus

T = TypeVar("T")


def check_models(crosscoder: Crosscoder, models: Sequence[SplitLM]) -> None:
    """Refuse models that are not the checkpoints of this crosscoder, in its order.

    Raises:
        InputError: another number of models, or one with another name, width or layer.
    """
    config = crosscoder.config
    if len(models) != len(config.checkpoints):
        raise InputError(f"the crosscoder reads {len(config.checkpoints)} checkpoints; got {len(models)} models")
    for name, model in zip(config.checkpoints, models, strict=True):
        for what, expected, found in (
            ("name", name, model.name or name),  # a model made in memory may have no name
            ("width", config.width, model.width),
            ("layer", config.layer, model.layer),
        ):
            if found != expected:
                raise InputError(
                    f"model {model.name!r} is not checkpoint {name!r} of the crosscoder: its {what} is {found!r}, "
                    f"not {expected!r}; pass the models in the order {list(config.checkpoints)}"
                )


def heldout_blocks(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    *,
    max_blocks: int,
    batch_blocks: int,
    wanted: Literal["encoded", "predicted"],
) -> Int[Tensor, "N S"]:
    """The first blocks of a held-out text; refused where they cannot serve this crosscoder.

    Args:
        wanted: what each block must have a token for: to be encoded, or to be predicted from one that is encoded.

    Raises:
        InputError: the models are not the crosscoder's, the text has another policy for position 0 or no such token, or
            one of the numbers is below 1.
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(heldout.bos, "the held-out text")
    if min(max_blocks, batch_blocks) < 1:
        raise InputError(f"max_blocks and batch_blocks must be at least 1; got {max_blocks} and {batch_blocks}")
    blocks = torch.from_numpy(heldout.blocks[:max_blocks].astype(np.int64))
    least = crosscoder.config.positions.first_encoded + (1 if wanted == "encoded" else 2)
    if len(blocks) == 0 or blocks.shape[1] < least:
        raise InputError(f"held-out text {heldout.name!r} has no block in which a token is {wanted}: give more text")
    return blocks


def in_batches(
    doing: str, blocks: Int[Tensor, "N S"], batch_blocks: int, work: Callable[[Int[Tensor, "B S"]], T]
) -> Iterator[T]:
    """What the work gives for each batch of blocks, in order; in smaller batches, with a warning, where memory ran out.

    Args:
        doing: what the work is: "evaluate".
        blocks: all of them.
        batch_blocks: blocks of a batch.
        work: must change nothing but by what it returns (see `AdaptiveBatches`).

    Raises:
        InputError: there is not enough memory for one block.
    """
    context = blocks.shape[1]
    batches = AdaptiveBatches(doing, "block", batch_blocks * context, lower="text.context or crosscoder.features")
    with tqdm(total=len(blocks), desc=doing, unit="block", leave=False, disable=None) as bar:

        def counted(tokens: Tensor) -> tuple[int, T]:
            return len(tokens), work(tokens)

        for count, done in batches.run(blocks, counted, length=context):
            yield done
            bar.update(count)


def residuals(
    crosscoder: Crosscoder, models: Sequence[SplitLM], tokens: Int[Tensor, "B S"]
) -> Float[Tensor, "B S M D"]:
    """What the crosscoder reads: the output of its layer at every checkpoint, in the crosscoder's dtype, on its device.

    Raises:
        InputError: a checkpoint gives NaN or infinity; it and the token are named.
    """
    return torch.stack([finite_residual(model, tokens).to(crosscoder.W_enc) for model in models], dim=2)


def encode(crosscoder: Crosscoder, x: Float[Tensor, "B S M D"]) -> Float[Tensor, "B S F"]:
    """The features at every position; zero at a position that the crosscoder's policy leaves alone."""
    f = crosscoder.encode(x)
    f[:, : crosscoder.config.positions.first_encoded] = 0
    return f
