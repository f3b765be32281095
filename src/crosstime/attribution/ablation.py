"""Ablation: what really happens to a task when a feature is taken out, beside the indirect effect that predicts it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from crosstime.attribution.activations import check_models
from crosstime.attribution.effects import Effects
from crosstime.attribution.intervention import intervene
from crosstime.base.errors import InputError
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts

NEAREST = 20
"""A control is drawn among so many features whose activation frequency is nearest."""


@dataclass(frozen=True)
class Ablation:
    """Change of a task when features are set to zero at every encoded position and the error is kept.

    lpd is log p(right) - log p(wrong) at the last prompt token, mean over prompts, in nats; accuracy is the share of
    prompts with lpd > 0. A delta is clean - ablated: where it is > 0 the feature supports the right answer, as IE > 0.
    """

    table: pa.Table
    """One row per feature and checkpoint: task, feature, checkpoint, group, ie, lpd_clean, lpd_ablated, delta_lpd,
    accuracy_clean, accuracy_ablated, delta_accuracy. Group "top": among the top features by |IE| of any checkpoint;
    group "random": live features that are not, of similar activation frequency."""
    joint: pa.Table
    """One row per checkpoint and group: task, checkpoint, group, n_features, delta_lpd, delta_accuracy, when all top
    features of this checkpoint, or all their random partners, are ablated at once."""

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of ie and delta_lpd over all rows; NaN where one of them is constant."""
        return self._correlate(stats.spearmanr)

    @property
    def pearson(self) -> float:
        """Pearson's correlation of ie and delta_lpd over all rows; NaN where one of them is constant."""
        return self._correlate(stats.pearsonr)

    def _correlate(self, statistic: Callable) -> float:
        ie, delta = (self.table[name].to_numpy() for name in ("ie", "delta_lpd"))
        if len(ie) < 2 or np.ptp(ie) == 0 or np.ptp(delta) == 0:
            return float("nan")
        with warnings.catch_warnings():  # nearly constant input is nothing that the user could change
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(statistic(ie, delta).statistic)

    @classmethod
    def join(cls, ablations: Sequence[Ablation]) -> Ablation:
        """The ablations of several tasks as one; the correlations are then over all of them.

        Raises:
            InputError: there are none.
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
    *,
    top_k: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> Ablation:
    """Ablate the top features by |IE| of each checkpoint, one by one and together, and as many random ones.

    Every feature is ablated at every checkpoint. A prompt on which it does not fire cannot change and costs nothing.

    Args:
        crosscoder: F features over M checkpoints.
        models: one per checkpoint, in the crosscoder's order.
        prompts: the task, tokenised.
        effects: its indirect effects.
        frequency: how often each feature fires on held-out text, by which the random features are matched.
        top_k: top features per checkpoint; those without any effect are left out.
        seed: of the choice of random features.
        batch_size: rows (a prompt with something ablated) per forward pass; the numbers do not depend on it.

    Raises:
        InputError: models, effects or frequencies are not this crosscoder's, or the effects not this task's.
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(prompts.bos, "the task")
    check_effects(crosscoder, prompts, effects)
    if len(frequency) != crosscoder.config.features:
        counts = f"{len(frequency)} frequencies for {crosscoder.config.features} features"
        raise InputError(f"{counts}: evaluate the crosscoder again")
    if min(top_k, batch_size) < 1:
        raise InputError(f"top_k and batch_size must be at least 1; got {top_k} and {batch_size}")
    top = [strongest(ie, top_k) for ie in effects.ie]
    features_top = sorted(set().union(*top))
    partner = controls(features_top, frequency, seed)
    random = [sorted({partner[i] for i in chosen if i in partner}) for chosen in top]
    features = features_top + sorted(set(partner.values()))
    groups = list(zip(top, random, strict=True))
    found = intervene(crosscoder, models, prompts, features, groups, batch_size=batch_size)

    rows, joint = [], []
    for m, checkpoint in enumerate(effects.checkpoints):
        where = {"task": prompts.task, "checkpoint": checkpoint}
        before, alone, together = _scores(found.clean[m]), map(_scores, found.alone[m]), map(_scores, found.together[m])
        for k, (feature, after) in enumerate(zip(features, alone, strict=True)):
            rows.append(
                where
                | {"feature": feature, "group": "top" if k < len(features_top) else "random"}
                | {"ie": float(effects.ie[m, feature])}
                | {f"{name}_clean": value for name, value in before.items()}
                | {f"{name}_ablated": value for name, value in after.items()}
                | {f"delta_{name}": value - after[name] for name, value in before.items()}
            )
        for group, chosen, after in zip(("top", "random"), groups[m], together, strict=True):
            deltas = {f"delta_{name}": value - after[name] for name, value in before.items()}
            joint.append(where | {"group": group, "n_features": len(chosen)} | deltas)
    return Ablation(pa.Table.from_pylist(rows, _SCHEMA), pa.Table.from_pylist(joint, _JOINT_SCHEMA))


def check_effects(crosscoder: Crosscoder, prompts: Prompts, effects: Effects) -> None:
    """Refuse effects of something else.

    Raises:
        InputError: they are of another crosscoder, or of another task.
    """
    config = crosscoder.config
    if effects.checkpoints != list(config.checkpoints) or effects.ie.shape[1] != config.features:
        raise InputError("the effects are not this crosscoder's: attribute the task again")
    if effects.task != prompts.task:
        raise InputError(f"the effects are of task {effects.task!r}, the prompts of {prompts.task!r}: pass one task")


def strongest(ie: Float[np.ndarray, " F"], k: int) -> list[int]:
    """The k features of largest |IE|, without those that have none."""
    order = np.argsort(-np.abs(ie), kind="stable")[:k]
    return [int(i) for i in order if ie[i] != 0]


def controls(top: Sequence[int], frequency: Float[np.ndarray, " F"], seed: int) -> dict[int, int]:
    """For each top feature a live feature outside `top`, drawn among the nearest in activation frequency.

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


_SCORES = ("lpd", "accuracy")
_PLACE = [("task", pa.string()), ("checkpoint", pa.string()), ("group", pa.string())]
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
    [*_PLACE, ("n_features", pa.int32()), *((f"delta_{s}", pa.float64()) for s in _SCORES)],
)


def _scores(lpd: Float[Tensor, " N"]) -> dict[str, float]:
    return dict(zip(_SCORES, (lpd.mean().item(), (lpd > 0).double().mean().item()), strict=True))
