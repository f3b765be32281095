"""How the effects of a feature at single tokens become its one number on a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.tasks.prompts import Prompts


@dataclass(frozen=True)
class Aggregation:
    """sum over prompts of weight * sum over positions of e 1[|e| > threshold], e the effects at single tokens."""

    weights: Float[Tensor, " N"]
    threshold: float = 0.0

    @classmethod
    def mean(cls, prompts: Prompts) -> Aggregation:
        """Sum over positions, mean over prompts."""
        return cls(torch.full((len(prompts),), 1 / len(prompts), dtype=torch.float64))

    @classmethod
    def released(cls, prompts: Prompts, threshold: float, batch: int, columns: int) -> Aggregation:
        """What the public code of arXiv 2509.05291 does, without its padding, at which all effects are zero.

        It pads each batch of prompts in the order of the task, takes the mean over all its positions, adds up these
        means, and multiplies the sum with `columns` / N, where the number of prompts in a batch was meant.

        Args:
            prompts: N prompts in their order.
            threshold: effects of this size or a smaller one, in logits at one token, count as zero.
            batch: prompts of one batch.
            columns: fields of a record of the task's table.

        Raises:
            InputError: a negative threshold, or no prompt or no column.
        """
        if threshold < 0 or min(batch, columns) < 1:
            raise InputError(
                "threshold must be at least 0, reference_batch and n_columns at least 1; "
                f"got {threshold}, {batch} and {columns}"
            )
        weights = [w for part in _in_batches(prompts, batch) for w in [1 / (len(part) * max(part))] * len(part)]
        return cls(columns / len(prompts) * torch.tensor(weights, dtype=torch.float64), threshold)

    def per_prompt(self, effects: Float[Tensor, "B S F"]) -> Float[Tensor, "B F"]:
        """The effects on single prompts, before weighing."""
        if self.threshold:
            effects = effects * (effects.abs() > self.threshold)
        return effects.sum(1)


def _in_batches(prompts: Prompts, batch: int) -> Sequence[Sequence[int]]:
    """The lengths of the prompts in their order, a batch apiece."""
    lengths = [len(tokens) for tokens in prompts.tokens]
    return [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
