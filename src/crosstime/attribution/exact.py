"""Exact effects: what zeroing single features really does to a task, for thousands of features.

The indirect effects screen; the strongest features are then ablated one by one. From that follow an exact RelIE, and
how well the estimate ranks the features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from torch import Tensor

from crosstime.attribution.ablation import check_effects, strongest
from crosstime.attribution.activations import check_models
from crosstime.attribution.bootstrap import draw_counts, percentile_bounds
from crosstime.attribution.correlation import spearman
from crosstime.attribution.effects import Effects
from crosstime.attribution.features import CheckpointTable, long_table
from crosstime.attribution.intervention import intervene
from crosstime.attribution.relative import relative
from crosstime.base.errors import InputError
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts

VALUES_AT_ONCE = 2**23
"""Answers held in memory at a time (64 MiB): with more features, each pass over the prompts takes a part of them."""


class Exact(CheckpointTable):
    """Exact effects of the strongest features at all checkpoints, on one task or several.

    An exact effect is the mean over prompts of metric(ablated) - metric(clean), where the metric is logit(wrong) -
    logit(right): in logits, and > 0 where the feature supports the right answer, as IE. The exact RelIE is its share:
    |exact_m| / sum over checkpoints of |exact|. Intervals are bootstrap percentile intervals over prompts, at 95 %.

    The table's columns are task, feature, checkpoint, ie (the estimate by which the feature was chosen), exact,
    exact_low, exact_high, rel_exact, rel_exact_low, rel_exact_high. A feature without effect at any checkpoint has no
    rel_exact (NaN).
    """

    @property
    def correlations(self) -> list[dict[str, object]]:
        """For each task and checkpoint, Spearman's rank correlations of estimate and exact value over the features.

        Each has task, checkpoint, n_features, ie (of the signed effects) and rel_ie (of their shares, where both are
        defined); NaN where there is nothing to rank.
        """
        found = []
        for task in self.tasks:
            ie, exact, rel_exact = (self.array(task, name) for name in ("ie", "exact", "rel_exact"))
            rel_ie = relative(ie)
            defined = ~np.isnan(rel_ie + rel_exact).any(0)
            of_ie, of_shares = spearman(ie, exact), spearman(rel_ie[:, defined], rel_exact[:, defined])
            for checkpoint, rho, rho_shares in zip(self.checkpoints, of_ie, of_shares, strict=True):
                row = {"task": task, "checkpoint": checkpoint, "n_features": ie.shape[1]}
                found.append(row | {"ie": float(rho), "rel_ie": float(rho_shares)})
        return found

    @classmethod
    def join(cls, exacts: Sequence[Exact]) -> Exact:
        """The exact effects of several tasks as one.

        Raises:
            InputError: there are none.
        """
        if not exacts:
            raise InputError("there are no exact effects to join: measure at least one task")
        return cls(pa.concat_tables([one.table for one in exacts]))

    def save(self, folder: Path) -> None:
        """Write exact.parquet and, for readers, exact.json with the rank correlations, into an existing folder."""
        pq.write_table(self.table, folder / "exact.parquet")
        text = json.dumps(jsonable(self.correlations), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "exact.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Exact:
        """Read what `save` wrote."""
        return cls(pq.read_table(folder / "exact.parquet"))


def exact_effects(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    prompts: Prompts,
    effects: Effects,
    *,
    top: int = 100,
    baseline: Float[Tensor, " F"] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
) -> Exact:
    """Zero each of the strongest features, alone, at every encoded position, and keep the error.

    A feature among the top of any checkpoint is ablated at every checkpoint. Only the blocks above the layer run, and
    only on the prompts on which the feature fires; elsewhere its effect is exactly 0. In one crosscoder over many
    checkpoints the cost thus grows with their square.

    Args:
        crosscoder: F features over M checkpoints.
        models: one per checkpoint, in the crosscoder's order.
        prompts: the task, tokenised.
        effects: its indirect effects, by any rule: they decide which features are measured.
        top: features of each checkpoint to measure, by |IE|; those without any effect are left out.
        baseline: what each feature is set to, at every encoded position, in place of 0 (its mean, say). A feature then
            changes every prompt, and costs a pass for each.
        bootstrap: resamples of the prompts for the intervals; 0 for none (the bounds are then NaN).
        seed: of the resampling, which is that of `attribute`.
        batch_size: rows (a prompt without a feature) per forward pass; the numbers do not depend on it.

    Raises:
        InputError: models or effects are not this crosscoder's, or the effects not this task's.
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(prompts.bos, "the task")
    check_effects(crosscoder, prompts, effects)
    if min(top, batch_size) < 1:
        raise InputError(f"top and batch_size must be at least 1; got {top} and {batch_size}")
    features = sorted(set().union(*(strongest(ie, top) for ie in effects.ie)))
    weights = draw_counts(len(prompts), bootstrap, seed).double() / len(prompts)
    tables = []
    for part in _parts(features, len(models) * max(len(prompts), bootstrap)):
        found = intervene(crosscoder, models, prompts, part, baseline=baseline, batch_size=batch_size)
        change = found.clean[:, None] - found.alone
        bounds = percentile_bounds((weights @ change.mT).float())
        tables.append(_table(effects, part, change.mean(-1).numpy(), bounds))
    return Exact(pa.concat_tables(tables))


def _parts(features: list[int], values_each: int) -> list[list[int]]:
    """The features in parts whose answers fit in memory; at least one part, which may be empty."""
    at_once = max(1, VALUES_AT_ONCE // values_each)
    return [features[start : start + at_once] for start in range(0, max(1, len(features)), at_once)]


def _table(
    effects: Effects,
    features: Sequence[int],
    exact: Float[np.ndarray, "M K"],
    bounds: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> pa.Table:
    low, high, rel_low, rel_high = bounds
    columns = {
        "ie": effects.ie[:, features],
        "exact": exact,
        "exact_low": low,
        "exact_high": high,
        "rel_exact": relative(exact),
        "rel_exact_low": rel_low,
        "rel_exact_high": rel_high,
    }
    columns = {name: values.astype(np.float64) for name, values in columns.items()}
    return long_table(effects.task, effects.checkpoints, np.array(features, np.int32), columns)
