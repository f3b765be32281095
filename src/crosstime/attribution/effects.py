"""Indirect effects: how much each feature causes each checkpoint's performance on a task.

Gradients (Sundararajan et al. 2017 for their integral; Marks et al. 2024 for features) on the straight path on which
every feature and the reconstruction error go to a baseline. In the residual stream that path is a line from the
activation to the baseline's (of zero features and errors: the crosscoder's bias), so one gradient per token serves all
features: a feature's effect is the product of that gradient with its decoder vector and with its change on the path.

The gradient where the path begins foretells best what ablating a single feature does; the mean along the path accounts
for all of them together (docs/parity.md, "Which attribution predicts ablation"). By default each is used for what it is
good at.

What does not depend on the dictionary (residual streams, gradients) is computed once where the same prompts are put to
several: only the product with the decoder vectors is each one's own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from crosstime.attribution import integration
from crosstime.attribution.activations import check_models, residuals
from crosstime.attribution.aggregation import Aggregation
from crosstime.attribution.baselines import Ends, ends, points
from crosstime.attribution.batch_effects import BatchEffects, Single, batch_effects
from crosstime.attribution.effect_sums import EffectSums
from crosstime.attribution.integration import slope
from crosstime.attribution.path_rules import Baseline, Method, PathRule
from crosstime.attribution.relative import NoEffect, relative, share_of_no_effect
from crosstime.base.errors import InputError
from crosstime.base.memory import AdaptiveBatches
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus

POSITIONS_AT_ONCE = 8192
"""Positions that one forward and backward pass holds, over all prompts and nodes: long prompts make smaller batches."""
LARGE_GAP = 0.05
"""Completeness gap above which an attribution is not to be trusted."""
PAPER_STEPS = 10


class CompletenessWarning(UserWarning):
    """The effects do not add up to the change that they are to explain."""


@dataclass(frozen=True)
class TaskTotals:
    """Effects on one task, of all features and the error together: an entry of tasks.json.

    The metric is logit(wrong) - logit(right) at the last prompt token; everything is in logits.
    """

    task: str
    method: Method
    baseline: Baseline
    checkpoints: list[str]
    n_examples: int
    skipped: dict[str, int]
    """Pairs of the task that gave no prompt, by reason."""
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


_ARRAYS = ("explained", "error", "total", "gap", "metric_clean", "metric_end")


def save_totals(path: Path, totals: Sequence[TaskTotals]) -> None:
    """Write tasks.json: the totals of each task without its single features; null stands for NaN."""
    names = [field.name for field in fields(TaskTotals)]
    entries = [{name: getattr(one, name) for name in [*names, "feature_share"]} for one in totals]
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in entry.items()} for entry in entries]
    path.write_text(json.dumps(jsonable(plain), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def load_totals(path: Path) -> list[TaskTotals]:
    """Read what `save_totals` wrote."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        entry.pop("feature_share")
        entry |= {name: np.array(entry[name], float) for name in _ARRAYS}
    return [TaskTotals(**entry) for entry in entries]


@dataclass(frozen=True)
class Effects(TaskTotals):
    """Indirect effects of all features at all checkpoints on one task, and their totals.

    IE > 0 means that the feature supports the right answer. Intervals are bootstrap percentile intervals over prompts,
    at 95 %. Arrays are [M, F].
    """

    ie: np.ndarray
    """Indirect effect: summed over positions, mean over prompts; see `attribute` for the other aggregation."""
    ie_low: np.ndarray
    ie_high: np.ndarray
    rel_ie: np.ndarray
    """|IE_m| / sum over checkpoints of |IE|; for a feature without effect at any checkpoint NaN, or as set by
    `no_effect`."""
    rel_ie_low: np.ndarray
    rel_ie_high: np.ndarray
    sign_consistency: np.ndarray
    """Share of the prompts with a nonzero effect whose effect has the sign of IE; NaN without such prompts."""

    def save(self, folder: Path) -> None:
        """Write effects.json and effects.safetensors into an existing folder."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
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
    positions_at_once: int = POSITIONS_AT_ONCE,
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
        batch_size: prompts per batch at most; a pass through the blocks above the layer holds `steps` times as many.
        positions_at_once: positions that such a pass holds at most, so long prompts make smaller batches; half as many
            from then on, with a `MemoryWarning`, when memory runs out.
        bootstrap: resamples of the prompts for the intervals; 0 for none (the bounds are then NaN).
        seed: of the resampling.

    Raises:
        InputError: the models do not fit the crosscoder, an unknown method, baseline, rule or `no_effect`, a number of
            prompts, positions or resamples that cannot be, the baseline "patch" for prompts without second prefixes,
            "mean" without a text, activations not finite, or not enough memory for one prompt.

    Warns:
        CompletenessWarning: the completeness gap exceeds 5 % at some checkpoint; not under "released", whose one
            gradient does not claim to add up.
    """
    (effects,) = attribute_several(
        [crosscoder],
        models,
        prompts,
        method=method,
        baseline=baseline,
        text=text,
        rule=rule,
        steps=steps,
        threshold=threshold,
        reference_batch=reference_batch,
        n_columns=n_columns,
        no_effect=no_effect,
        batch_size=batch_size,
        positions_at_once=positions_at_once,
        bootstrap=bootstrap,
        seed=seed,
    )
    return effects


def attribute_several(
    crosscoders: Sequence[Crosscoder],
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
    positions_at_once: int = POSITIONS_AT_ONCE,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[Effects]:
    """What `attribute` finds for each of several crosscoders of the same checkpoints, hardly slower than for one.

    The effects of single features, their intervals and what follows from them are those of a call for each. So is all
    the rest, but with the baseline "bias" and the methods "gradient" and "released": there all paths end at the mean of
    the crosscoders' biases (with features at zero, and the error of each at what lies between its own bias and that
    mean), and `explained`, `error`, `total`, `gap` and `metric_end` are of this path. With the other methods single
    features depend on where the path ends, so with the baseline "bias" every crosscoder has a path of its own, and
    costs as much as the first.

    Args:
        crosscoders: of the same checkpoints, layer and policy for position 0, on one device.
        models, prompts: as for `attribute`, and so are all settings.

    Raises:
        InputError: as `attribute`, or there is no crosscoder, or they differ in their policy for position 0.
    """
    _check(crosscoders, models, prompts)
    if min(batch_size, positions_at_once) < 1 or bootstrap < 0:
        raise InputError(
            "batch_size and positions_at_once must be at least 1, bootstrap at least 0; got "
            f"{batch_size}, {positions_at_once} and {bootstrap}"
        )
    share_of_no_effect(no_effect)  # before the long work
    measurement = _Measurement(
        models,
        prompts,
        path_of(method, rule, steps),
        Aggregation.released(prompts, threshold, reference_batch, n_columns)
        if method in ("released", "paper")
        else Aggregation.mean(prompts),
        "clean" if method in ("gradient", "released") else "mean",
    )
    # Where the path decides the effects of single features, no other crosscoder may move its end.
    alone = baseline == "bias" and measurement.single == "mean"
    found: list[Effects] = []
    for group in [[crosscoder] for crosscoder in crosscoders] if alone else [crosscoders]:
        all_batches = measurement.run(
            group, ends(baseline, group, models, prompts, text), batch_size, positions_at_once
        )
        for crosscoder, batches in zip(group, all_batches, strict=True):
            sums = EffectSums(batches, measurement.aggregation.weights, crosscoder.config.features)
            bounds = sums.intervals(bootstrap, seed, crosscoder.W_enc.device)
            found.append(_effects(sums, bounds, crosscoder, prompts, method, baseline, no_effect))
    if method != "released":
        for effects in found:
            _warn_of_gap(effects)
    return found


@dataclass(frozen=True)
class _Measurement:
    """What is measured of every batch, whatever the crosscoder."""

    models: Sequence[SplitLM]
    prompts: Prompts
    path: integration.Path
    aggregation: Aggregation
    single: Single

    @torch.no_grad()
    def run(
        self, crosscoders: Sequence[Crosscoder], ends_of: Ends, batch_size: int, positions_at_once: int
    ) -> list[list[list[BatchEffects]]]:
        """Of each crosscoder and checkpoint the effects on all batches."""
        found: list[list[list[BatchEffects]]] = [[[] for _ in self.models] for _ in crosscoders]
        lower = "effects.steps, or the number of tokens of the prompts"
        batches = AdaptiveBatches("effects", "path", positions_at_once, lower=lower)
        title = f"effects on {self.prompts.task}"
        with tqdm(total=len(self.prompts), desc=title, unit="prompt", leave=False, disable=None) as bar:

            def work(index: Tensor) -> list[list[BatchEffects]]:
                return self._batch(crosscoders, ends_of, index)

            for index, tokens in self.prompts.by_length(batch_size):
                for batch in batches.run(index, work, length=tokens.shape[1] * len(self.path.nodes)):
                    for known, new in zip(found, batch, strict=True):
                        for at, effects in zip(known, new, strict=True):
                            at.append(effects)
                    bar.update(len(batch[0][0].index))
        return found

    def _batch(
        self, crosscoders: Sequence[Crosscoder], ends_of: Ends, index: Int[Tensor, " B"]
    ) -> list[list[BatchEffects]]:
        """Of each crosscoder and checkpoint the effects on prompts of one length."""
        tokens = self.prompts.batch(index)
        right, wrong = self.prompts.right[index], self.prompts.wrong[index]
        first = crosscoders[0].config.positions.first_encoded
        x = residuals(crosscoders[0], self.models, tokens)
        clean = [slope(model, x[:, :, m], right, wrong) for m, model in enumerate(self.models)]
        along: list[integration.Slope] = []
        found = []
        for crosscoder, end in zip(crosscoders, ends_of(index), strict=True):
            both = zip(points(crosscoder, x), end, strict=True)
            found.append([])
            for m, way in enumerate(start.to(there, first) for start, there in both):
                if m == len(along):  # the first crosscoder's: the others' residual streams go the same way
                    along.append(self.path.integrate(self.models[m], clean[m], x[:, :, m], way.x, right, wrong))
                found[-1].append(
                    batch_effects(
                        crosscoder,
                        m,
                        index,
                        clean[m],
                        along[m],
                        way,
                        aggregation=self.aggregation,
                        single=self.single,
                    )
                )
        return found


def _check(crosscoders: Sequence[Crosscoder], models: Sequence[SplitLM], prompts: Prompts) -> None:
    if not crosscoders:
        raise InputError("there is no crosscoder: pass at least one")
    for crosscoder in crosscoders:
        check_models(crosscoder, models)
        crosscoder.config.positions.check(prompts.bos, "the task")
    policies = {crosscoder.config.positions.first_encoded for crosscoder in crosscoders}
    if len(policies) > 1:
        raise InputError("some of the crosscoders encode position 0 and some do not: attribute them in two calls")


def path_of(method: Method, rule: PathRule, steps: int) -> integration.Path:
    """The points at which a method takes gradients; `rule` and `steps` are those of "gradient" and "integrated".

    Raises:
        InputError: an unknown method or rule, or fewer steps than the rule needs.
    """
    match method:
        case "gradient" | "integrated":
            return integration.Path.of(rule, steps)
        case "paper":
            return integration.Path.of("left", PAPER_STEPS)
        case "released":
            return integration.Path.of("left", 1)
        case _:
            raise InputError(f"unknown method {method!r}: choose gradient, integrated, released or paper")


def _effects(
    sums: EffectSums,
    bounds: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    crosscoder: Crosscoder,
    prompts: Prompts,
    method: Method,
    baseline: Baseline,
    no_effect: NoEffect,
) -> Effects:
    ie = sums.ie.astype(np.float32)
    ie_low, ie_high, rel_low, rel_high = bounds
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
        explained=sums.explained,
        error=sums.error,
        total=sums.total,
        gap=sums.gap,
        metric_clean=sums.metric_clean,
        metric_end=sums.metric_end,
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
            stacklevel=4,  # where `attribute` is called
        )
