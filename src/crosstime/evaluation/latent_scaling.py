"""Latent scaling: does what a feature stands for occur at a checkpoint, whatever its decoder there says?

Minder, Dumas, Juang, Chughtai, Nanda 2025 (arXiv 2504.02922), for any number of checkpoints and all features at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.attribution.activations import encode, heldout_blocks, in_batches, residuals
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus


@dataclass(frozen=True)
class Scaling:
    """How much of each feature lies in two targets at each checkpoint, in units of what it writes at its reference.

    The reference r of feature j is the checkpoint of its largest decoder norm. With g its code there and d its decoder
    vector there, in scaled units, beta is the least-squares factor of g d in a target y:

        beta = argmin sum_t ||y(t) - beta g(t) d||^2 = sum_t g(t) <y(t), d> / (||d||^2 sum_t g(t)^2)

    NaN where a feature never fires, or writes nothing.
    """

    n_tokens: int
    """Encoded tokens looked at."""
    fired: np.ndarray
    """[F] tokens on which each feature fires at its reference."""
    error: np.ndarray
    """[F, M] beta of y = x_m - xhat_m + f_j d_j,m: the activation but for what the other features reconstruct."""
    reconstruction: np.ndarray
    """[F, M] beta of y = xhat_m - b_m: what all features write."""


@torch.inference_mode()
def latent_scaling(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    *,
    max_blocks: int = 256,
    batch_blocks: int = 16,
) -> Scaling:
    """Scale every feature to every checkpoint, in one pass over a text.

    Args:
        crosscoder: F features over M checkpoints.
        models: its checkpoints, in its order.
        heldout: text that it was not trained on.
        max_blocks: look at the first so many blocks of the text at most.
        batch_blocks: blocks run through the models and encoded at a time; the numbers do not depend on it.

    Raises:
        InputError: the models are not the crosscoder's, the text holds no block, or an activation is not finite.
    """
    blocks = heldout_blocks(
        crosscoder, models, heldout, max_blocks=max_blocks, batch_blocks=batch_blocks, wanted="encoded"
    )
    first = crosscoder.config.positions.first_encoded
    sums = _Sums(crosscoder)

    def measure(tokens: Tensor) -> _Batch:
        x = residuals(crosscoder, models, tokens)
        return sums.of(x[:, first:].flatten(0, 1), encode(crosscoder, x)[:, first:].flatten(0, 1))

    for batch in in_batches("diagnose", blocks, batch_blocks, measure):
        sums.add(batch)
    return sums.scaling()


def scaled_decoder(crosscoder: Crosscoder) -> Float[Tensor, "F M D"]:
    """The decoder in scaled units, in which checkpoints can be compared."""
    return crosscoder.W_dec * crosscoder.unit[:, None]


class _Batch(NamedTuple):
    """What a batch adds to the sums."""

    n_tokens: int
    fired: Int[Tensor, " F"]
    squares: Float[Tensor, " F"]
    """sum g^2"""
    error: Float[Tensor, "F M"]
    """sum g <y, d> of the first target."""
    reconstruction: Float[Tensor, "F M"]
    """Of the second."""


class _Sums:
    """Sums over tokens, in float64 on the CPU: not every device has it."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self.crosscoder = crosscoder
        self.units = crosscoder.scale * crosscoder.unit  # from raw to scaled
        decoder = scaled_decoder(crosscoder)
        self.reference: Int[Tensor, " F"] = decoder.norm(dim=-1).argmax(1)
        rows = torch.arange(len(decoder), device=decoder.device)
        self.direction: Float[Tensor, "F D"] = decoder[rows, self.reference]
        self.own: Float[Tensor, "F M"] = torch.einsum("fmd,fd->fm", decoder, self.direction).cpu()
        self.n_tokens = 0
        self.fired = torch.zeros(len(decoder), dtype=torch.int64)
        self.squares = torch.zeros(len(decoder), dtype=torch.float64)
        self.error, self.reconstruction = torch.zeros(2, *decoder.shape[:2], dtype=torch.float64)

    def of(self, x: Float[Tensor, "N M D"], f: Float[Tensor, "N F"]) -> _Batch:
        """What a batch of raw activations with their codes adds.

        <y, d> is taken for all features in one product, so no feature's own target is ever formed.
        """
        x_hat, bias = self.crosscoder.decode(f), self.crosscoder.raw_bias()
        g = f
        for m in range(x.shape[1]):  # one checkpoint's codes at a time, which with JumpReLU are many
            g = torch.where(self.reference == m, self.crosscoder.at(f, m), g)
        error, reconstruction = [], []
        for m in range(x.shape[1]):
            missed = (x[:, m] - x_hat[:, m]) * self.units[m] @ self.direction.T
            error.append(_dot(g, missed) + _dot(g, self.crosscoder.at(f, m)) * self.own[:, m])
            written = (x_hat[:, m] - bias[m]) * self.units[m] @ self.direction.T
            reconstruction.append(_dot(g, written))
        return _Batch(
            len(x), (g > 0).sum(0).cpu(), _dot(g, g), torch.stack(error, dim=1), torch.stack(reconstruction, dim=1)
        )

    def add(self, batch: _Batch) -> None:
        self.n_tokens += batch.n_tokens
        self.fired += batch.fired
        self.squares += batch.squares
        self.error += batch.error
        self.reconstruction += batch.reconstruction

    def scaling(self) -> Scaling:
        size = (self.direction.square().sum(1).cpu() * self.squares)[:, None]
        error, reconstruction = (
            torch.where(size > 0, sums / size, torch.nan).numpy() for sums in (self.error, self.reconstruction)
        )
        return Scaling(self.n_tokens, self.fired.numpy(), error, reconstruction)


def _dot(a: Float[Tensor, "N F"], b: Float[Tensor, "N F"]) -> Float[Tensor, " F"]:
    return (a * b).sum(0).cpu().double()
