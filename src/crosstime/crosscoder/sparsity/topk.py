"""TopK and BatchTopK: keep the k largest features of each token, or k per token on average over a batch.

Gao et al. 2024 and Bussmann et al. 2024. Features are compared by g_i = f_i sum_m ||d_m,i||, so that rescaling a
feature's encoder against its decoder doesn't change the choice. Neither rule has a sparsity penalty; features that die
are revived by the AuxK loss.

**BatchTopK in training** keeps the n = k B largest of the B F values g of a batch. With the paper's settings these are
67 million, of which only the n-th largest is of interest, so nothing is sorted:

1. Activations after a ReLU aren't negative, so their floating-point bits, read as integers, have the same order.
   Selecting on integers is exact and needs no tolerance.
2. A partial selection (`np.partition` on a CPU, unsorted `topk` elsewhere) yields the n-th largest value, the cut.
3. Values above the cut are kept. Values at the cut, many in bfloat16, may exceed n: the first ones are kept, token by
   token and feature by feature, so that the choice is the same on every device. Their number, accumulated over tokens,
   tells which tokens keep all of theirs (the first ones), which none (the last ones), and which one at most keeps some.
4. So every token but that one has a single bound: the cut, or the next smaller integer if it keeps its values at the
   cut. The result is `where_positive(h, g - bound)`, one pass over memory. Nothing waits for the device.

**At inference** a token's activations must not depend on the other tokens of its batch. So the rule keeps g above a
threshold: a moving average of the smallest g that was kept in training, measured from step `threshold_start` on. Until
the first measurement the threshold is -1, and every active feature passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosstime.base.errors import SettingError
from crosstime.base.settings import check_at_least
from crosstime.crosscoder.sparsity.rule import (
    Activations,
    AuxK,
    BatchFeatures,
    DecoderNorms,
    Features,
    MaskedActivations,
    PerFeature,
    Scratch,
    Sparsity,
    TrainingProgress,
    float_bits,
    total_norms,
    where_positive,
)


@dataclass(frozen=True, kw_only=True)
class AuxKRule(Sparsity):
    """Base of rules with k active features per token, no penalty, and the AuxK loss on dead features."""

    k: int = field(default=200, kw_only=False)
    """Active features per token: at most, or on average."""
    aux_weight: float = 1 / 32
    """Coefficient of the auxiliary loss; 0 for none."""
    aux_k: int | None = None
    """Dead features that each token trains; None for half the model's width."""
    dead_tokens: int = 10_000_000
    """Tokens after which a feature that hasn't fired counts as dead."""

    def __post_init__(self) -> None:
        if not self.aux_weight >= 0:
            raise SettingError("aux_weight", f"must not be negative, but is {self.aux_weight}")
        check_at_least(1, k=self.k, aux_k=self.aux_k, dead_tokens=self.dead_tokens)

    @property
    def auxk(self) -> AuxK | None:
        return AuxK(self.aux_weight, self.aux_k, self.dead_tokens) if self.aux_weight else None

    def check(self, features: int) -> None:
        """Raise SettingError if k exceeds the number of features."""
        if self.k > features:
            raise SettingError("k", f"({self.k}) exceeds the number of features ({features})")


@dataclass(frozen=True)
class TopK(AuxKRule):
    """Keep the k features of each token with the largest f_i sum_m ||d_m,i||; ties go to lower indices.

    Example:
        >>> import torch
        >>> from crosstime import TopK
        >>> h, norms = torch.tensor([[3.0, 1.0, 2.0]]), torch.ones(2, 3)
        >>> TopK(k=2).select(h, norms, None)
        tensor([[3., 0., 2.]])
    """

    rule: str = field(default="topk", init=False)

    def select(self, h: Features, norms: DecoderNorms, threshold: Tensor | None) -> Features:
        return h * largest_per_token(h * total_norms(norms).to(h.dtype), min(self.k, h.shape[-1]))

    def scheduled_values(self, progress: TrainingProgress) -> dict[str, float | int]:
        return {"k": self.k}


@dataclass(frozen=True)
class BatchTopK(AuxKRule):
    """Keep the k B largest f_i sum_m ||d_m,i|| of B tokens in training; at inference those above a threshold.

    The threshold is a moving average of the smallest value kept in training, so at inference tokens don't affect one
    another. Defaults follow arXiv 2509.05291.

    Example:
        >>> import torch
        >>> from crosstime import BatchTopK
        >>> h, norms = torch.tensor([[3.0, 1.0], [2.5, 2.0]]), torch.ones(2, 2)
        >>> BatchTopK().select(h, norms, threshold=torch.tensor(4.5))
        tensor([[3.0000, 0.0000],
                [2.5000, 0.0000]])
    """

    rule: str = field(default="batchtopk", init=False)
    k_start: int = 1000
    """k at the first step; it falls linearly to `k`."""
    k_steps: int = 5000
    """Steps over which k falls; at most half of the run."""
    threshold_start: int = 1000
    """Step from which the threshold is measured; at most half of the run."""
    threshold_decay: float = 0.999
    """Decay of the threshold's moving average per step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, k_start=self.k_start)
        check_at_least(0, k_steps=self.k_steps, threshold_start=self.threshold_start)
        if not 0 <= self.threshold_decay < 1:
            raise SettingError("threshold_decay", f"must be at least 0 and less than 1, not {self.threshold_decay}")

    def scheduled_k(self, progress: TrainingProgress) -> int:
        """Return k at a step."""
        steps = min(self.k_steps, progress.steps // 2)
        if progress.step >= steps:
            return self.k
        return max(1, round(self.k_start - (self.k_start - self.k) * progress.step / steps))

    def initial_threshold(self, features: int) -> Tensor:
        """Return -1: every active feature passes until the threshold is measured."""
        return torch.tensor(-1.0)

    def select(self, h: Features, norms: DecoderNorms, threshold: Tensor | None) -> Features:
        assert threshold is not None
        return h * (h * total_norms(norms) > threshold)

    def select_in_training(
        self, h: BatchFeatures, norms: DecoderNorms, threshold: Tensor | None, progress: TrainingProgress
    ) -> BatchFeatures:
        sizes = (h * total_norms(norms).to(h.dtype)).detach()
        return keep_largest(h, sizes, self.scheduled_k(progress) * len(h), Scratch())[0]

    def activate(
        self,
        h: BatchFeatures,
        norms: DecoderNorms,
        threshold: Tensor | None,
        progress: TrainingProgress,
        scratch: Scratch,
    ) -> Activations:
        sizes = torch.mul(h, total_norms(norms).to(h.dtype), out=scratch.empty("kept", h.shape, h))
        f, smallest = keep_largest(h, sizes, self.scheduled_k(progress) * len(h), scratch)
        activations = MaskedActivations(f, norms, 0.0)
        activations.threshold = self._updated_threshold(threshold, smallest, progress)
        return activations

    def _updated_threshold(
        self, threshold: Tensor | None, smallest: Float[Tensor, ""], progress: TrainingProgress
    ) -> Tensor:
        """Return the threshold after a batch whose smallest kept size is given, which is infinite if nothing fired."""
        assert threshold is not None
        if progress.step <= min(self.threshold_start, progress.steps // 2):
            return threshold
        average = self.threshold_decay * threshold + (1 - self.threshold_decay) * smallest
        # The first measurement replaces the initial value; a batch in which nothing fires is no measurement.
        return torch.where(smallest.isfinite(), torch.where(threshold < 0, smallest, average), threshold)

    def activation_threshold(self, norms: DecoderNorms, m: int, threshold: Tensor | None) -> PerFeature:
        assert threshold is not None
        return (threshold / total_norms(norms)).clamp_min(0)

    def scheduled_values(self, progress: TrainingProgress) -> dict[str, float | int]:
        return {"k": self.scheduled_k(progress)}


def largest_per_token(sizes: Features, k: int) -> Bool[Tensor, "*b F"]:
    """Mark the k largest sizes of each token, none of them negative; ties go to lower indices."""
    features = sizes.shape[-1]
    # A size's bits followed by its index, counted backwards, form a number that no other size of the token has.
    wide = torch.int32 if sizes.dtype.itemsize == 2 and features <= 1 << 16 else torch.int64
    backwards = torch.arange(features - 1, -1, -1, dtype=wide, device=sizes.device)
    numbers = float_bits(sizes).to(wide).mul_(features).add_(backwards)
    if sizes.device.type != "cpu":
        return numbers >= numbers.topk(k, dim=-1, sorted=True).values[..., -1:]
    # On a CPU torch's topk sorts the whole last dimension.
    smallest = np.partition(numbers.numpy(), features - k, axis=-1)[..., features - k, None]
    return numbers >= torch.from_numpy(smallest)


def keep_largest(
    h: BatchFeatures, sizes: BatchFeatures, n: int, scratch: Scratch
) -> tuple[BatchFeatures, Float[Tensor, ""]]:
    """Keep the entries of h whose sizes are among the n largest of the batch; see the module's docstring.

    Args:
        h: Not negative, of the dtype of `sizes`.
        sizes: What is compared, not negative; overwritten by the result.
        n: Entries to keep; if fewer sizes are positive, only those are kept.
        scratch: Working memory.

    Returns:
        h where kept, else 0; and the smallest size that was kept, in float32, or infinity if no size is positive.
    """
    order = float_bits(sizes)
    largest = _largest(order.flatten(), min(n, order.numel()))
    infinity = float_bits(torch.full((), torch.inf, dtype=sizes.dtype, device=sizes.device))
    smallest_kept = torch.where(largest > 0, largest, infinity).min()
    cut = largest.min().clamp_min(1)  # 1 is the smallest positive float
    ties_kept = (largest == cut).sum()
    tied = torch.eq(order, cut, out=scratch.empty("tied", order.shape, order, torch.bool))
    ties_so_far = _count_per_token(tied).cumsum(0)
    # The first tokens keep all of their ties, the last ones none, and at most one token keeps some.
    keeps_ties = ties_so_far <= ties_kept
    token = keeps_ties.sum().clamp_max(len(keeps_ties) - 1).view(1)
    tied_here = tied.index_select(0, token)
    ties_up_to = ties_so_far.index_select(0, token) - tied_here.sum() + tied_here.cumsum(1)
    kept_here = (order.index_select(0, token) > cut) | (tied_here & (ties_up_to <= ties_kept))
    bounds = (cut - keeps_ties.to(cut.dtype)).view(sizes.dtype)
    f = where_positive(h, sizes.sub_(bounds[:, None]), out=sizes)
    f.index_copy_(0, token, h.index_select(0, token) * kept_here)
    return f, smallest_kept.view(sizes.dtype).float()


def _count_per_token(where: Bool[Tensor, "B F"]) -> Int[Tensor, " B"]:
    """Count per token, in groups whose sums fit a byte: summing booleans would first widen all of them."""
    group = math.gcd(where.shape[1], 128)
    return where.view(torch.uint8).unflatten(1, (-1, group)).sum(-1, dtype=torch.uint8).sum(1)


def _largest(order: Int[Tensor, " N"], n: int) -> Int[Tensor, " n"]:
    """Return the n largest integers, unsorted."""
    if order.device.type != "cpu":
        return order.topk(n, sorted=False).values
    return torch.from_numpy(np.partition(order.numpy(), len(order) - n)[len(order) - n :])
