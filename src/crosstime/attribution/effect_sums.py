"""Indirect effects summed up over the prompts of a task, and over resamples of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csc_array
from torch import Tensor

from crosstime.attribution.batch_effects import BatchEffects
from crosstime.attribution.bootstrap import draw_counts, percentile_bounds

FEATURES_AT_ONCE = 256
"""Features that are resampled together: M x N effects and M x R sums of each are held."""


class EffectSums:
    """Sums over N prompts at M checkpoints. They are taken in the order of the prompts, whatever the batches were.

    Args:
        batches: at each checkpoint, effects on every prompt once.
        weights: of the prompts.
        features: F.
    """

    def __init__(self, batches: Sequence[Sequence[BatchEffects]], weights: Float[Tensor, " N"], features: int) -> None:
        self.weights = weights
        shape = len(weights), features
        self.effects = [_matrix(of_checkpoint, shape) for of_checkpoint in batches]
        """Those of features on single prompts [N, F], one matrix a checkpoint; few are not zero."""
        self.ie: Float[np.ndarray, "M F"] = np.stack([at.astype(np.float64).T @ weights.numpy() for at in self.effects])
        explained, error, clean, end = (
            _by_prompt(batches, name, len(weights)) for name in ("explained", "error", "metric_clean", "metric_end")
        )
        total = end - clean
        self.explained, self.error = explained @ weights.numpy(), error @ weights.numpy()
        self.metric_clean, self.metric_end, self.total = clean.mean(1), end.mean(1), total.mean(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.gap = np.abs(explained - total).mean(1) / np.abs(total).mean(1)

    def sign_consistency(self) -> Float[np.ndarray, "M F"]:
        """Share of the prompts with an effect whose effect has the sign of the sum; NaN where there are none."""
        above, below = (
            np.stack([sign(at).sum(0) for at in self.effects]) for sign in (lambda e: e > 0, lambda e: e < 0)
        )
        alike = np.where(self.ie > 0, above, np.where(self.ie < 0, below, 0))
        with np.errstate(invalid="ignore"):
            return (alike / (above + below)).astype(np.float32)

    def intervals(
        self, bootstrap: int, seed: int, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Percentile bounds [M, F] of IE and of RelIE over resamples of the prompts, low and high each.

        A resample without effect of a feature has no RelIE, and a feature without any effect has none.

        Args:
            bootstrap: R, the resamples; without any, all bounds are NaN.
            seed: of the resampling.
            device: where the sums over each resample are made.
        """
        resampling = (draw_counts(len(self.weights), bootstrap, seed) * self.weights).float().to(device)
        low, high = (np.full(self.ie.shape, 0 if bootstrap else np.nan, np.float32) for _ in range(2))
        share_low, share_high = (np.full(self.ie.shape, np.nan, np.float32) for _ in range(2))
        there = np.unique(np.concatenate([at.tocoo().col for at in self.effects]))
        for part in np.split(there, range(FEATURES_AT_ONCE, len(there), FEATURES_AT_ONCE)) if bootstrap else ():
            effects = torch.from_numpy(np.stack([at[:, part].toarray() for at in self.effects])).float().to(device)
            found = percentile_bounds(resampling @ effects)
            low[:, part], high[:, part], share_low[:, part], share_high[:, part] = found
        return low, high, share_low, share_high


def _matrix(batches: Sequence[BatchEffects], shape: tuple[int, int]) -> csc_array:
    values, rows, columns = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("values", "rows", "columns")
    )
    return csc_array((values, (rows, columns)), shape=shape)


def _by_prompt(batches: Sequence[Sequence[BatchEffects]], name: str, n: int) -> Float[np.ndarray, "M N"]:
    """One of the values that each prompt has."""
    values = np.empty((len(batches), n))
    for of_checkpoint, row in zip(batches, values, strict=True):
        for batch in of_checkpoint:
            row[batch.index] = getattr(batch, name)
    return values
