"""Where every analysis begins: the residual streams of all checkpoints on the same tokens, and their features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.lm.finite import finite_residual
from crosstime.lm.split import SplitLM


def check_models(crosscoder: Crosscoder, models: Sequence[SplitLM]) -> None:
    """Refuse models that are not the checkpoints of this crosscoder, in its order.

    Raises:
        ValueError: another number of models, or one with another name, width or layer.
    """
    config = crosscoder.config
    if len(models) != len(config.checkpoints):
        raise ValueError(f"the crosscoder reads {len(config.checkpoints)} checkpoints; got {len(models)} models")
    for name, model in zip(config.checkpoints, models, strict=True):
        for what, expected, found in (
            ("name", name, model.name or name),  # a model made in memory may have no name
            ("width", config.width, model.width),
            ("layer", config.layer, model.layer),
        ):
            if found != expected:
                raise ValueError(
                    f"model {model.name!r} is not checkpoint {name!r} of the crosscoder: its {what} is {found!r}, "
                    f"not {expected!r}; pass the models in the order {list(config.checkpoints)}"
                )


def residuals(
    crosscoder: Crosscoder, models: Sequence[SplitLM], tokens: Int[Tensor, "B S"]
) -> Float[Tensor, "B S M D"]:
    """What the crosscoder reads: the output of its layer at every checkpoint, in the crosscoder's dtype, on its device.

    Raises:
        ValueError: a checkpoint gives NaN or infinity; it and the token are named.
    """
    return torch.stack([finite_residual(model, tokens).to(crosscoder.W_enc) for model in models], dim=2)


def encode(crosscoder: Crosscoder, x: Float[Tensor, "B S M D"]) -> Float[Tensor, "B S F"]:
    """The features at every position; zero at a position that the crosscoder's policy leaves alone."""
    f = crosscoder.encode(x)
    f[:, : crosscoder.config.positions.first_encoded] = 0
    return f
