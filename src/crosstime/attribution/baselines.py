"""Baselines: what features are compared with, and so where the integration path ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.attribution.activations import encode, in_batches, residuals
from crosstime.base.errors import InputError
from crosstime.base.registry import Registry
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus

MEAN_BLOCKS = 256
"""Largest number of blocks of the text over which the baseline "mean" averages."""
BLOCKS_AT_ONCE = 16


@dataclass(frozen=True)
class ResidualState:
    """A residual stream of one checkpoint m and the features in it: x = sum_i f_i d_i,m + b_m + error."""

    x: Float[Tensor, "*b D"]
    f: Float[Tensor, "*b F"]
    """The features as they are written at this checkpoint."""

    def displacement(self, end: ResidualState, first_encoded: int) -> ResidualState:
        """Return the difference to `end`, zero at the positions before `first_encoded`, which stay as they are."""
        difference = ResidualState(end.x - self.x, end.f - self.f)
        for part in (difference.x, difference.f):
            part[:, :first_encoded] = 0
        return difference


def states(crosscoder: Crosscoder, x: Float[Tensor, "B S M D"]) -> Iterator[ResidualState]:
    """Yield the residual state of each checkpoint on the same tokens."""
    f = encode(crosscoder, x)
    for m in range(x.shape[2]):
        yield ResidualState(x[:, :, m], crosscoder.gate(f, m))


PathEnds = Callable[[Int[Tensor, " B"]], Iterable[Iterable[ResidualState]]]
"""Return the ends of the paths of some prompts, given by number, for each crosscoder at each checkpoint.

The residual streams are the same for all crosscoders; one state may serve all positions."""

FindPathEnds = Callable[[Sequence[Crosscoder], Sequence[SplitLM], Prompts, Corpus | None], PathEnds]
"""Find the ends of the paths of a task's prompts for several crosscoders of the same checkpoints."""


@dataclass(frozen=True)
class Baseline:
    """A baseline, with all facts about it.

    Example:
        >>> from crosstime.attribution.baselines import BASELINES
        >>> [baseline.name for baseline in BASELINES if baseline.needs_text]
        ['mean']
    """

    name: str
    sentence: str
    """What features are compared with; the report prints it."""
    path_ends: FindPathEnds
    depends_on_crosscoder: bool = False
    """Whether the path of one crosscoder ends elsewhere than that of another one of the same checkpoints."""
    needs_text: bool = False
    needs_second_prefixes: bool = False


BASELINES: Registry[Baseline] = Registry("baseline")


@torch.no_grad()
def _biases(
    crosscoders: Sequence[Crosscoder],
    models: Sequence[SplitLM],
    prompts: Prompts,
    text: Corpus | None,
) -> PathEnds:
    """End where all features and the error are zero: at the crosscoder's bias.

    For several crosscoders the path ends at the mean of their biases; the error of each is what is left to it from its
    own bias.
    """
    mean = torch.stack([crosscoder.raw_bias() for crosscoder in crosscoders]).mean(0)
    ends = [[ResidualState(x, torch.zeros_like(crosscoder.b_enc)) for x in mean] for crosscoder in crosscoders]
    return lambda _: ends


@torch.no_grad()
def _means(
    crosscoders: Sequence[Crosscoder],
    models: Sequence[SplitLM],
    prompts: Prompts,
    text: Corpus | None,
) -> PathEnds:
    """End where features and error have their means over all encoded positions of a text: at its mean activation.

    The mean over the prompts themselves wouldn't do: it removes the part of the effect, mean change times mean
    gradient, that the prompts have in common.
    """
    if text is None or not len(text):
        raise InputError('the baseline "mean" averages over a text: pass held-out text as `text`')
    config = crosscoders[0].config
    config.positions.check(text.bos, "the text")
    first = config.positions.first_encoded
    blocks = torch.from_numpy(text.blocks[:MEAN_BLOCKS].astype(np.int64))
    # Sums are float64 on the CPU, since not every device has it.
    x_sum = torch.zeros(len(models), config.width, dtype=torch.float64)
    f_sums = [torch.zeros(len(models), crosscoder.config.features, dtype=torch.float64) for crosscoder in crosscoders]

    def sums(tokens: Tensor) -> list[Tensor]:
        x = residuals(crosscoders[0], models, tokens)
        features = (
            torch.stack([state.f[:, first:].sum((0, 1)) for state in states(crosscoder, x)])
            for crosscoder in crosscoders
        )
        return [batch_sum.cpu() for batch_sum in (x[:, first:].sum((0, 1)), *features)]

    for batch_sums in in_batches("effects", blocks, BLOCKS_AT_ONCE, sums):
        for total, batch_sum in zip((x_sum, *f_sums), batch_sums, strict=True):
            total += batch_sum
    weight, count = crosscoders[0].W_enc, blocks[:, first:].numel()
    x_mean, *f_means = ((total / count).to(weight.dtype).to(weight.device) for total in (x_sum, *f_sums))
    ends = [[ResidualState(x, f) for x, f in zip(x_mean, f_mean, strict=True)] for f_mean in f_means]
    return lambda _: ends


def _second_prefix_states(
    crosscoders: Sequence[Crosscoder],
    models: Sequence[SplitLM],
    prompts: Prompts,
    text: Corpus | None,
) -> PathEnds:
    """End at the features and the error of each prompt's second prefix, position by position."""
    patch = second_prefixes(prompts)

    def ends(index: Int[Tensor, " B"]) -> Iterator[Iterable[ResidualState]]:
        x = residuals(crosscoders[0], models, torch.tensor([patch[i] for i in index.tolist()]))
        return (states(crosscoder, x) for crosscoder in crosscoders)

    return ends


def second_prefixes(prompts: Prompts) -> list[list[int]]:
    """Return the token ids of the prompts' second prefixes.

    Raises:
        InputError: There are none, or one differs in length from its prompt.
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


BASELINES.add(Baseline("bias", "The baseline of a feature is zero.", _biases, depends_on_crosscoder=True))
BASELINES.add(
    Baseline("mean", "The baseline of a feature is its mean over held-out text.", _means, needs_text=True),
)
BASELINES.add(
    Baseline(
        "patch",
        "The baseline of a feature is its value on the pair's second prefix.",
        _second_prefix_states,
        needs_second_prefixes=True,
    )
)
