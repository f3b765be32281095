"""Indirect effects: how much each feature causes each checkpoint's performance on a task.

Gradients (Sundararajan et al. 2017 for their integral; Marks et al. 2024 for features) on the straight path on which
every feature and the reconstruction error go to a baseline. In the residual stream that path is a line from the
activation to the baseline's (of zero features and errors: the crosscoder's bias), so one gradient per token serves all
features: a feature's effect is the product of that gradient with its decoder vector and with its change on the path.

The gradient where the path begins foretells best what ablating a single feature does; the mean along the path accounts
for all of them together (docs/parity.md, "Which attribution predicts ablation"). By default each is used for what it is
good at.
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
from jaxtyping import Int
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from crosstime.analysis import integration
from crosstime.analysis.activations import check_models
from crosstime.analysis.aggregation import Aggregation
from crosstime.analysis.baselines import ends, points
from crosstime.analysis.effect_sums import EffectSums
from crosstime.analysis.path_rules import Baseline, Method, PathRule
from crosstime.analysis.relative import NoEffect, relative, share_of_no_effect
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.data.corpus import Corpus
from crosstime.data.task import Prompts
from crosstime.lm.split import SplitLM

POSITIONS_AT_ONCE = 8192
"""Positions that one forward and backward pass holds, over all prompts and nodes: long prompts make smaller batches."""
LARGE_GAP = 0.05
"""Completeness gap above which an attribution is not to be trusted."""
PAPER_STEPS = 10


class CompletenessWarning(UserWarning):
    """The effects do not add up to the change that they are to explain."""


@dataclass(frozen=True)
class Effects:
    """Indirect effects of all features at all checkpoints on one task.

    The metric is logit(wrong) - logit(right) at the last prompt token, so IE > 0 says: the feature supports the right
    answer. Everything is in logits. Intervals are bootstrap percentile intervals over prompts, at 95 %.
    """

    task: str
    method: Method
    baseline: Baseline
    checkpoints: list[str]
    n_examples: int
    skipped: dict[str, int]
    """Pairs of the task that gave no prompt, by reason."""
    ie: np.ndarray
    """[M, F] indirect effect: summed over positions, mean over prompts; see `attribute` for the other aggregation."""
    ie_low: np.ndarray
    ie_high: np.ndarray
    rel_ie: np.ndarray
    """[F, M] |IE_m| / sum over checkpoints of |IE|; where a feature has no effect at any checkpoint, NaN or what
    `no_effect` says."""
    rel_ie_low: np.ndarray
    rel_ie_high: np.ndarray
    sign_consistency: np.ndarray
    """[M, F] share of the prompts with a nonzero effect whose effect has the sign of IE; NaN without such prompts."""
    explained: np.ndarray
    """[M] sum of all effects, the error's among them, by the mean gradient along the path, before any threshold."""
    error: np.ndarray
    """[M] the effect of what the crosscoder does not reconstruct in `explained`."""
    total: np.ndarray
    """[M] metric at the end of the path - metric of the model as it is, mean over prompts."""
    gap: np.ndarray
    """[M] mean over prompts of |sum of all effects - total| over mean |total|: the completeness gap. It is taken before
    any aggregation, so with every method it says how much of the change the gradients miss."""
    metric_clean: np.ndarray
    """[M] metric of the model as it is."""
    metric_end: np.ndarray
    """[M] metric where the path ends: with all features and the error at the baseline."""

    @property
    def feature_share(self) -> np.ndarray:
        """[M] the features' part of the sum of all effects; the rest is the error's. NaN where there is no effect."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - self.error / self.explained

    def summary(self) -> dict[str, object]:
        """The task's numbers without those of single features, ready for JSON."""
        return {
            "task": self.task,
            "method": self.method,
            "baseline": self.baseline,
            "checkpoints": self.checkpoints,
            "n_examples": self.n_examples,
            "skipped": self.skipped,
            "feature_share": self.feature_share.tolist(),
            **{
                name: getattr(self, name).tolist()
                for name in ("total", "explained", "error", "gap", "metric_clean", "metric_end")
            },
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
    method: Method = "gradient",
    baseline: Baseline = "bias",
    text: Corpus | None = None,
    rule: PathRule = "gauss-legendre",
    steps: int = 16,
    threshold: float = 0.1,
    reference_batch: int = 4,
    n_columns: int = 18,
    no_effect: NoEffect = "undefined",
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Effects:
    """Indirect effect of every feature at every checkpoint on a task.

    | method | a feature's gradient | all effects together | effects at single tokens become IE by |
    |---|---|---|---|
    | gradient | where the path begins | mean along the path | sum over positions, mean over prompts |
    | integrated | mean along the path | the same | the same |
    | released | where the path begins | the same | threshold and weights of the paper's public code |
    | paper | mean of ten points, the left rule | the same | the same |

    `rule` and `steps` make the mean along the path. "gradient" foretells best what ablating one feature does, which
    "integrated" does for all features together.

    "released" gives the numbers of the public code of arXiv 2509.05291, "paper" those that its text describes. Under
    them a prompt's sum of the effects that exceed `threshold` in size weighs n_columns / (N B T), where B x T is the
    size that its batch has with padding (see `Aggregation.released`).

    Prompts of equal length share a batch and nothing is padded, so the effects depend neither on the batch size nor,
    with the first two methods, on the order of the prompts. (The bootstrap draws prompts by number, so its intervals
    move within their own noise.)

    Args:
        crosscoder: F features over M checkpoints.
        models: one per checkpoint, in the crosscoder's order, in float32 unless you know better.
        prompts: the task, tokenised.
        method: where the gradient is taken, and how effects are aggregated.
        baseline: what features and error are compared with (see `baselines.ends`): zero, their means over a text, or
            their values on each prompt's second prefix.
        text: for the baseline "mean", held-out text.
        rule: how "gradient" and "integrated" integrate; 16 Gauss-Legendre nodes leave a gap far below 1 %.
        steps: nodes of the rule.
        threshold: logits below or at which the effect at a token counts for nothing, under "released" and "paper".
        reference_batch: prompts of a padded batch, under the same.
        n_columns: fields of a record of the task's table, under the same: in the paper 18 for BLiMP, 6 for CLAMS.
        no_effect: what RelIE is of a feature without effect at any checkpoint (see `relative`).
        batch_size: prompts per batch at most; a forward pass holds `steps + 2` times as many rows.
        bootstrap: resamples of the prompts for the intervals; 0 for none (the bounds are then NaN).
        seed: of the resampling.

    Raises:
        ValueError: the models do not fit the crosscoder, an unknown method, baseline, rule or `no_effect`, a number of
            prompts or resamples that cannot be, the baseline "patch" for prompts without second prefixes, "mean"
            without a text, or activations not finite.

    Warns:
        CompletenessWarning: the completeness gap exceeds 5 % at some checkpoint; not under "released", whose one
            gradient does not claim to add up.
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(prompts.bos, "the task")
    if batch_size < 1 or bootstrap < 0:
        raise ValueError(f"batch_size must be at least 1, bootstrap at least 0; got {batch_size} and {bootstrap}")
    share_of_no_effect(no_effect)  # before the long work
    path = _path(method, rule, steps)
    aggregation = (
        Aggregation.released(prompts, threshold, reference_batch, n_columns)
        if method in ("released", "paper")
        else Aggregation.mean(prompts)
    )
    ends_of = ends(baseline, crosscoder, models, prompts, text)
    single = "clean" if method in ("gradient", "released") else "mean"
    sums = EffectSums(crosscoder, aggregation, single, bootstrap, seed)
    first = crosscoder.config.positions.first_encoded
    progress = tqdm(total=len(prompts), desc=f"effects on {prompts.task}", unit="prompt", leave=False, disable=None)
    with torch.no_grad(), progress as bar:
        for index, tokens in _batches(prompts, batch_size, len(path.nodes)):
            right, wrong = prompts.right[index], prompts.wrong[index]
            both = zip(points(crosscoder, models, tokens), ends_of(index), strict=True)
            for m, (start, end) in enumerate(both):
                way = start.to(end, first)
                sums.add(m, index, path.integrate(models[m], start.x, way.x, right, wrong), way)
            bar.update(len(index))
    effects = _effects(sums, crosscoder, prompts, method, baseline, no_effect)
    if method != "released":
        _warn_of_gap(effects)
    return effects


def _path(method: Method, rule: PathRule, steps: int) -> integration.Path:
    match method:
        case "gradient" | "integrated":
            return integration.Path.of(rule, steps)
        case "paper":
            return integration.Path.of("left", PAPER_STEPS)
        case "released":
            return integration.Path.of("left", 1)
        case _:
            raise ValueError(f"unknown method {method!r}: choose gradient, integrated, released or paper")


def _batches(prompts: Prompts, batch_size: int, nodes: int) -> Iterator[tuple[Int[Tensor, " B"], Int[Tensor, "B S"]]]:
    """Prompts of equal length, with their numbers."""
    for index, tokens in prompts.by_length(batch_size):
        at_once = max(1, POSITIONS_AT_ONCE // (tokens.shape[1] * nodes))
        yield from zip(index.split(at_once), tokens.split(at_once), strict=True)


def _effects(
    sums: EffectSums,
    crosscoder: Crosscoder,
    prompts: Prompts,
    method: Method,
    baseline: Baseline,
    no_effect: NoEffect,
) -> Effects:
    of = {name: value.numpy() for name, value in sums.scalars.items()}
    ie = sums.ie.float().numpy()
    ie_low, ie_high, rel_low, rel_high = sums.intervals()
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = of["absolute_gap"] / of["absolute_total"]
    return Effects(
        task=prompts.task,
        method=method,
        baseline=baseline,
        checkpoints=list(crosscoder.config.checkpoints),
        n_examples=len(prompts),
        skipped=dict(prompts.skipped),
        ie=ie,
        ie_low=ie_low,
        ie_high=ie_high,
        rel_ie=relative(ie, no_effect),
        rel_ie_low=rel_low,
        rel_ie_high=rel_high,
        sign_consistency=sums.sign_consistency(),
        explained=of["explained"],
        error=of["error"],
        total=of["metric_end"] - of["metric_clean"],
        gap=gap,
        metric_clean=of["metric_clean"],
        metric_end=of["metric_end"],
    )


def _warn_of_gap(effects: Effects) -> None:
    worst = int(np.nan_to_num(effects.gap).argmax())
    if effects.gap[worst] > LARGE_GAP:
        warnings.warn(
            f"{effects.task}: at checkpoint {effects.checkpoints[worst]} the effects miss {effects.gap[worst]:.0%} of "
            'the change that they are to explain: take more steps, or another rule ("paper" has ten left ones); if '
            "that does not help, the path ends far from the activations that the model knows (b_dec should be at "
            "their mean)",
            CompletenessWarning,
            stacklevel=3,
        )
