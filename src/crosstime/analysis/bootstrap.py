"""Bootstrap over prompts: how far a mean over them would move, had other prompts like them been drawn."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CONFIDENCE = 0.95
LEVELS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""The percentiles that bound an interval."""


def draw_counts(n: int, draws: int, seed: int) -> Float[Tensor, "R N"]:
    """How often each resample holds each of n prompts; every row sums to n."""
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, n).scatter_add_(1, drawn, torch.ones(draws, n))


def percentile_bounds(resampled: Float[Tensor, "M R F"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Percentile bounds of an effect [M, F] and of its shares between the checkpoints [F, M], low and high each.

    A resample in which a feature has no effect has no shares. Without resamples all bounds are NaN.
    """
    m, n, f = resampled.shape
    if n == 0 or f == 0:
        unknown, shares_unknown = np.full((m, f), np.nan, np.float32), np.full((f, m), np.nan, np.float32)
        return unknown, unknown, shares_unknown, shares_unknown
    levels = torch.tensor(LEVELS).to(resampled)
    effects, shares = [], []
    for part in resampled.split(512, dim=2):  # quantiles sort a copy: a part at a time keeps it small
        size = part.abs()
        effects.append(torch.quantile(part, levels, dim=1))
        shares.append(torch.nanquantile(size / size.sum(0), levels, dim=1).transpose(1, 2))
    (low, high), (share_low, share_high) = torch.cat(effects, 2).cpu().numpy(), torch.cat(shares, 1).cpu().numpy()
    return low, high, share_low, share_high
