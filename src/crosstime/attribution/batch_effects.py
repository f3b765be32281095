"""Indirect effects of a crosscoder's features on one batch of prompts: one product with the decoders of those there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.attribution.aggregation import Aggregation
from crosstime.attribution.baselines import Point
from crosstime.attribution.integration import Slope
from crosstime.crosscoder.crosscoder import Crosscoder

Single = Literal["clean", "mean"]
"""Which gradient the effects of single features are taken from: where the path begins, or the mean along it."""


@dataclass(frozen=True)
class BatchEffects:
    """The effects on B prompts at one checkpoint, on the CPU."""

    index: Int[np.ndarray, " B"]
    """The numbers of the prompts."""
    rows: Int[np.ndarray, " K"]
    """Of each effect of a feature on a prompt that is not zero, the number of the prompt,"""
    columns: Int[np.ndarray, " K"]
    """that of the feature,"""
    values: Float[np.ndarray, " K"]
    """and its size: summed over positions, not weighed."""
    explained: Float[np.ndarray, " B"]
    """All effects together, the error's among them."""
    error: Float[np.ndarray, " B"]
    metric_clean: Float[np.ndarray, " B"]
    metric_end: Float[np.ndarray, " B"]


def batch_effects(
    crosscoder: Crosscoder,
    m: int,
    index: Int[Tensor, " B"],
    clean: Slope,
    along: Slope,
    way: Point,
    *,
    aggregation: Aggregation,
    single: Single,
) -> BatchEffects:
    """The effects at checkpoint m.

    All effects together, the error's among them, come from the mean gradient along the path.

    Args:
        crosscoder: F features over M checkpoints.
        m: the checkpoint.
        index: the numbers of the prompts.
        clean: the metric where the path begins, and its gradient.
        along: the metric where the path ends, and its mean gradient.
        way: of the path, from its beginning to its end.
        aggregation: what becomes of the effects at single tokens.
        single: which gradient the effects of single features are taken from.
    """
    moved = way.f.flatten(0, 1).any(0).nonzero().squeeze(1)  # the others are at the end what they are here: silent
    changes, decoder = way.f[..., moved], crosscoder.raw_decoder(m, moved)
    gradient = clean.gradient if single == "clean" else along.gradient
    effects = aggregation.per_prompt(feature_effects(gradient, changes, decoder)).cpu().numpy()
    rows, columns = effects.nonzero()
    numbers = index.numpy()
    return BatchEffects(
        index=numbers,
        rows=numbers[rows].astype(np.int32),
        columns=moved.cpu().numpy()[columns].astype(np.int32),
        values=effects[rows, columns],
        explained=_on_cpu((along.gradient * way.x).sum((1, 2))),
        error=_on_cpu(error_effects(along.gradient, way.x, changes, decoder).sum(1)),
        metric_clean=_on_cpu(clean.metric),
        metric_end=_on_cpu(along.metric),
    )


def feature_effects(
    gradient: Float[Tensor, "B S D"], changes: Float[Tensor, "B S K"], decoder: Float[Tensor, "K D"]
) -> Float[Tensor, "B S K"]:
    """Effects of features at single tokens: (f_i' - f_i) <gradient, d_i,m>."""
    return changes * (gradient @ decoder.T)


def error_effects(
    gradient: Float[Tensor, "B S D"],
    way: Float[Tensor, "B S D"],
    changes: Float[Tensor, "B S K"],
    decoder: Float[Tensor, "K D"],
) -> Float[Tensor, "B S"]:
    """Effects of the error at single tokens, <gradient, error' - error>: its way is what features leave of x' - x."""
    return (gradient * (way - changes @ decoder)).sum(-1)


def _on_cpu(values: Float[Tensor, " B"]) -> Float[np.ndarray, " B"]:
    return values.cpu().double().numpy()
