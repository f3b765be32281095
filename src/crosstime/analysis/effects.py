"""Indirect effects: how much each feature causes each checkpoint's performance on a task.

Integrated gradients (Sundararajan et al. 2017; Marks et al. 2024 for features) along the straight path on which every
feature and the reconstruction error go to zero. In the residual stream that path is a line from the activation to the
crosscoder's bias, so one mean gradient per token serves all features: a feature's effect is the product of that
gradient with its decoder vector.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from crosstime.analysis.activations import check_models, encode, residuals
from crosstime.analysis.bootstrap import intervals, resampling
from crosstime.analysis.path_rules import PathRule, nodes_and_weights
from crosstime.analysis.relative import relative
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.data.task import Prompts
from crosstime.lm.split import SplitLM

POSITIONS_AT_ONCE = 8192
"""Positions that one forward and backward pass holds, over all prompts and nodes: long prompts make smaller batches."""
LARGE_GAP = 0.05
"""Completeness gap above which an attribution is not to be trusted."""


class CompletenessWarning(UserWarning):
    """The effects do not add up to the change that they are to explain."""


@dataclass(frozen=True)
class Effects:
    """Indirect effects of all features at all checkpoints on one task, means over its prompts.

    The metric is logit(wrong) - logit(right) at the last prompt token, so IE > 0 says: the feature supports the right
    answer. Everything is in logits. Intervals are bootstrap percentile intervals over prompts, at 95 %.
    """

    task: str
    checkpoints: list[str]
    n_examples: int
    skipped: dict[str, int]
    """Pairs of the task that gave no prompt, by reason."""
    ie: np.ndarray
    """[M, F] indirect effect, summed over positions, mean over prompts."""
    ie_low: np.ndarray
    ie_high: np.ndarray
    rel_ie: np.ndarray
    """[F, M] |IE_m| / sum over checkpoints of |IE|; NaN where a feature has no effect at any checkpoint."""
    rel_ie_low: np.ndarray
    rel_ie_high: np.ndarray
    error: np.ndarray
    """[M] effect of what the crosscoder does not reconstruct."""
    total: np.ndarray
    """[M] metric at the end of the path - metric of the model as it is."""
    gap: np.ndarray
    """[M] mean |sum of all effects - total| over mean |total|: the completeness gap."""
    metric_clean: np.ndarray
    """[M] metric of the model as it is."""
    metric_end: np.ndarray
    """[M] metric with all features and the error at zero."""

    @property
    def feature_share(self) -> np.ndarray:
        """[M] the features' part of the sum of all effects; the rest is the error's."""
        features = self.ie.sum(1)
        return features / (features + self.error)

    def summary(self) -> dict[str, object]:
        """The task's numbers without those of single features, ready for JSON."""
        return {
            "task": self.task,
            "checkpoints": self.checkpoints,
            "n_examples": self.n_examples,
            "skipped": self.skipped,
            "feature_share": self.feature_share.tolist(),
            **{name: getattr(self, name).tolist() for name in ("total", "error", "gap", "metric_clean", "metric_end")},
        }

    def save(self, folder: Path) -> None:
        """Write effects.json and effects.safetensors into an existing folder."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        # safetensors writes the memory as it lies, so a transposed view must be laid out first.
        arrays = {name: np.ascontiguousarray(v) for name, v in values.items() if isinstance(v, np.ndarray)}
        save_file(arrays, folder / "effects.safetensors")
        plain = {name: value for name, value in values.items() if name not in arrays}
        (folder / "effects.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Effects:
        """Read what `save` wrote."""
        values: dict[str, Any] = json.loads((folder / "effects.json").read_text(encoding="utf-8"))
        values |= load_file(folder / "effects.safetensors")
        return cls(**values)


def attribute(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    prompts: Prompts,
    *,
    rule: PathRule = "gauss-legendre",
    steps: int = 16,
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Effects:
    """Indirect effect of every feature at every checkpoint on a task.

    Prompts of equal length share a batch and nothing is padded, so the effects depend neither on the batch size nor on
    the order of the prompts. (The bootstrap draws prompts by number, so its intervals move within their own noise.)

    Args:
        crosscoder: F features over M checkpoints.
        models: one per checkpoint, in the crosscoder's order, in float32 unless you know better.
        prompts: the task, tokenised.
        rule: how the path is integrated; 16 Gauss-Legendre nodes leave a gap far below 1 %.
        steps: nodes of the rule.
        batch_size: prompts per batch at most; a forward pass holds `steps + 2` times as many rows.
        bootstrap: resamples of the prompts for the intervals; 0 for none (the bounds are then NaN).
        seed: of the resampling.

    Raises:
        ValueError: the models do not fit the crosscoder, a rule that does not exist, or activations not finite.

    Warns:
        CompletenessWarning: the completeness gap exceeds 5 % at some checkpoint.
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(prompts.bos, "the task")
    path = _Path.of(rule, steps)
    sums = _Sums(crosscoder, len(prompts), bootstrap, seed)
    with tqdm(total=len(prompts), desc=f"effects on {prompts.task}", unit="prompt", leave=False, disable=None) as bar:
        for index, tokens in _batches(prompts, batch_size, len(path.nodes)):
            x = residuals(crosscoder, models, tokens)
            with torch.no_grad():
                f = encode(crosscoder, x)
                x_hat = crosscoder.decode(f)
            for m, model in enumerate(models):
                slopes = path.integrate(
                    model, x[:, :, m], _ends(crosscoder, x, m), prompts.right[index], prompts.wrong[index]
                )
                sums.add(m, index, slopes, f, x[:, :, m], x_hat[:, :, m])
            bar.update(len(index))
    effects = sums.effects(prompts)
    _warn_of_gap(effects)
    return effects


def _batches(prompts: Prompts, batch_size: int, nodes: int) -> Iterator[tuple[Int[Tensor, " B"], Int[Tensor, "B S"]]]:
    """Prompts of equal length, with their numbers."""
    for index, tokens in prompts.by_length(batch_size):
        at_once = max(1, POSITIONS_AT_ONCE // (tokens.shape[1] * nodes))
        yield from zip(index.split(at_once), tokens.split(at_once), strict=True)


def _warn_of_gap(effects: Effects) -> None:
    worst = int(np.nan_to_num(effects.gap).argmax())
    if effects.gap[worst] > LARGE_GAP:
        warnings.warn(
            f"{effects.task}: at checkpoint {effects.checkpoints[worst]} the effects miss {effects.gap[worst]:.0%} of "
            "the change that they are to explain: take more steps, or another rule; if that does not help, the "
            "crosscoder's b_dec is far from the mean activation",
            CompletenessWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class Slopes:
    """What integrating along the path gives for one batch at one checkpoint."""

    gradient: Float[Tensor, "B S D"]
    """Mean gradient of the metric along the path."""
    change: Float[Tensor, "B S D"]
    """End of the path minus its start; zero at positions that are left alone."""
    metric_clean: Float[Tensor, " B"]
    metric_end: Float[Tensor, " B"]


@dataclass(frozen=True)
class _Path:
    nodes: Float[Tensor, " K"]
    weights: Float[Tensor, " K"]

    @classmethod
    def of(cls, rule: PathRule, steps: int) -> _Path:
        """The rule's nodes between the two ends, which weigh nothing: there only the metric is read."""
        nodes, weights = (torch.from_numpy(array).float() for array in nodes_and_weights(rule, steps))
        zero, one = torch.zeros(1), torch.ones(1)
        return cls(torch.cat([zero, nodes, one]), torch.cat([zero, weights, zero]))

    def integrate(
        self,
        model: SplitLM,
        x: Float[Tensor, "B S D"],
        end: Float[Tensor, "B S D"],
        right: Int[Tensor, " B"],
        wrong: Int[Tensor, " B"],
    ) -> Slopes:
        """Mean gradient of logit(wrong) - logit(right) at the last position, on the line from x to `end`."""
        change, (batch, length) = end - x, x.shape[:2]
        at = (x + self.nodes.to(x.device)[:, None, None, None] * change).flatten(0, 1).requires_grad_()
        last = torch.full((len(at),), length - 1, device=model.device)
        logits = model.upper(at.to(model.device), positions=last).float().unflatten(0, (-1, batch))
        rows, right, wrong = (index.to(logits.device) for index in (torch.arange(batch), right, wrong))
        metric = logits[:, rows, wrong] - logits[:, rows, right]
        (gradient,) = torch.autograd.grad(metric.sum(), at)
        gradient = torch.einsum("k,kbsd->bsd", self.weights.to(x.device), gradient.unflatten(0, (-1, batch)))
        metric = metric.detach().to(x.device)
        return Slopes(gradient, change, metric[0], metric[-1])


def _ends(crosscoder: Crosscoder, x: Float[Tensor, "B S M D"], m: int) -> Float[Tensor, "B S D"]:
    """Where the path ends: the crosscoder's bias at encoded positions, the activation itself elsewhere."""
    end = x[:, :, m].clone()
    end[:, crosscoder.config.positions.first_encoded :] = crosscoder.raw_bias()[m].detach()
    return end


class _Sums:
    """Sums over prompts, in float64 so that their order does not matter (on the CPU: not every device has float64);
    and the same under each resampling.
    """

    def __init__(self, crosscoder: Crosscoder, n: int, bootstrap: int, seed: int) -> None:
        self.crosscoder = crosscoder
        m, f = len(crosscoder.config.checkpoints), crosscoder.config.features
        device = crosscoder.W_enc.device
        self.n = n
        self.ie = torch.zeros(m, f, dtype=torch.float64)
        self.resampled = torch.zeros(m, bootstrap, f, device=device)
        self.resampling = resampling(n, bootstrap, seed).to(device)
        self.scalars = {
            name: torch.zeros(m, dtype=torch.float64)
            for name in ("error", "metric_clean", "metric_end", "absolute_gap", "absolute_total")
        }

    @torch.no_grad()
    def add(
        self,
        m: int,
        index: Int[Tensor, " B"],
        slopes: Slopes,
        f: Float[Tensor, "B S F"],
        x: Float[Tensor, "B S D"],
        x_hat: Float[Tensor, "B S D"],
    ) -> None:
        """Add one batch at checkpoint m. A feature's effect is -f_i <mean gradient, d_i,m>, summed over positions."""
        effect = -(f * (slopes.gradient @ self.crosscoder.raw_decoder(m).T)).sum(1)
        self.ie[m] += effect.sum(0).cpu()
        self.resampled[m] += self.resampling[:, index.to(self.resampling.device)] @ effect
        first = self.crosscoder.config.positions.first_encoded
        error = -(slopes.gradient * (x - x_hat))[:, first:].sum((1, 2))
        total = slopes.metric_end - slopes.metric_clean
        gap = (slopes.gradient * slopes.change).sum((1, 2)) - total
        for name, values in (
            ("error", error),
            ("metric_clean", slopes.metric_clean),
            ("metric_end", slopes.metric_end),
            ("absolute_gap", gap.abs()),
            ("absolute_total", total.abs()),
        ):
            self.scalars[name][m] += values.cpu().double().sum()

    def effects(self, prompts: Prompts) -> Effects:
        mean = {name: (value / self.n).numpy() for name, value in self.scalars.items()}
        ie = (self.ie / self.n).float().numpy()
        ie_low, ie_high, rel_low, rel_high = intervals(self.resampled)
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = mean["absolute_gap"] / mean["absolute_total"]
        return Effects(
            task=prompts.task,
            checkpoints=list(self.crosscoder.config.checkpoints),
            n_examples=self.n,
            skipped=dict(prompts.skipped),
            ie=ie,
            ie_low=ie_low,
            ie_high=ie_high,
            rel_ie=relative(ie),
            rel_ie_low=rel_low,
            rel_ie_high=rel_high,
            error=mean["error"],
            total=mean["metric_end"] - mean["metric_clean"],
            gap=gap,
            metric_clean=mean["metric_clean"],
            metric_end=mean["metric_end"],
        )
