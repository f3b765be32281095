"""What features are compared with: where the path of the indirect effects ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.analysis.activations import encode, residuals
from crosstime.analysis.path_rules import Baseline
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.data.corpus import Corpus
from crosstime.data.task import Prompts
from crosstime.lm.split import SplitLM

MEAN_BLOCKS = 256
"""Blocks of the text that means are taken over, at most."""
BLOCKS_AT_ONCE = 16


@dataclass(frozen=True)
class Point:
    """A residual stream of one checkpoint m and what it consists of: x = sum_i f_i d_i,m + b_m + error."""

    x: Float[Tensor, "*b D"]
    f: Float[Tensor, "*b F"]
    """The features as they are written at this checkpoint."""
    error: Float[Tensor, "*b D"]

    def to(self, end: Point, first: int) -> Point:
        """The way to `end`; there is none before position `first`, which the policy leaves alone."""
        way = Point(end.x - self.x, end.f - self.f, end.error - self.error)
        for part in (way.x, way.f, way.error):
            part[:, :first] = 0
        return way


Ends = Callable[[Int[Tensor, " B"]], Iterable[Point]]
"""Where the paths of some prompts, given by number, end at each checkpoint; one point may serve all positions."""


def points(crosscoder: Crosscoder, models: Sequence[SplitLM], tokens: Int[Tensor, "B S"]) -> Iterator[Point]:
    """The residual stream of each checkpoint on the same tokens, one checkpoint after the other.

    Raises:
        ValueError: a checkpoint gives NaN or infinity; it and the token are named.
    """
    x = residuals(crosscoder, models, tokens)
    f = encode(crosscoder, x)
    x_hat = crosscoder.decode(f)
    for m in range(len(models)):
        yield Point(x[:, :, m], crosscoder.at(f, m), x[:, :, m] - x_hat[:, :, m])


def ends(
    baseline: Baseline, crosscoder: Crosscoder, models: Sequence[SplitLM], prompts: Prompts, text: Corpus | None = None
) -> Ends:
    """Where the paths end.

    "bias": features and error at zero, so the path ends at the crosscoder's bias (zero ablation in arXiv 2509.05291).
    "mean": features and error at their means over all encoded positions of a text, so the path ends at its mean
    activation. (The mean over the prompts themselves would not do: it takes away just that part of the effect, mean
    change times mean gradient, that the prompts have in common.) "patch": features and error of each prompt's second
    prefix, position by position.

    Raises:
        ValueError: an unknown baseline, "patch" for prompts without second prefixes, or "mean" without a text.
    """
    match baseline:
        case "bias":
            constant = _bias(crosscoder)
        case "mean":
            constant = _means(crosscoder, models, text)
        case "patch":
            patch = second_prefixes(prompts)
            return lambda index: points(crosscoder, models, torch.tensor([patch[i] for i in index.tolist()]))
        case _:
            raise ValueError(f"unknown baseline {baseline!r}: choose bias, mean or patch")
    return lambda _: constant


def second_prefixes(prompts: Prompts) -> list[list[int]]:
    """The token ids of the second prefixes, which the baseline "patch" needs.

    Raises:
        ValueError: there are none, or one has another length than its prompt.
    """
    if prompts.patch is None:
        raise ValueError(
            f"task {prompts.task} has no second prefixes: give its pairs `patch`, or choose the baseline bias or mean"
        )
    for n, (tokens, patch) in enumerate(zip(prompts.tokens, prompts.patch, strict=True)):
        if len(tokens) != len(patch):
            raise ValueError(
                f"task {prompts.task}: the second prefix of prompt {n} has {len(patch)} tokens, the first one has "
                f"{len(tokens)}: they must have as many"
            )
    return prompts.patch


@torch.no_grad()
def _bias(crosscoder: Crosscoder) -> list[Point]:
    zero = torch.zeros_like(crosscoder.b_enc)
    return [Point(bias, zero, torch.zeros_like(bias)) for bias in crosscoder.raw_bias()]


@torch.no_grad()
def _means(crosscoder: Crosscoder, models: Sequence[SplitLM], text: Corpus | None) -> list[Point]:
    """Summed in float64, on the CPU since not every device has it."""
    if text is None or not len(text):
        raise ValueError('the baseline "mean" needs a text over which means are taken: pass held-out text as `text`')
    crosscoder.config.positions.check(text.bos, "the text")
    width, features = crosscoder.config.width, crosscoder.config.features
    first = crosscoder.config.positions.first_encoded
    blocks = torch.from_numpy(text.blocks[:MEAN_BLOCKS].astype(np.int64))
    sums = torch.zeros(len(models), width + features + width, dtype=torch.float64)
    for tokens in blocks.split(BLOCKS_AT_ONCE):
        for m, point in enumerate(points(crosscoder, models, tokens)):
            sums[m] += torch.cat([part[:, first:].sum((0, 1)) for part in (point.x, point.f, point.error)], -1).cpu()
    means = (sums / blocks[:, first:].numel()).to(crosscoder.W_enc.dtype).to(crosscoder.W_enc.device)
    return [Point(*mean.split([width, features, width])) for mean in means]
