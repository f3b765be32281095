"""TopK: the k largest features of every row (Gao et al. 2024), compared by code times decoder norms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.rule import Progress, Sparsity, bits, total_norms


@dataclass(frozen=True, kw_only=True)
class Reviving(Sparsity):
    """A rule of k features a row and no penalty, under which features may die: those learn what the others leave over.

    The auxiliary loss is that of Gao et al. 2024, as arXiv 2509.05291 uses it (`training.auxiliary`).
    """

    k: int = field(default=200, kw_only=False)
    """Features that fire on a row: at most, or on average."""
    aux_weight: float = 1 / 32
    """Weight of the auxiliary loss; 0 for none."""
    aux_k: int | None = None
    """Dead features that each row trains; without it half the model's width."""
    dead_tokens: int = 10_000_000
    """Rows after which a feature that never fired counts as dead."""

    def __post_init__(self) -> None:
        if not self.aux_weight >= 0:
            raise InputError(f"sparsity.aux_weight must not be negative; got {self.aux_weight}")
        for name in ("k", "aux_k", "dead_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"sparsity.{name} must be at least 1; got {value}")

    def check(self, features: int) -> None:
        """Raise InputError where k exceeds the number of features."""
        if self.k > features:
            raise InputError(f"sparsity.k is {self.k}: a dictionary of {features} features has not so many")


@dataclass(frozen=True)
class TopK(Reviving):
    """f keeps, in every row, the k largest of f_i sum_m ||d_i,m||; of equals those of lower index."""

    rule: str = field(default="topk", init=False)

    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        return h * largest_per_row(h * total_norms(norms).to(h.dtype), min(self.k, h.shape[-1]))

    def logged(self, progress: Progress) -> dict[str, float | int]:
        return {"k": self.k}


def largest_per_row(values: Float[Tensor, "*b F"], k: int) -> Bool[Tensor, "*b F"]:
    """Where the k largest values of each row are, none of them negative; of equals those of lower index come first."""
    features = values.shape[-1]
    # A value's bits with its index behind them are a number that no other value of the row has.
    wide = torch.int32 if values.dtype.itemsize == 2 and features <= 1 << 16 else torch.int64
    backwards = torch.arange(features - 1, -1, -1, dtype=wide, device=values.device)
    numbers = bits(values).to(wide).mul_(features).add_(backwards)
    if values.device.type != "cpu":
        return numbers >= numbers.topk(k, dim=-1, sorted=True).values[..., -1:]
    # Here torch sorts whole rows.
    least = np.partition(numbers.numpy(), features - k, axis=-1)[..., features - k, None]
    return numbers >= torch.from_numpy(least)
