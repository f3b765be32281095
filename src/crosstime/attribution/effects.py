"""Indirect effects: how much each feature causes each checkpoint's performance on a task.

Features and reconstruction error are moved together from their values to a baseline. In the residual stream that is a
straight path, so one gradient per token serves all features: a feature's effect is the product of that gradient with
its decoder vector and with its change along the path (Sundararajan et al. 2017 for the integral of gradients; Marks et
al. 2024 for features).

The gradient at the start of the path best predicts what ablating a single feature does; the mean along the path
accounts for all of them together (docs/parity.md, "Which attribution predicts ablation"). By default each is used for
what it is good at.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from crosstime.attribution.activations import check_models, residuals
from crosstime.attribution.baselines import BASELINES, PathEnds, states
from crosstime.attribution.methods import METHODS, Aggregation
from crosstime.attribution.path import PATH_RULES, IntegrationPath, metric, metric_gradient
from crosstime.attribution.relative import NO_EFFECT, relative
from crosstime.attribution.statistics import BatchEffects, EffectSums
from crosstime.base.errors import InputError, SettingError
from crosstime.base.memory import AdaptiveBatches
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus

LARGE_GAP = 0.05
"""Completeness gap above which an attribution isn't to be trusted."""


@dataclass(frozen=True)
class AttributionConfig:
    """Settings of attribution.

    | method | gradient for single features | gradient for all effects together | from effects at single tokens to IE |
    |---|---|---|---|
    | gradient | at the start of the path | mean along the path | sum over positions, mean over prompts |
    | integrated | mean along the path | the same | the same |
    | released | at the start of the path | the same | threshold and weights of the paper's public code |
    | paper | mean of ten points, left rule | the same | the same |

    "gradient" best predicts what ablating one feature does, "integrated" what ablating all of them does. "released"
    gives the numbers of the public code of arXiv 2509.05291, "paper" those that its text describes.

    Example:
        >>> import crosstime as ct
        >>> ct.AttributionConfig(method="integrated", steps=32).path.n_gradients
        32
    """

    method: str = "gradient"
    """Where gradients are taken and how effects are aggregated: "gradient", "integrated", "released", "paper" (the last
    two as in the paper), or another name in `METHODS`."""
    baseline: str = "bias"
    """What features are compared with: "bias" (zero), "mean" (their means over held-out text), "patch" (their values on
    each prompt's second prefix), or another name in `BASELINES`."""
    rule: str = "gauss-legendre"
    """How "gradient" and "integrated" integrate along the path: "gauss-legendre", "midpoint", "trapezoid", "left", or
    another name in `PATH_RULES`."""
    steps: int = 16
    """Nodes of the rule; 16 Gauss-Legendre nodes leave a gap far below 1 %."""
    threshold: float = 0.1
    """"released" and "paper": an effect of at most this many logits at a token counts as zero."""
    reference_batch: int = 4
    """"released" and "paper": prompts per padded batch."""
    n_columns: int = 18
    """"released" and "paper": fields in a record of the task's table, a factor of every effect. In the paper 18 for
    BLiMP and 6 for CLAMS."""
    no_effect: str = "undefined"
    """RelIE of a feature without effect at any checkpoint: "undefined" (NaN), or "shared" (0.5, as in the paper)."""
    bootstrap: int = 1000
    """Resamples of the prompts for the intervals; 0 for none (the bounds are then NaN)."""
    batch_size: int = field(default=32, metadata=ASIDE)
    """Largest number of prompts per batch; a pass through the blocks above the layer holds `steps` times as many."""
    max_positions: int = field(default=8192, metadata=ASIDE)
    """Largest number of positions that such a pass holds over all prompts and nodes: long prompts make smaller
    batches."""
    seed: int = 0
    """Seed of the resampling."""

    def __post_init__(self) -> None:
        METHODS.check(method=self.method)
        BASELINES.check(baseline=self.baseline)
        PATH_RULES.check(rule=self.rule)
        NO_EFFECT.check(no_effect=self.no_effect)
        check_at_least(PATH_RULES[self.rule].min_steps, steps=self.steps)
        check_at_least(1, reference_batch=self.reference_batch, n_columns=self.n_columns)
        check_at_least(1, batch_size=self.batch_size, max_positions=self.max_positions)
        check_at_least(0, bootstrap=self.bootstrap, seed=self.seed)
        if self.threshold < 0:
            raise SettingError("threshold", f"must be at least 0, not {self.threshold}")

    @property
    def path(self) -> IntegrationPath:
        """The path that `rule` and `steps` describe."""
        return IntegrationPath.from_rule(self.rule, self.steps)

    @property
    def n_gradients(self) -> int:
        """Gradients per prompt and checkpoint."""
        method = METHODS[self.method]
        paths = {method.feature_path, method.total_path}
        return 1 + sum((path or self.path).n_gradients for path in paths)


@dataclass(frozen=True)
class TaskTotals:
    """Effects of all features and the error together on one task: an entry of tasks.json.

    The metric is logit(wrong) - logit(right) at the last prompt token; everything is in logits.
    """

    task: str
    method: str
    baseline: str
    checkpoints: list[str]
    n_examples: int
    skipped: dict[str, int]
    """Pairs of the task that gave no prompt, by reason."""
    explained: np.ndarray
    """[M] Sum of all effects, including the error's, by the gradients along the path and before any threshold."""
    error: np.ndarray
    """[M] The part of `explained` that is the effect of what the crosscoder doesn't reconstruct."""
    total: np.ndarray
    """[M] Metric at the end of the path minus metric of the unmodified model, mean over prompts."""
    gap: np.ndarray
    """[M] Completeness gap: mean over prompts of |sum of all effects - total|, divided by mean |total|. It is taken
    before any aggregation, so with every method it is the share of the change that the gradients miss."""
    metric_clean: np.ndarray
    """[M] Metric of the unmodified model."""
    metric_end: np.ndarray
    """[M] Metric at the end of the path: with all features and the error at the baseline."""

    @property
    def feature_share(self) -> np.ndarray:
        """[M] The features' share of the sum of all effects; the rest is the error's. NaN without any effect."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - self.error / self.explained


_TOTALS = ("explained", "error", "total", "gap", "metric_clean", "metric_end")


def save_totals(path: Path, totals: Sequence[TaskTotals]) -> None:
    """Write tasks.json: the totals of each task, without single features; null stands for NaN."""
    names = [*(field.name for field in fields(TaskTotals)), "feature_share"]
    entries = [{name: getattr(one, name) for name in names} for one in totals]
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in entry.items()} for entry in entries]
    path.write_text(json.dumps(jsonable(plain), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def load_totals(path: Path) -> list[TaskTotals]:
    """Read what `save_totals` wrote."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        entry.pop("feature_share")
        entry |= {name: np.array(entry[name], float) for name in _TOTALS}
    return [TaskTotals(**entry) for entry in entries]


@dataclass(frozen=True)
class Effects(TaskTotals):
    """Indirect effects of all features at all checkpoints on one task, and their totals.

    IE > 0 means that the feature supports the right answer. Intervals are bootstrap percentile intervals over prompts,
    at 95 %. Arrays are [M, F].

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> ie, bounds, totals = np.array([[0.1, 0.0], [0.3, -0.2]]), np.zeros((2, 2)), np.array([0.5, 1.0])
        >>> effects = ct.Effects(
        ...     task="agreement", method="gradient", baseline="bias", checkpoints=["step64", "step3786"],
        ...     n_examples=100, skipped={}, explained=totals, error=totals / 4, total=totals, gap=0 * totals,
        ...     metric_clean=-totals, metric_end=0 * totals, ie=ie, ie_low=bounds, ie_high=bounds,
        ...     rel_ie=ct.relative(ie), rel_ie_low=bounds, rel_ie_high=bounds, sign_consistency=bounds,
        ... )  # what `attribute` returns
        >>> effects.rel_ie.round(2).tolist(), effects.feature_share.tolist()
        ([[0.25, 0.0], [0.75, 1.0]], [0.75, 0.75])
    """

    ie: np.ndarray
    """Indirect effect: summed over positions, averaged over prompts, unless the method aggregates otherwise."""
    ie_low: np.ndarray
    ie_high: np.ndarray
    rel_ie: np.ndarray
    """|IE_m| / sum over checkpoints of |IE| (see `relative`)."""
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


class CompletenessWarning(UserWarning):
    """The effects don't add up to the change that they should explain."""


def attribute(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    prompts: Prompts,
    config: AttributionConfig | None = None,
    *,
    text: Corpus | None = None,
) -> Effects:
    """Estimate the indirect effect of every feature at every checkpoint on a task.

    Prompts of equal length share a batch and nothing is padded, so the effects depend neither on the batch size nor,
    unless the method aggregates by batches, on the order of the prompts. (The bootstrap draws prompts by number, so its
    intervals move within their own noise.) If memory runs out, batches are halved with a `MemoryWarning`.

    Args:
        crosscoder: F features over M checkpoints.
        models: One per checkpoint, in the crosscoder's order; float32 is recommended.
        prompts: The task, tokenised.
        config: Settings; the defaults if None.
        text: Held-out text, for the baseline "mean".

    Raises:
        InputError: The models don't fit the crosscoder, the baseline lacks second prefixes or a text, activations
            aren't finite, or there isn't enough memory for one prompt.

    Warns:
        CompletenessWarning: The completeness gap exceeds 5 % at some checkpoint, and the method claims completeness.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> models = [suite.load(name, layer=1) for name in suite.names]
        >>> prompts = ct.BlimpPairs("distractor").load().take(4).prompts(suite.tokenizer)
        >>> text = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=32, limit_tokens=500)
        >>> untrained = ct.Crosscoder(ct.CrosscoderConfig(tuple(suite.names), layer=1, width=suite.width, features=16))
        >>> effects = ct.attribute(untrained, models, prompts, ct.AttributionConfig(baseline="mean"), text=text)
        >>> effects.feature_share.round(3) + 0.0  # all effects are the error's
        array([0., 0.])
    """
    (effects,) = attribute_several([crosscoder], models, prompts, config, text=text)
    return effects


def attribute_several(
    crosscoders: Sequence[Crosscoder],
    models: Sequence[SplitLM],
    prompts: Prompts,
    config: AttributionConfig | None = None,
    *,
    text: Corpus | None = None,
) -> list[Effects]:
    """Do what `attribute` does for several crosscoders of the same checkpoints, at hardly more cost than for one.

    Residual streams and gradients don't depend on the dictionary, so they are computed once. Effects of single features
    are those of separate calls. So is everything else, except with the baseline "bias" and a method that takes them
    from the gradient at the start of the path: then all paths end at the mean of the crosscoders' biases, and
    `explained`, `error`, `total`, `gap` and `metric_end` are of this path. With "bias" and any other method each
    crosscoder has a path of its own, and costs as much as the first.

    Args:
        crosscoders: Of the same checkpoints, layer and policy for position 0, on one device.
        models: See `attribute`.
        prompts: See `attribute`.
        config: See `attribute`.
        text: See `attribute`.

    Raises:
        InputError: As `attribute`; or there is no crosscoder, or they differ in their policy for position 0.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> models = [suite.load(name, layer=1) for name in suite.names]
        >>> prompts = ct.BlimpPairs("distractor").load().take(4).prompts(suite.tokenizer)
        >>> shape = ct.CrosscoderConfig(tuple(suite.names), layer=1, width=suite.width, features=16)
        >>> untrained = [ct.Crosscoder(shape) for _ in range(2)]
        >>> one, other = ct.attribute_several(untrained, models, prompts, ct.AttributionConfig(method="released"))
        >>> bool((one.metric_clean == other.metric_clean).all())
        True
    """
    config = config or AttributionConfig()
    method, baseline = METHODS[config.method], BASELINES[config.baseline]
    _check(crosscoders, models, prompts)
    run = _Attribution(models, prompts, config)
    # If the path decides the effects of single features, no other crosscoder may move its end.
    separate = baseline.depends_on_crosscoder and run.feature_path.n_gradients > 0
    results: list[Effects] = []
    for group in [[crosscoder] for crosscoder in crosscoders] if separate else [crosscoders]:
        path_ends = baseline.path_ends(group, models, prompts, text)
        for crosscoder, batches in zip(group, run.batch_effects(group, path_ends), strict=True):
            results.append(run.summarise(crosscoder, batches))
    if method.claims_completeness:
        for effects in results:
            _warn_of_gap(effects)
    return results


def _warn_of_gap(effects: Effects) -> None:
    worst = int(np.nan_to_num(effects.gap).argmax())
    if effects.gap[worst] > LARGE_GAP:
        warnings.warn(
            f"{effects.task}: at checkpoint {effects.checkpoints[worst]} the effects miss {effects.gap[worst]:.0%} of "
            "the change that they should explain: take more steps, or another rule; if that doesn't help, the path "
            "ends far from the activations that the model knows (b_dec should be at their mean)",
            CompletenessWarning,
            stacklevel=4,  # where `attribute` is called
        )


def _check(crosscoders: Sequence[Crosscoder], models: Sequence[SplitLM], prompts: Prompts) -> None:
    if not crosscoders:
        raise InputError("there is no crosscoder: pass at least one")
    for crosscoder in crosscoders:
        check_models(crosscoder, models)
        crosscoder.config.positions.check(prompts.bos, "the task")
    if len({crosscoder.config.positions.first_encoded for crosscoder in crosscoders}) > 1:
        raise InputError("some of the crosscoders encode position 0 and some don't: attribute them in two calls")


class _Attribution:
    """One run of `attribute_several`: all that doesn't depend on the crosscoder."""

    def __init__(self, models: Sequence[SplitLM], prompts: Prompts, config: AttributionConfig) -> None:
        self.models, self.prompts, self.config = models, prompts, config
        method = METHODS[config.method]
        path = config.path
        self.feature_path, self.total_path = method.feature_path or path, method.total_path or path
        self.aggregation: Aggregation = method.aggregate(prompts, config)

    @torch.no_grad()
    def batch_effects(self, crosscoders: Sequence[Crosscoder], path_ends: PathEnds) -> list[list[list[BatchEffects]]]:
        """Compute the effects on all batches, by crosscoder, checkpoint and batch."""
        results: list[list[list[BatchEffects]]] = [[[] for _ in self.models] for _ in crosscoders]
        lower = "steps, or the number of tokens of the prompts"
        batches = AdaptiveBatches("effects", "path", self.config.max_positions, lower=lower)
        n_nodes = max(len(self.feature_path.nodes), len(self.total_path.nodes))
        title = f"effects on {self.prompts.task}"
        with tqdm(total=len(self.prompts), desc=title, unit="prompt", leave=False, disable=None) as bar:

            def work(index: Tensor) -> list[list[BatchEffects]]:
                return self._one_batch(crosscoders, path_ends, index)

            for index, tokens in self.prompts.by_length(self.config.batch_size):
                for batch in batches.run(index, work, length=tokens.shape[1] * n_nodes):
                    for of_crosscoder, new in zip(results, batch, strict=True):
                        for of_checkpoint, effects in zip(of_crosscoder, new, strict=True):
                            of_checkpoint.append(effects)
                    bar.update(len(batch[0][0].index))
        return results

    def _one_batch(
        self, crosscoders: Sequence[Crosscoder], path_ends: PathEnds, index: Int[Tensor, " B"]
    ) -> list[list[BatchEffects]]:
        """Compute the effects on prompts of one length, by crosscoder and checkpoint."""
        answers = self.prompts.right[index], self.prompts.wrong[index]
        first_encoded = crosscoders[0].config.positions.first_encoded
        x = residuals(crosscoders[0], self.models, self.prompts.batch(index))
        starts = [metric_gradient(model, x[:, :, m], *answers) for m, model in enumerate(self.models)]
        gradients: list[tuple[Tensor, Tensor, Tensor]] = []
        results = []
        for crosscoder, ends in zip(crosscoders, path_ends(index), strict=True):
            results.append([])
            for m, (state, end) in enumerate(zip(states(crosscoder, x), ends, strict=True)):
                moved = state.displacement(end, first_encoded)
                if m == len(gradients):  # the first crosscoder's; the residual streams of the others move alike
                    line = self.models[m], starts[m], x[:, :, m], moved.x, *answers
                    for_all = self.total_path.mean_gradient(*line)
                    same = self.feature_path is self.total_path
                    for_features = for_all if same else self.feature_path.mean_gradient(*line)
                    gradients.append((for_features, for_all, metric(self.models[m], x[:, :, m] + moved.x, *answers)))
                for_features, for_all, metric_end = gradients[m]
                active = moved.f.flatten(0, 1).any(0).nonzero().squeeze(1)  # the rest is silent at both ends
                changes, decoder = moved.f[..., active], crosscoder.raw_decoder(m, active)
                effects = self.aggregation.per_prompt(feature_effects(for_features, changes, decoder)).cpu().numpy()
                prompt, feature = effects.nonzero()
                results[-1].append(
                    BatchEffects(
                        index=index.numpy(),
                        prompt=index.numpy()[prompt].astype(np.int32),
                        feature=active.cpu().numpy()[feature].astype(np.int32),
                        value=effects[prompt, feature],
                        explained=_on_cpu((for_all * moved.x).sum((1, 2))),
                        error=_on_cpu(error_effects(for_all, moved.x, changes, decoder).sum(1)),
                        metric_clean=_on_cpu(starts[m].metric),
                        metric_end=_on_cpu(metric_end),
                    )
                )
        return results

    def summarise(self, crosscoder: Crosscoder, batches: Sequence[Sequence[BatchEffects]]) -> Effects:
        """Aggregate one crosscoder's effects on all batches, by checkpoint and batch."""
        sums = EffectSums(batches, self.aggregation.weights, crosscoder.config.features)
        ie = sums.ie.astype(np.float32)
        bounds = sums.intervals(self.config.bootstrap, self.config.seed, crosscoder.W_enc.device)
        return Effects(
            task=self.prompts.task,
            method=self.config.method,
            baseline=self.config.baseline,
            checkpoints=list(crosscoder.config.checkpoints),
            n_examples=len(self.prompts),
            skipped=dict(self.prompts.skipped),
            ie=ie,
            **dict(zip(("ie_low", "ie_high", "rel_ie_low", "rel_ie_high"), bounds, strict=True)),
            rel_ie=relative(ie, self.config.no_effect),
            sign_consistency=sums.sign_consistency(),
            **{name: getattr(sums, name) for name in _TOTALS},
        )


def feature_effects(
    gradient: Float[Tensor, "B S D"], changes: Float[Tensor, "B S K"], decoder: Float[Tensor, "K D"]
) -> Float[Tensor, "B S K"]:
    """Return the effects of features at single tokens: (f_i' - f_i) <gradient, d_i,m>."""
    return changes * (gradient @ decoder.T)


def error_effects(
    gradient: Float[Tensor, "B S D"],
    displacement: Float[Tensor, "B S D"],
    changes: Float[Tensor, "B S K"],
    decoder: Float[Tensor, "K D"],
) -> Float[Tensor, "B S"]:
    """Return the effects of the error at single tokens: <gradient, x' - x - change of the reconstruction>."""
    return (gradient * (displacement - changes @ decoder)).sum(-1)


def _on_cpu(values: Float[Tensor, " B"]) -> Float[np.ndarray, " B"]:
    return values.cpu().double().numpy()
