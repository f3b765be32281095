"""BatchTopK: the k largest features a row on average, chosen over the whole batch (Bussmann et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.rule import Codes, MaskedCodes, Progress, bits, total_norms, where_positive
from crosstime.crosscoder.sparsity.scratch import Scratch
from crosstime.crosscoder.sparsity.topk import Reviving


@dataclass(frozen=True)
class BatchTopK(Reviving):
    """In training f keeps the k B largest f_i sum_m ||d_i,m|| of B rows; at inference, those above a threshold.

    The threshold is a moving average of the smallest value that training kept. So a row's codes never depend on other
    rows, except where `mode="training"` is asked for. The defaults are those of arXiv 2509.05291.
    """

    rule: str = field(default="batchtopk", init=False)
    k_start: int = 1000
    """k at the first step; it falls linearly to `k`."""
    k_steps: int = 5000
    """Steps over which it falls, or half of the run where that is shorter."""
    threshold_start: int = 1000
    """Steps after which the threshold is measured, or half of the run where that is shorter."""
    threshold_decay: float = 0.999
    """How much of the threshold's average each step keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("k_start", 1), ("k_steps", 0), ("threshold_start", 0)):
            if getattr(self, name) < least:
                raise InputError(f"sparsity.{name} must be at least {least}; got {getattr(self, name)}")
        if not 0 <= self.threshold_decay < 1:
            raise InputError(f"sparsity.threshold_decay must be from 0 up to, but below 1; got {self.threshold_decay}")

    def k_at(self, progress: Progress) -> int:
        """k at a step, a whole number."""
        falling = min(self.k_steps, progress.steps // 2)
        if progress.step >= falling:
            return self.k
        return max(1, round(self.k_start - (self.k_start - self.k) * progress.step / falling))

    def first_threshold(self, features: int) -> Tensor:
        """-1, which lets every active feature pass until the threshold is measured."""
        return torch.tensor(-1.0)

    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        assert threshold is not None
        return h * (h * total_norms(norms) > threshold)

    def select_in_training(
        self, h: Float[Tensor, "B F"], norms: Float[Tensor, "F M"], threshold: Tensor | None, progress: Progress
    ) -> Float[Tensor, "B F"]:
        sizes = (h * total_norms(norms).to(h.dtype)).detach()
        return keep_largest(h, sizes, self.k_at(progress) * len(h), Scratch())[0]

    def codes(
        self,
        h: Float[Tensor, "B F"],
        norms: Float[Tensor, "F M"],
        threshold: Tensor | None,
        progress: Progress,
        scratch: Scratch,
    ) -> Codes:
        sizes = torch.mul(h, total_norms(norms).to(h.dtype), out=scratch.empty("kept", h.shape, h))
        f, least = keep_largest(h, sizes, self.k_at(progress) * len(h), scratch)
        codes = MaskedCodes(f, norms, 0.0)
        codes.threshold = self._measured(threshold, least, progress)
        return codes

    def _measured(self, threshold: Tensor | None, least: Float[Tensor, ""], progress: Progress) -> Tensor | None:
        """The threshold after a batch whose smallest size was `least`, which is infinite where nothing fired."""
        assert threshold is not None
        if progress.step <= min(self.threshold_start, progress.steps // 2):
            return threshold
        moved = self.threshold_decay * threshold + (1 - self.threshold_decay) * least
        # The first measurement replaces the start value; a batch in which nothing fires says nothing.
        return torch.where(least.isfinite(), torch.where(threshold < 0, least, moved), threshold)

    def least_code(self, norms: Float[Tensor, "F M"], m: int, threshold: Tensor | None) -> Float[Tensor, " F"]:
        assert threshold is not None
        return (threshold / total_norms(norms)).clamp_min(0)

    def logged(self, progress: Progress) -> dict[str, float | int]:
        return {"k": self.k_at(progress)}


def keep_largest(
    values: Float[Tensor, "B F"], sizes: Float[Tensor, "B F"], n: int, scratch: Scratch
) -> tuple[Float[Tensor, "B F"], Float[Tensor, ""]]:
    """Each value whose size is among the n largest positive ones of the matrix, else 0; and the least of these sizes.

    Of equal sizes those that come first, row by row, so the choice does not depend on the device. Nothing is sorted,
    and nothing waits for the device.

    Args:
        values: of the dtype of `sizes`, not negative.
        sizes: by which they are compared, not negative; overwritten by the result.
        n: how many are kept; where fewer sizes are positive, all of those.
        scratch: memory to work in.

    Returns:
        the values, and the least size that was kept, in float32; infinity where no size is positive.
    """
    order = bits(sizes)
    largest = _largest(order.flatten(), min(n, order.numel()))
    infinity = bits(torch.full((), torch.inf, dtype=sizes.dtype, device=sizes.device))
    least_kept = torch.where(largest > 0, largest, infinity).min()
    least = largest.min().clamp_min(1)  # 1 is the smallest positive float
    room = (largest == least).sum()
    equal = torch.eq(order, least, out=scratch.empty("equal", order.shape, order, torch.bool))
    seen = _count_rows(equal).cumsum(0)
    # In the first rows all that equal the least are kept, in the last ones none, and in one row perhaps some.
    whole = seen <= room
    row = whole.sum().clamp_max(len(whole) - 1).view(1)
    equal_here = equal.index_select(0, row)
    seen_here = seen.index_select(0, row) - equal_here.sum() + equal_here.cumsum(1)
    kept_here = (order.index_select(0, row) > least) | (equal_here & (seen_here <= room))
    below = (least - whole.to(least.dtype)).view(sizes.dtype)
    kept = where_positive(values, sizes.sub_(below[:, None]), out=sizes)
    kept.index_copy_(0, row, values.index_select(0, row) * kept_here)
    return kept, least_kept.view(sizes.dtype).float()


def _count_rows(where: Bool[Tensor, "B F"]) -> Int[Tensor, " B"]:
    """How many are true in each row: as bytes in groups that fit one, because to add up booleans first widens them."""
    group = math.gcd(where.shape[1], 128)
    return where.view(torch.uint8).unflatten(1, (-1, group)).sum(-1, dtype=torch.uint8).sum(1)


def _largest(order: Int[Tensor, " N"], n: int) -> Int[Tensor, " n"]:
    """The n largest integers, in any order."""
    if order.device.type != "cpu":
        return order.topk(n, sorted=False).values
    return torch.from_numpy(np.partition(order.numpy(), len(order) - n)[len(order) - n :])
