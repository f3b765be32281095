"""Statistics of effects: sums over prompts, bootstrap intervals and rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from scipy.sparse import csc_array
from torch import Tensor

CONFIDENCE = 0.95
LEVELS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""The percentiles that bound an interval."""
FEATURES_AT_ONCE = 256
"""Features that are resampled together: M x N effects and M x R sums of each are held."""


@dataclass(frozen=True)
class BatchEffects:
    """Effects on B prompts at one checkpoint, on the CPU; those of single features in COO form, without zeros."""

    index: Int[np.ndarray, " B"]
    """Numbers of the prompts."""
    prompt: Int[np.ndarray, " K"]
    """Number of the prompt, for each of K nonzero effects."""
    feature: Int[np.ndarray, " K"]
    """Number of the feature, likewise."""
    value: Float[np.ndarray, " K"]
    """The effect, summed over positions and not weighted."""
    explained: Float[np.ndarray, " B"]
    error: Float[np.ndarray, " B"]
    metric_clean: Float[np.ndarray, " B"]
    metric_end: Float[np.ndarray, " B"]


class EffectSums:
    """Sums over N prompts at M checkpoints, taken in the order of the prompts whatever the batches were.

    Args:
        batches: For each checkpoint, effects on every prompt once.
        weights: Weights of the prompts.
        features: F.
    """

    def __init__(self, batches: Sequence[Sequence[BatchEffects]], weights: Float[Tensor, " N"], features: int) -> None:
        self.weights = weights
        shape = len(weights), features
        self.effects = [_sparse_matrix(of_checkpoint, shape) for of_checkpoint in batches]
        """Effects on single prompts, one sparse matrix [N, F] per checkpoint."""
        self.ie: Float[np.ndarray, "M F"] = np.stack([e.astype(np.float64).T @ weights.numpy() for e in self.effects])
        explained, error, clean, end = (
            _by_prompt(batches, name, len(weights)) for name in ("explained", "error", "metric_clean", "metric_end")
        )
        total = end - clean
        self.explained, self.error = explained @ weights.numpy(), error @ weights.numpy()
        self.metric_clean, self.metric_end, self.total = clean.mean(1), end.mean(1), total.mean(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.gap = np.abs(explained - total).mean(1) / np.abs(total).mean(1)

    def sign_consistency(self) -> Float[np.ndarray, "M F"]:
        """Return the share of the prompts with an effect whose effect has the sign of the sum; NaN without any."""
        effects = [matrix.tocoo() for matrix in self.effects]
        n_features = self.ie.shape[1]
        positive = np.stack([np.bincount(e.col[e.data > 0], minlength=n_features) for e in effects])
        negative = np.stack([np.bincount(e.col[e.data < 0], minlength=n_features) for e in effects])
        consistent = np.where(self.ie > 0, positive, np.where(self.ie < 0, negative, 0))
        with np.errstate(invalid="ignore"):
            return (consistent / (positive + negative)).astype(np.float32)

    def intervals(
        self, bootstrap: int, seed: int, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return percentile bounds over resamples of the prompts, each [M, F]: IE low and high, RelIE low and high.

        Resamples in which a feature has no effect don't count for its RelIE. A feature without any effect has none.

        Args:
            bootstrap: R, the number of resamples; if 0, all bounds are NaN.
            seed: Seed of the resampling.
            device: Where the sums over each resample are computed.
        """
        resampling = (draw_counts(len(self.weights), bootstrap, seed) * self.weights).float().to(device)
        low, high = (np.full(self.ie.shape, 0 if bootstrap else np.nan, np.float32) for _ in range(2))
        share_low, share_high = (np.full(self.ie.shape, np.nan, np.float32) for _ in range(2))
        active = np.unique(np.concatenate([effects.tocoo().col for effects in self.effects]))
        for part in np.split(active, range(FEATURES_AT_ONCE, len(active), FEATURES_AT_ONCE)) if bootstrap else ():
            dense = torch.from_numpy(np.stack([effects[:, part].toarray() for effects in self.effects]))
            bounds = percentile_bounds(resampling @ dense.float().to(device))
            low[:, part], high[:, part], share_low[:, part], share_high[:, part] = bounds
        return low, high, share_low, share_high


def _sparse_matrix(batches: Sequence[BatchEffects], shape: tuple[int, int]) -> csc_array:
    value, prompt, feature = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("value", "prompt", "feature")
    )
    return csc_array((value, (prompt, feature)), shape=shape)


def _by_prompt(batches: Sequence[Sequence[BatchEffects]], name: str, n: int) -> Float[np.ndarray, "M N"]:
    """Put one value of every prompt into the order of the prompts."""
    values = np.empty((len(batches), n))
    for of_checkpoint, row in zip(batches, values, strict=True):
        for batch in of_checkpoint:
            row[batch.index] = getattr(batch, name)
    return values


def draw_counts(n: int, draws: int, seed: int) -> Float[Tensor, "R N"]:
    """Draw bootstrap resamples of n prompts: how often each prompt is in each resample. Rows sum to n."""
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, n).scatter_add_(1, drawn, torch.ones(draws, n))


def percentile_bounds(resampled: Float[Tensor, "M R F"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return percentile bounds, each [M, F], of effects and of their shares between checkpoints: low, high, low, high.

    Resamples in which a feature has no effect don't count for its shares. Without resamples all bounds are NaN.
    """
    effects = resampled.transpose(1, 2).contiguous().cpu().numpy()
    size = np.abs(effects)
    with np.errstate(invalid="ignore"):
        shares = size / size.sum(0)
    low, high = _percentiles(effects)
    share_low, share_high = _percentiles(shares)
    return low, high, share_low, share_high


def _percentiles(values: Float[np.ndarray, "M F R"]) -> list[Float[np.ndarray, "M F"]]:
    """Return the two percentiles that bound an interval, interpolated linearly; NaN is ignored unless all is NaN.

    A plain sort is many times as fast as `torch.nanquantile` or `np.nanquantile`.
    """
    if not values.shape[-1]:
        return [np.full(values.shape[:-1], np.nan, values.dtype)] * len(LEVELS)
    ordered = np.sort(values, axis=-1)  # NaN comes last
    last = np.maximum(np.count_nonzero(~np.isnan(ordered), axis=-1) - 1, 0)
    bounds = []
    for level in LEVELS:
        below = (level * last).astype(np.int64)
        low, high = (
            np.take_along_axis(ordered, i[..., None], axis=-1)[..., 0] for i in (below, np.minimum(below + 1, last))
        )
        bounds.append((low + (level * last - below) * (high - low)).astype(values.dtype))
    return bounds


def spearman(x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
    """Return Spearman's rank correlation of each row of x with that of y; NaN if one of the two is constant.

    Ties get their mean rank.
    """
    if x.shape[1] == 0:
        return np.full(len(x), np.nan)
    x, y = (ranks - ranks.mean(1, keepdims=True) for ranks in (stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
