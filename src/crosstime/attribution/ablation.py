"""Ablation: how a task's answers really change when features are set to zero, or to any other value."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from crosstime.attribution.activations import check_models, encode, residuals
from crosstime.attribution.effects import Effects
from crosstime.base.errors import InputError
from crosstime.base.memory import AdaptiveBatches
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts

NEAREST = 20
"""A control feature is drawn from this many features, those nearest in activation frequency."""


@dataclass(frozen=True)
class AblationConfig:
    """Settings of ablation, of exact effects and of their validation.

    Example:
        >>> import crosstime as ct
        >>> ct.AblationConfig(top_k=20).exact
        100
    """

    top_k: int = 10
    """Top features by |IE| of each checkpoint that are ablated, and as many random ones of similar frequency."""
    exact: int = 100
    """Top features by |IE| of each checkpoint whose exact effect is measured; 0 for none."""
    bootstrap: int = 1000
    """Resamples for the intervals of the exact effects and of the validation; 0 for none (the bounds are then NaN)."""
    batch_size: int = field(default=64, metadata=ASIDE)
    """Rows per forward pass; a row is one prompt with something ablated."""
    seed: int = 0
    """Seed of the choice of random features, and of the resampling."""

    def __post_init__(self) -> None:
        check_at_least(1, top_k=self.top_k, batch_size=self.batch_size)
        check_at_least(0, exact=self.exact, bootstrap=self.bootstrap, seed=self.seed)


@dataclass(frozen=True)
class Ablation:
    """Change of a task when features are set to zero at every encoded position and the error is kept.

    lpd is log p(right) - log p(wrong) at the last prompt token, mean over prompts, in nats; accuracy is the share of
    prompts with lpd > 0. A delta is clean - ablated: it is positive if the feature supports the right answer, as IE.

    Example:
        >>> import pyarrow as pa
        >>> import crosstime as ct
        >>> ct.Ablation(pa.table({"ie": [0.1, 0.2, 0.3], "delta_lpd": [0.2, 0.1, 0.3]}), pa.table({})).correlation
        0.5
    """

    table: pa.Table
    """One row per feature and checkpoint: task, feature, checkpoint, group, ie, lpd_clean, lpd_ablated, delta_lpd,
    accuracy_clean, accuracy_ablated, delta_accuracy. Group "top": among the top features by |IE| of any checkpoint;
    group "random": live features that aren't, of similar activation frequency."""
    joint: pa.Table
    """One row per checkpoint and group, for all top features of the checkpoint, or all their random partners, ablated
    at once: task, checkpoint, group, n_features, delta_lpd, delta_accuracy."""

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of ie and delta_lpd over all rows; NaN if one of them is constant."""
        return self._correlate(stats.spearmanr)

    @property
    def pearson(self) -> float:
        """Pearson's correlation of ie and delta_lpd over all rows; NaN if one of them is constant."""
        return self._correlate(stats.pearsonr)

    def _correlate(self, statistic: Callable) -> float:
        ie, delta = (self.table[name].to_numpy() for name in ("ie", "delta_lpd"))
        if len(ie) < 2 or np.ptp(ie) == 0 or np.ptp(delta) == 0:
            return float("nan")
        with warnings.catch_warnings():  # the user can't do anything about nearly constant input
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(statistic(ie, delta).statistic)

    @classmethod
    def join(cls, ablations: Sequence[Ablation]) -> Ablation:
        """Join the ablations of several tasks; the correlations are then over all of them.

        Raises:
            InputError: There are none.
        """
        if not ablations:
            raise InputError("there are no ablations to join: ablate at least one task")
        return cls(pa.concat_tables([a.table for a in ablations]), pa.concat_tables([a.joint for a in ablations]))

    def save(self, folder: Path) -> None:
        """Write ablation.parquet, joint.parquet and, for readers, summary.json into an existing folder."""
        pq.write_table(self.table, folder / "ablation.parquet")
        pq.write_table(self.joint, folder / "joint.parquet")
        summary = {"correlation": self.correlation, "pearson": self.pearson, "n_rows": self.table.num_rows}
        (folder / "summary.json").write_text(json.dumps(jsonable(summary), indent=2, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Ablation:
        """Read what `save` wrote."""
        return cls(pq.read_table(folder / "ablation.parquet"), pq.read_table(folder / "joint.parquet"))


def ablate(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    prompts: Prompts,
    effects: Effects,
    frequency: Float[np.ndarray, " F"],
    config: AblationConfig | None = None,
) -> Ablation:
    """Ablate the top features by |IE| of each checkpoint, one by one and together, and as many random ones.

    Every feature is ablated at every checkpoint. A prompt on which it doesn't fire can't change and costs nothing.

    Args:
        crosscoder: F features over M checkpoints.
        models: One per checkpoint, in the crosscoder's order.
        prompts: The task, tokenised.
        effects: The crosscoder's indirect effects on the task.
        frequency: How often each feature fires on held-out text; random features are matched by it.
        config: Settings; the defaults if None.

    Raises:
        InputError: Models, effects or frequencies aren't this crosscoder's, or the effects are of another task.

    Example:
        >>> import numpy, torch
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> models = [suite.load(name, layer=1) for name in suite.names]
        >>> prompts = ct.BlimpPairs("distractor").load().take(4).prompts(suite.tokenizer)
        >>> random = ct.Crosscoder(ct.CrosscoderConfig(tuple(suite.names), layer=1, width=suite.width, features=16))
        >>> _ = torch.nn.init.normal_(random.W_enc), torch.nn.init.normal_(random.W_dec)
        >>> effects = ct.attribute(random, models, prompts, ct.AttributionConfig(method="released", threshold=0.0))
        >>> ablation = ct.ablate(random, models, prompts, effects, numpy.ones(16), ct.AblationConfig(top_k=1))
        >>> set(ablation.table["group"].to_pylist()) == {"top", "random"}
        True
    """
    config = config or AblationConfig()
    check_effects(crosscoder, models, prompts, effects)
    if len(frequency) != crosscoder.config.features:
        counts = f"{len(frequency)} frequencies for {crosscoder.config.features} features"
        raise InputError(f"{counts}: evaluate the crosscoder again")
    top = [strongest(ie, config.top_k) for ie in effects.ie]
    top_features = sorted(set().union(*top))
    partner = controls(top_features, frequency, config.seed)
    random = [sorted({partner[i] for i in chosen if i in partner}) for chosen in top]
    features = top_features + sorted(set(partner.values()))
    groups = list(zip(top, random, strict=True))
    answers = intervene(crosscoder, models, prompts, features, groups, batch_size=config.batch_size)

    rows, joint = [], []
    for m, checkpoint in enumerate(effects.checkpoints):
        key = {"task": prompts.task, "checkpoint": checkpoint}
        clean = _scores(answers.clean[m])
        for k, (feature, ablated) in enumerate(zip(features, map(_scores, answers.alone[m]), strict=True)):
            rows.append(
                key
                | {"feature": feature, "group": "top" if k < len(top_features) else "random"}
                | {"ie": float(effects.ie[m, feature])}
                | {f"{name}_clean": value for name, value in clean.items()}
                | {f"{name}_ablated": value for name, value in ablated.items()}
                | {f"delta_{name}": value - ablated[name] for name, value in clean.items()}
            )
        together = map(_scores, answers.together[m])
        for group, chosen, ablated in zip(("top", "random"), groups[m], together, strict=True):
            deltas = {f"delta_{name}": value - ablated[name] for name, value in clean.items()}
            joint.append(key | {"group": group, "n_features": len(chosen)} | deltas)
    return Ablation(pa.Table.from_pylist(rows, _SCHEMA), pa.Table.from_pylist(joint, _JOINT_SCHEMA))


_SCORES = ("lpd", "accuracy")
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("feature", pa.int32()),
        ("checkpoint", pa.string()),
        ("group", pa.string()),
        ("ie", pa.float64()),
        *((name, pa.float64()) for s in _SCORES for name in (f"{s}_clean", f"{s}_ablated", f"delta_{s}")),
    ]
)
_JOINT_SCHEMA = pa.schema(
    [("task", pa.string()), ("checkpoint", pa.string()), ("group", pa.string()), ("n_features", pa.int32())]
    + [(f"delta_{s}", pa.float64()) for s in _SCORES]
)


def _scores(lpd: Float[Tensor, " N"]) -> dict[str, float]:
    return dict(zip(_SCORES, (lpd.mean().item(), (lpd > 0).double().mean().item()), strict=True))


def check_effects(crosscoder: Crosscoder, models: Sequence[SplitLM], prompts: Prompts, effects: Effects) -> None:
    """Check that models and effects belong to a crosscoder, and the effects to a task.

    Raises:
        InputError: They are of another crosscoder or of another task.
    """
    check_models(crosscoder, models)
    config = crosscoder.config
    config.positions.check(prompts.bos, "the task")
    if effects.checkpoints != list(config.checkpoints) or effects.ie.shape[1] != config.features:
        raise InputError("the effects aren't this crosscoder's: attribute the task again")
    if effects.task != prompts.task:
        raise InputError(f"the effects are of task {effects.task!r}, the prompts of {prompts.task!r}: pass one task")


def strongest(ie: Float[np.ndarray, " F"], k: int) -> list[int]:
    """Return the k features of largest |IE|, without those that have no effect."""
    order = np.argsort(-np.abs(ie), kind="stable")[:k]
    return [int(i) for i in order if ie[i] != 0]


def controls(top: Sequence[int], frequency: Float[np.ndarray, " F"], seed: int) -> dict[int, int]:
    """Draw a live feature outside `top` for each top feature, among the nearest in activation frequency.

    The controls differ from each other while the live features last; without any live feature there are none.
    """
    rng = np.random.default_rng(seed)
    pool = np.setdiff1d(np.flatnonzero(frequency > 0), top)
    partner: dict[int, int] = {}
    free = pool
    for feature in top if len(pool) else ():
        free = free if len(free) else pool
        distance = np.abs(frequency[free] - frequency[feature])
        partner[feature] = int(rng.choice(free[np.argsort(distance, kind="stable")[:NEAREST]]))
        free = free[free != partner[feature]]
    return partner


# ------------------------------------------------------------------------------------------------------- interventions


@dataclass(frozen=True)
class Answers:
    """log p(right) - log p(wrong) at the last token of every prompt, in nats: float64, on the CPU.

    The softmax normaliser cancels, so it equals logit(right) - logit(wrong): minus the metric of the effects (arXiv
    2509.05291).
    """

    clean: Float[Tensor, "M N"]
    """Of the unmodified model."""
    alone: Float[Tensor, "M K N"]
    """With one feature at its new value."""
    together: Float[Tensor, "M G N"]
    """With all features of a group at their new values."""


@torch.inference_mode()
def intervene(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    prompts: Prompts,
    features: Sequence[int],
    groups: Sequence[Sequence[Sequence[int]]] = (),
    *,
    baseline: Float[Tensor, " F"] | None = None,
    batch_size: int,
) -> Answers:
    """Set features to a new value at every encoded position, keep the error, and run the blocks above the layer.

    If the new value equals the old one, as for a feature that doesn't fire and is set to zero, nothing runs: the answer
    is the clean one, exactly.

    Args:
        crosscoder: F features over M checkpoints.
        models: One per checkpoint, in the crosscoder's order.
        prompts: The task, tokenised.
        features: K features, to set one by one.
        groups: For each checkpoint its G groups of features, to set together.
        baseline: The new value of every feature; 0 if None.
        batch_size: Rows per forward pass, a row being a prompt with something changed. The answers don't depend on it;
            if memory runs out it is halved, with a `MemoryWarning`.

    Raises:
        OutOfMemory: There isn't enough memory for one prompt.
    """
    n_groups = len(groups[0]) if groups else 0
    clean = torch.zeros(len(models), len(prompts), dtype=torch.float64)
    alone, together = (
        torch.zeros(len(models), cases, len(prompts), dtype=torch.float64) for cases in (len(features), n_groups)
    )
    batches = AdaptiveBatches("ablate", "prompt", None, lower="the number of tokens of the prompts")
    chosen = torch.tensor(features, dtype=torch.long, device=crosscoder.W_enc.device)

    def work(index: Tensor) -> tuple[Tensor, Answers]:
        x = residuals(crosscoder, models, prompts.batch(index))
        f = encode(crosscoder, x)
        new = _new_values(crosscoder, f, baseline)
        answers = Answers(*(whole[..., index] for whole in (clean, alone, together)))
        for m, model in enumerate(models):
            batch = _Batch(model, x[:, :, m], prompts.right[index], prompts.wrong[index])
            answers.clean[m] = batch.answers(torch.arange(len(index)), 0)
            removed, decoder = crosscoder.gate(f, m) - crosscoder.gate(new, m), crosscoder.raw_decoder(m)
            changed = (removed != 0).any(dim=1)
            one = partial(_one, removed[..., chosen], decoder[chosen])
            answers.alone[m] = batch.without(changed[:, chosen], one, answers.clean[m], batch_size, batches)
            if groups:
                members = _members(groups[m], crosscoder)
                group = partial(_group, removed, decoder, members)
                any_changed = changed.float() @ members.T > 0
                answers.together[m] = batch.without(any_changed, group, answers.clean[m], batch_size, batches)
        return index, answers

    with tqdm(total=len(prompts), desc=f"ablate on {prompts.task}", unit="prompt", leave=False, disable=None) as bar:
        for of_length, tokens in prompts.by_length(batch_size):
            for index, answers in batches.run(of_length, work, length=tokens.shape[1]):
                clean[:, index] = answers.clean
                alone[..., index], together[..., index] = answers.alone, answers.together
                bar.update(len(index))
    return Answers(clean, alone, together)


@dataclass(frozen=True)
class _Batch:
    """Prompts of one length at one checkpoint."""

    model: SplitLM
    x: Float[Tensor, "B S D"]
    right: Int[Tensor, " B"]
    wrong: Int[Tensor, " B"]

    def answers(self, b: Int[Tensor, " rows"], removed: Float[Tensor, "rows S D"] | int) -> Float[Tensor, " rows"]:
        """Return the answers to prompts b with something removed from their activations."""
        residual, numbers = (self.x[b] - removed).to(self.model.device), b.cpu()
        last = torch.full((len(b),), residual.shape[1] - 1, device=residual.device)
        answers = torch.stack([self.right[numbers], self.wrong[numbers]], dim=1).to(residual.device)
        right, wrong = self.model.upper(residual, positions=last, tokens=answers).cpu().double().unbind(1)
        return right - wrong

    def without(
        self,
        changed: Bool[Tensor, "B cases"],
        removed: Callable[[Tensor, Tensor], Tensor],
        clean: Float[Tensor, " B"],
        batch_size: int,
        batches: AdaptiveBatches,
    ) -> Float[Tensor, "cases B"]:
        """Return the answers in each case; they are the clean ones for prompts that the case doesn't change.

        `removed(b, case)` returns what the cases remove from prompts b, [rows, S, D].
        """
        answers = clean.repeat(changed.shape[1], 1)

        def work(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            b, case = pairs.unbind(1)
            return case.cpu(), b.cpu(), self.answers(b, removed(b, case))

        for pairs in changed.nonzero().split(batch_size):
            for case, b, found in batches.run(pairs, work, length=self.x.shape[1]):
                answers[case, b] = found
        return answers


def _new_values(
    crosscoder: Crosscoder, f: Float[Tensor, "B S F"], baseline: Float[Tensor, " F"] | None
) -> Float[Tensor, "B S F"]:
    """Return the new values of the features; zero at positions that aren't encoded."""
    new = torch.zeros_like(f)
    if baseline is not None:
        new[:, crosscoder.config.positions.first_encoded :] = baseline.to(f)
    return new


def _one(
    removed: Float[Tensor, "B S K"], decoder: Float[Tensor, "K D"], b: Int[Tensor, " rows"], k: Int[Tensor, " rows"]
) -> Float[Tensor, "rows S D"]:
    """Return what setting feature k removes from prompt b."""
    return removed[b, :, k].unsqueeze(-1) * decoder[k].unsqueeze(1)


def _group(
    removed: Float[Tensor, "B S F"],
    decoder: Float[Tensor, "F D"],
    members: Float[Tensor, "G F"],
    b: Int[Tensor, " rows"],
    g: Int[Tensor, " rows"],
) -> Float[Tensor, "rows S D"]:
    """Return what setting all features of group g removes from prompt b."""
    return (removed[b] * members[g].unsqueeze(1)) @ decoder


def _members(groups: Sequence[Sequence[int]], crosscoder: Crosscoder) -> Float[Tensor, "G F"]:
    """Return 1 where a group contains a feature, else 0."""
    members = torch.zeros(len(groups), crosscoder.config.features, device=crosscoder.W_enc.device)
    for row, group in zip(members, groups, strict=True):
        row[list(group)] = 1
    return members
