"""Indirect effects summed up over the prompts of a task, and over resamples of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.analysis.aggregation import Aggregation
from crosstime.analysis.baselines import Point
from crosstime.analysis.bootstrap import draw_counts, percentile_bounds
from crosstime.analysis.integration import Slopes
from crosstime.crosscoder.crosscoder import Crosscoder


class EffectSums:
    """Sums over prompts, in float64 so that their order does not matter (on the CPU: not every device has float64);
    and the same under each resampling.

    Args:
        crosscoder: F features over M checkpoints.
        aggregation: what becomes of the effects at single tokens of the N prompts.
        single: which gradient the effects of single features are taken from; all effects together, the error's among
            them, always come from the mean along the path.
        bootstrap: R, the resamples of the prompts.
        seed: of the resampling.
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        aggregation: Aggregation,
        single: Literal["clean", "mean"],
        bootstrap: int,
        seed: int,
    ) -> None:
        self.crosscoder, self.aggregation, self.single = crosscoder, aggregation, single
        m, f, n = len(crosscoder.config.checkpoints), crosscoder.config.features, len(aggregation.weights)
        weight = crosscoder.W_enc
        self.n = n
        self.ie = torch.zeros(m, f, dtype=torch.float64)
        self.prompts_above, self.prompts_below = torch.zeros(2, m, f, dtype=torch.long)
        self.resampled = torch.zeros(m, bootstrap, f, dtype=weight.dtype, device=weight.device)
        self.weights = aggregation.weights.to(weight.dtype).to(weight.device)
        self.resampling = draw_counts(n, bootstrap, seed).to(weight) * self.weights
        self.scalars = {
            name: torch.zeros(m, dtype=torch.float64)
            for name in ("explained", "error", "metric_clean", "metric_end", "absolute_gap", "absolute_total")
        }

    def add(self, m: int, index: Int[Tensor, " B"], slopes: Slopes, way: Point) -> None:
        """Add one batch at checkpoint m.

        Args:
            m: the checkpoint.
            index: the numbers of the prompts.
            slopes: of the metric on the path.
            way: of the path, from its beginning to its end.
        """
        gradient = slopes.clean if self.single == "clean" else slopes.mean
        effect = self.aggregation.per_prompt(feature_effects(gradient, way, self.crosscoder.raw_decoder(m)))
        explained, error = (slopes.mean * way.x).sum((1, 2)), error_effects(slopes.mean, way).sum(1)
        index = index.to(self.weights.device)
        weights = self.weights[index]
        self.ie[m] += (weights[:, None] * effect).sum(0).cpu()
        self.prompts_above[m] += (effect > 0).sum(0).cpu()
        self.prompts_below[m] += (effect < 0).sum(0).cpu()
        self.resampled[m] += self.resampling[:, index] @ effect
        total = slopes.metric_end - slopes.metric_clean
        gap = explained - total
        for name, values in (
            ("explained", weights * explained),
            ("error", weights * error),
            ("metric_clean", slopes.metric_clean / self.n),
            ("metric_end", slopes.metric_end / self.n),
            ("absolute_gap", gap.abs() / self.n),
            ("absolute_total", total.abs() / self.n),
        ):
            self.scalars[name][m] += values.cpu().double().sum()

    def sign_consistency(self) -> Float[np.ndarray, "M F"]:
        """Share of the prompts with an effect whose effect has the sign of the sum; NaN where there are none."""
        alike = torch.where(self.ie > 0, self.prompts_above, torch.where(self.ie < 0, self.prompts_below, 0))
        return (alike / (self.prompts_above + self.prompts_below)).numpy()

    def intervals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Percentile bounds of IE [M, F] and of RelIE [F, M]; a resample without effect of a feature has no RelIE."""
        return percentile_bounds(self.resampled)


def feature_effects(
    gradient: Float[Tensor, "B S D"], way: Point, decoder: Float[Tensor, "F D"]
) -> Float[Tensor, "B S F"]:
    """Effects of features at single tokens: (f_i' - f_i) <gradient, d_i,m>."""
    return way.f * (gradient @ decoder.T)


def error_effects(gradient: Float[Tensor, "B S D"], way: Point) -> Float[Tensor, "B S"]:
    """Effects of the error at single tokens: <gradient, error' - error>."""
    return (gradient * way.error).sum(-1)
