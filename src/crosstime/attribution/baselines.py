"""What features are compared with: where the path of the indirect effects ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.attribution.activations import encode, in_batches, residuals
from crosstime.attribution.path_rules import Baseline
from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus

MEAN_BLOCKS = 256
"""Blocks of the text that means are taken over, at most."""
BLOCKS_AT_ONCE = 16


@dataclass(frozen=True)
class Point:
    """A residual stream of one checkpoint m and the features in it: x = sum_i f_i d_i,m + b_m + error."""

    x: Float[Tensor, "*b D"]
    f: Float[Tensor, "*b F"]
    """The features as they are written at this checkpoint."""

    def to(self, end: Point, first: int) -> Point:
        """The way to `end`; there is none before position `first`, which the policy leaves alone."""
        way = Point(end.x - self.x, end.f - self.f)
        for part in (way.x, way.f):
            part[:, :first] = 0
        return way


Ends = Callable[[Int[Tensor, " B"]], Iterable[Iterable[Point]]]
"""Where the paths of some prompts, given by number, end, for each crosscoder at each checkpoint.

The residual streams are the same for all crosscoders; one point may serve all positions."""


def points(crosscoder: Crosscoder, x: Float[Tensor, "B S M D"]) -> Iterator[Point]:
    """The residual streams of each checkpoint on the same tokens, one checkpoint after the other."""
    f = encode(crosscoder, x)
    for m in range(x.shape[2]):
        yield Point(x[:, :, m], crosscoder.at(f, m))


def ends(
    baseline: Baseline,
    crosscoders: Sequence[Crosscoder],
    models: Sequence[SplitLM],
    prompts: Prompts,
    text: Corpus | None = None,
) -> Ends:
    """Where the paths end.

    "bias": features at zero, and the error too, so the path ends at the crosscoder's bias (zero ablation in arXiv
    2509.05291); for several crosscoders, at the mean of their biases, and the error of each at what that is from its
    own. "mean": features and error at their means over all encoded positions of a text, so the path ends at its mean
    activation. (The mean over the prompts themselves would not do: it takes away just that part of the effect, mean
    change times mean gradient, that the prompts have in common.) "patch": features and error of each prompt's second
    prefix, position by position.

    Raises:
        InputError: an unknown baseline, "patch" for prompts without second prefixes, or "mean" without a text.
    """
    match baseline:
        case "bias":
            constant = _biases(crosscoders)
        case "mean":
            constant = _means(crosscoders, models, text)
        case "patch":
            patch = second_prefixes(prompts)

            def at_second_prefixes(index: Int[Tensor, " B"]) -> Iterator[Iterable[Point]]:
                x = residuals(crosscoders[0], models, torch.tensor([patch[i] for i in index.tolist()]))
                return (points(crosscoder, x) for crosscoder in crosscoders)

            return at_second_prefixes
        case _:
            raise InputError(f"unknown baseline {baseline!r}: choose bias, mean or patch")
    return lambda _: constant


def second_prefixes(prompts: Prompts) -> list[list[int]]:
    """The token ids of the second prefixes, which the baseline "patch" needs.

    Raises:
        InputError: there are none, or one has another length than its prompt.
    """
    if prompts.patch is None:
        raise InputError(
            f"task {prompts.task} has no second prefixes: give its pairs `patch`, or choose the baseline bias or mean"
        )
    for n, (tokens, patch) in enumerate(zip(prompts.tokens, prompts.patch, strict=True)):
        if len(tokens) != len(patch):
            raise InputError(
                f"task {prompts.task}: the second prefix of prompt {n} has {len(patch)} tokens, the first one has "
                f"{len(tokens)}: they must have as many"
            )
    return prompts.patch


@torch.no_grad()
def _biases(crosscoders: Sequence[Crosscoder]) -> list[list[Point]]:
    mean = torch.stack([crosscoder.raw_bias() for crosscoder in crosscoders]).mean(0)
    return [[Point(x, torch.zeros_like(crosscoder.b_enc)) for x in mean] for crosscoder in crosscoders]


@torch.no_grad()
def _means(crosscoders: Sequence[Crosscoder], models: Sequence[SplitLM], text: Corpus | None) -> list[list[Point]]:
    """Summed in float64, on the CPU since not every device has it."""
    if text is None or not len(text):
        raise InputError('the baseline "mean" needs a text over which means are taken: pass held-out text as `text`')
    config = crosscoders[0].config
    config.positions.check(text.bos, "the text")
    first = config.positions.first_encoded
    blocks = torch.from_numpy(text.blocks[:MEAN_BLOCKS].astype(np.int64))
    x_sum = torch.zeros(len(models), config.width, dtype=torch.float64)
    f_sums = [torch.zeros(len(models), crosscoder.config.features, dtype=torch.float64) for crosscoder in crosscoders]

    def sums(tokens: Tensor) -> list[Tensor]:
        """Of the residual streams, and of each crosscoder's features."""
        x = residuals(crosscoders[0], models, tokens)
        features = (
            torch.stack([point.f[:, first:].sum((0, 1)) for point in points(crosscoder, x)])
            for crosscoder in crosscoders
        )
        return [of_batch.cpu() for of_batch in (x[:, first:].sum((0, 1)), *features)]

    for of_batch in in_batches("effects", blocks, BLOCKS_AT_ONCE, sums):
        for whole, part in zip((x_sum, *f_sums), of_batch, strict=True):
            whole += part
    weight, count = crosscoders[0].W_enc, blocks[:, first:].numel()
    x_mean = (x_sum / count).to(weight.dtype).to(weight.device)
    f_means = [(f_sum / count).to(weight.dtype).to(weight.device) for f_sum in f_sums]
    return [[Point(x, f) for x, f in zip(x_mean, f_mean, strict=True)] for f_mean in f_means]
