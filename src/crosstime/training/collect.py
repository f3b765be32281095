"""ActivationCollector: token blocks in, activation rows of every checkpoint out, on the fly and without end."""

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

LOWER = "training.buffer_tokens, training.batch_size, crosscoder.features or text.context"
"""What leaves more memory to the harvest."""


class ActivationCollector:
    """Reads a corpus epoch after epoch, each in an order of its own, and gives the activations of all checkpoints.

    `position` counts the blocks read since the start; it alone says where the harvest stands, so it is all that is
    saved. The order of an epoch is a function of the seed and the epoch's number.

    Args:
        models: one a checkpoint.
        corpus: token blocks.
        positions: the policy for position 0.
        seed: of the order.
        blocks_at_once: blocks that one forward pass reads at most, without it all that are asked for; the rows do not
            depend on it beyond rounding.
        note: is told when memory ran out and the passes become smaller.
    """

    def __init__(
        self,
        models: Sequence[SplitLM],
        corpus: Corpus,
        positions: Positions,
        *,
        seed: int,
        blocks_at_once: int | None = None,
        note: Callable[[str], None] = warn,
    ) -> None:
        self.models = models
        self.corpus = corpus
        self.positions = positions
        self.seed = seed
        self.position = 0
        at_once = None if blocks_at_once is None else blocks_at_once * corpus.context
        self._batches = AdaptiveBatches("activation collection", "block", at_once, lower=LOWER, notify=note)
        self._order = (-1, np.empty(0, dtype=np.int64))

    @property
    def tokens_per_block(self) -> int:
        """Rows that one block yields: its positions, without the first where that is not trained on."""
        return self.corpus.blocks.shape[1] - self.positions.first_trained

    def collect(self, blocks: int) -> Iterator[Float[Tensor, "N M D"]]:
        """The raw activations at the trained positions of the next blocks, in one part or, as memory allows, several.

        Raises:
            InputError: an activation is not finite (the checkpoint and the token are named), or there is not enough
                memory for one block.
        """
        return self._batches.run(torch.from_numpy(self._next_blocks(blocks)), self._read, length=self.corpus.context)

    def _next_blocks(self, blocks: int) -> np.ndarray:
        picked = [self._block(self.position + i) for i in range(blocks)]
        self.position += blocks
        return np.stack(picked).astype(np.int64)

    def _block(self, position: int) -> np.ndarray:
        epoch, index = divmod(position, len(self.corpus))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.corpus)))
        return self.corpus.blocks[self._order[1][index]]

    def _read(self, tokens: Int[Tensor, "B S"]) -> Float[Tensor, "N M D"]:
        return torch.stack([self._residual(model, tokens) for model in self.models], dim=2).flatten(0, 1)

    def _residual(self, model: SplitLM, tokens: Int[Tensor, "B S"]) -> Float[Tensor, "B T D"]:
        return finite_residual(model, tokens)[:, self.positions.first_trained :]


@torch.no_grad()
def calibrate(
    collector: ActivationCollector, *, blocks: int, batch: int
) -> tuple[Float[Tensor, "M D"], Float[Tensor, " M"]]:
    """Mean raw activation and scale factor of each checkpoint, from the first blocks; the harvest is wound back.

    The scale factor is c_m = sqrt(D) / mean norm (arXiv 2509.05291), over trained positions only.

    Raises:
        InputError: an activation is not finite, or a checkpoint's activations are all zero.
    """
    start, blocks = collector.position, min(blocks, len(collector.corpus))
    # float64 for the sums over batches, on the CPU: not every device has it.
    total, norms, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for first in range(0, blocks, batch):
        for rows in map(torch.Tensor.float, collector.collect(min(batch, blocks - first))):
            total = total + rows.sum(0).cpu().double()
            norms = norms + rows.norm(dim=-1).sum(0).cpu().double()
            count += len(rows)
    collector.position = start
    if (norms == 0).any():
        name = collector.models[int((norms == 0).nonzero()[0])].name
        raise InputError(f"checkpoint {name}: its activations are all zero, so there is nothing to learn from")
    return (total / count).float(), (total.shape[-1] ** 0.5 * count / norms).float()
