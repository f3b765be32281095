"""Collect activations: from token blocks to the activations of every checkpoint, on the fly and without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.base.memory import AdaptiveBatches, warn
from crosstime.models.split import SplitLM, finite_residual
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions

_LOWER = "buffer_tokens, batch_size, features or context"
"""Settings that leave more memory to activation collection if they are lower."""


class ActivationCollector:
    """Run a corpus through all checkpoints, epoch after epoch, each in its own order.

    The state is `position`, the number of blocks read so far: the order of an epoch is a function of seed and epoch.

    Args:
        models: One per checkpoint.
        corpus: Token blocks.
        positions: The policy for position 0.
        seed: Seed of the order.
        max_batch_blocks: Limit on the blocks per forward pass; None for no limit. The activations don't depend on it,
            except by rounding.
        notify: Called with a message if memory runs out and the passes become smaller.
    """

    def __init__(
        self,
        models: Sequence[SplitLM],
        corpus: Corpus,
        positions: Positions,
        *,
        seed: int,
        max_batch_blocks: int | None = None,
        notify: Callable[[str], None] = warn,
    ) -> None:
        self.models, self.corpus, self.positions, self.seed = models, corpus, positions, seed
        self.position = 0
        max_tokens = None if max_batch_blocks is None else max_batch_blocks * corpus.context
        self._batches = AdaptiveBatches("activation collection", "block", max_tokens, lower=_LOWER, notify=notify)
        self._order = (-1, np.empty(0, dtype=np.int64))

    @property
    def tokens_per_block(self) -> int:
        """Activations per block: its positions, without the first unless that is trained on."""
        return self.corpus.blocks.shape[1] - self.positions.first_trained

    def collect(self, blocks: int) -> Iterator[Float[Tensor, "N M D"]]:
        """Yield the raw activations at the trained positions of the next blocks, in as many parts as memory requires.

        Raises:
            InputError: An activation isn't finite; the message names the checkpoint and the token.
            OutOfMemory: There isn't enough memory for a single block.
        """
        return self._batches.run(torch.from_numpy(self._next_blocks(blocks)), self._run, length=self.corpus.context)

    def _next_blocks(self, blocks: int) -> np.ndarray:
        chosen = [self._block(self.position + i) for i in range(blocks)]
        self.position += blocks
        return np.stack(chosen).astype(np.int64)

    def _block(self, position: int) -> np.ndarray:
        epoch, index = divmod(position, len(self.corpus))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.corpus)))
        return self.corpus.blocks[self._order[1][index]]

    def _run(self, tokens: Int[Tensor, "B S"]) -> Float[Tensor, "N M D"]:
        first = self.positions.first_trained
        return torch.stack([finite_residual(model, tokens)[:, first:] for model in self.models], dim=2).flatten(0, 1)


@torch.no_grad()
def calibrate(
    collector: ActivationCollector, *, blocks: int, batch: int
) -> tuple[Float[Tensor, "M D"], Float[Tensor, " M"]]:
    """Measure each checkpoint's mean raw activation and scale factor on the first blocks; then reset the position.

    The scale factor is c_m = sqrt(D) / mean norm (arXiv 2509.05291), over trained positions.

    Args:
        collector: The source of activations.
        blocks: Blocks to measure on, at most the corpus once.
        batch: Blocks per forward pass.

    Raises:
        InputError: An activation isn't finite, or a checkpoint's activations are all zero.
    """
    start, blocks = collector.position, min(blocks, len(collector.corpus))
    # Sums over batches are in float64, and on the CPU since not every device has it.
    total, norms, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for first in range(0, blocks, batch):
        for x in map(torch.Tensor.float, collector.collect(min(batch, blocks - first))):
            total = total + x.sum(0).cpu().double()
            norms = norms + x.norm(dim=-1).sum(0).cpu().double()
            count += len(x)
    collector.position = start
    if (norms == 0).any():
        name = collector.models[int((norms == 0).nonzero()[0])].name
        raise InputError(f"checkpoint {name}: all of its activations are zero, so there is nothing to train on")
    return (total / count).float(), (total.shape[-1] ** 0.5 * count / norms).float()
