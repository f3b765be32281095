"""Attribution methods: which gradients give the effects, and how effects at single tokens become IE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.attribution.path import START, IntegrationPath
from crosstime.base.registry import Registry
from crosstime.tasks.prompts import Prompts


@dataclass(frozen=True)
class Aggregation:
    """IE as the sum over prompts of weight * sum over positions of e 1[|e| > threshold], e the effects at tokens."""

    weights: Float[Tensor, " N"]
    threshold: float = 0.0

    def per_prompt(self, effects: Float[Tensor, "B S F"]) -> Float[Tensor, "B F"]:
        """Sum the effects on single prompts over positions, before weighting."""
        if self.threshold:
            effects = effects * (effects.abs() > self.threshold)
        return effects.sum(1)


@runtime_checkable
class AggregationSettings(Protocol):
    """The settings that an aggregation may use (see `AttributionConfig`)."""

    @property
    def threshold(self) -> float: ...
    @property
    def reference_batch(self) -> int: ...
    @property
    def n_columns(self) -> int: ...


def mean_over_prompts(prompts: Prompts, settings: AggregationSettings) -> Aggregation:
    """Sum over positions, average over prompts."""
    return Aggregation(torch.full((len(prompts),), 1 / len(prompts), dtype=torch.float64))


def mean_over_padded_batches(prompts: Prompts, settings: AggregationSettings) -> Aggregation:
    """Aggregate as the public code of arXiv 2509.05291 does, without its padding, at which all effects are zero.

    The code pads each batch of `reference_batch` prompts in the order of the task, averages over all positions of the
    batch, adds up these means, and multiplies the sum by `n_columns` / N, where the batch's number of prompts was
    meant. An effect of at most `threshold` logits at one token counts as zero.
    """
    lengths = [len(tokens) for tokens in prompts.tokens]
    size = settings.reference_batch
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    weights = [weight for batch in batches for weight in [1 / (len(batch) * max(batch))] * len(batch)]
    scale = settings.n_columns / len(prompts)
    return Aggregation(scale * torch.tensor(weights, dtype=torch.float64), settings.threshold)


@dataclass(frozen=True)
class Method:
    """An attribution method, with all facts about it.

    A path of None is the one that the settings `rule` and `steps` describe.

    Example:
        Take the effects of single features from the gradient halfway to the baseline. Once it's registered, run.toml
        and `AttributionConfig` know it by its name:

        >>> from crosstime.attribution.methods import METHODS, Method
        >>> from crosstime.attribution.path import IntegrationPath
        >>> sentence = "It is estimated by the gradient halfway to the baseline, summed over positions."
        >>> halfway = METHODS.add(Method("halfway", sentence, feature_path=IntegrationPath.from_point(0.5)))
    """

    name: str
    sentence: str
    """How IE is estimated; the report prints it."""
    feature_path: IntegrationPath | None = None
    """Where the gradients for the effects of single features are taken."""
    total_path: IntegrationPath | None = None
    """Where those for the effect of all features and the error together are taken."""
    aggregate: Callable[[Prompts, AggregationSettings], Aggregation] = mean_over_prompts
    """How effects at single tokens become IE."""
    claims_completeness: bool = True
    """Whether all effects together are meant to add up, so that a large completeness gap deserves a warning."""


METHODS: Registry[Method] = Registry("attribution method")

_CLEAN = "It is estimated by the gradient of the unmodified model"
_MEAN = "summed over positions and averaged over prompts"
_PADDED = "with the threshold and the mean over positions of the paper's public code"
_TEN_POINTS = IntegrationPath.from_rule("left", 10)

METHODS.add(Method("gradient", f"{_CLEAN}, {_MEAN}.", feature_path=START))
METHODS.add(Method("integrated", f"It is estimated by integrated gradients, {_MEAN}."))
METHODS.add(
    Method(
        "released",
        f"{_CLEAN}, {_PADDED}.",
        feature_path=START,
        total_path=START,
        aggregate=mean_over_padded_batches,
        claims_completeness=False,
    )
)
METHODS.add(
    Method(
        "paper",
        f"It is estimated by integrated gradients from the unmodified model on, {_PADDED}.",
        feature_path=_TEN_POINTS,
        total_path=_TEN_POINTS,
        aggregate=mean_over_padded_batches,
    )
)
