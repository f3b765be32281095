"""Exact effects: what zeroing single features really does to a task, for thousands of features, and what follows.

Indirect effects screen the features; the strongest are then ablated one by one. That gives an exact RelIE, the rank
correlation of estimates and exact effects, and the validation of arXiv 2509.05291 (Table 7): which relative measure
predicts at which checkpoint ablating a feature hurts more.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from torch import Tensor

from crosstime.attribution.ablation import AblationConfig, check_effects, intervene, strongest
from crosstime.attribution.effects import Effects
from crosstime.attribution.features import CheckpointTable, long_table
from crosstime.attribution.relative import relative
from crosstime.attribution.statistics import LEVELS, draw_counts, percentile_bounds, spearman
from crosstime.base.errors import InputError
from crosstime.base.settings import check_at_least
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts

VALUES_AT_ONCE = 2**23
"""Answers held in memory at a time (64 MiB); more features are measured in several passes over the prompts."""
TOP_K = (10, 100)
"""The paper's numbers of top features per checkpoint in the validation."""
TINY = 1e-16
"""Added to both effects of a ratio, as in the paper's code."""


class Exact(CheckpointTable):
    """Exact effects of the strongest features at all checkpoints, on one or several tasks.

    An exact effect is the mean over prompts of metric(ablated) - metric(clean), where the metric is logit(wrong) -
    logit(right): in logits, and positive if the feature supports the right answer, as IE. The exact RelIE is |exact_m|
    / sum over checkpoints of |exact|. Intervals are bootstrap percentile intervals over prompts, at 95 %.

    The table's columns are task, feature, checkpoint; ie (the estimate by which the feature was chosen), exact and
    rel_exact, both with bounds (exact_low, exact_high, rel_exact_low, rel_exact_high). rel_exact is NaN for a feature
    without effect at any checkpoint.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> from crosstime.attribution.features import long_table
        >>> ie, exact = np.array([[0.1, 0.2, 0.4]]), np.array([[0.2, 0.1, 0.5]])
        >>> columns = {"ie": ie, "exact": exact, "rel_exact": ct.relative(exact)}
        >>> ct.Exact(long_table("agreement", ["step64"], np.array([3, 7, 8]), columns)).correlations[0]["ie"]
        0.5
    """

    @property
    def correlations(self) -> list[dict[str, object]]:
        """Spearman's rank correlations of estimates and exact values over the features, per task and checkpoint.

        Each entry has task, checkpoint, n_features, ie (for the signed effects) and rel_ie (for their shares, where
        both are defined); NaN if there is nothing to rank.
        """
        rows = []
        for task in self.tasks:
            ie, exact, rel_exact = (self.array(task, name) for name in ("ie", "exact", "rel_exact"))
            rel_ie = relative(ie)
            defined = ~np.isnan(rel_ie + rel_exact).any(0)
            rho_ie, rho_rel = spearman(ie, exact), spearman(rel_ie[:, defined], rel_exact[:, defined])
            rows += [
                {"task": task, "checkpoint": checkpoint, "n_features": ie.shape[1]}
                | {"ie": float(rho_ie[m]), "rel_ie": float(rho_rel[m])}
                for m, checkpoint in enumerate(self.checkpoints)
            ]
        return rows

    @classmethod
    def join(cls, exacts: Sequence[Exact]) -> Exact:
        """Join the exact effects of several tasks.

        Raises:
            InputError: There are none.
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
    config: AblationConfig | None = None,
    *,
    baseline: Float[Tensor, " F"] | None = None,
) -> Exact:
    """Zero each of the strongest features, one at a time, at every encoded position, and keep the error.

    A feature among the top of any checkpoint is ablated at every checkpoint. Only the blocks above the layer run, and
    only on the prompts on which the feature fires; elsewhere its effect is exactly 0. So for one crosscoder over many
    checkpoints the cost grows with the square of their number.

    Args:
        crosscoder: F features over M checkpoints.
        models: One per checkpoint, in the crosscoder's order.
        prompts: The task, tokenised.
        effects: The crosscoder's indirect effects on the task, by any method: they decide which features are measured.
        config: Settings; the defaults if None. `exact` is the number of features per checkpoint. The resamples are
            those of `attribute` with the same seed.
        baseline: The value that each feature is set to at every encoded position, instead of 0 (its mean, for example).
            Then a feature changes every prompt, and costs a pass for each.

    Raises:
        InputError: Models or effects aren't this crosscoder's, or the effects are of another task.

    Example:
        >>> import torch
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> models = [suite.load(name, layer=1) for name in suite.names]
        >>> prompts = ct.BlimpPairs("distractor").load().take(4).prompts(suite.tokenizer)
        >>> random = ct.Crosscoder(ct.CrosscoderConfig(tuple(suite.names), layer=1, width=suite.width, features=16))
        >>> _ = torch.nn.init.normal_(random.W_enc), torch.nn.init.normal_(random.W_dec)
        >>> effects = ct.attribute(random, models, prompts, ct.AttributionConfig(method="released", threshold=0.0))
        >>> exact = ct.exact_effects(random, models, prompts, effects, ct.AblationConfig(exact=1))
        >>> exact.tasks, exact.checkpoints
        (['distractor'], ['step64', 'step3786'])
    """
    config = config or AblationConfig()
    check_effects(crosscoder, models, prompts, effects)
    check_at_least(1, exact=config.exact)
    features = sorted(set().union(*(strongest(ie, config.exact) for ie in effects.ie)))
    weights = draw_counts(len(prompts), config.bootstrap, config.seed).double() / len(prompts)
    size = max(1, VALUES_AT_ONCE // (len(models) * max(len(prompts), config.bootstrap)))
    tables = []
    for start in range(0, max(1, len(features)), size):
        part = features[start : start + size]
        answers = intervene(crosscoder, models, prompts, part, baseline=baseline, batch_size=config.batch_size)
        change = answers.clean[:, None] - answers.alone
        exact = change.mean(-1).numpy()
        low, high, rel_low, rel_high = percentile_bounds((weights @ change.mT).float())
        columns = {"ie": effects.ie[:, part], "exact": exact, "exact_low": low, "exact_high": high}
        columns |= {"rel_exact": relative(exact), "rel_exact_low": rel_low, "rel_exact_high": rel_high}
        columns = {name: values.astype(np.float64) for name, values in columns.items()}
        tables.append(long_table(effects.task, effects.checkpoints, np.array(part, np.int32), columns))
    return Exact(pa.concat_tables(tables))


# ---------------------------------------------------------------------------------------------------------- validation

_MEASURES = ("rel_ie", "rel_dec", "difference")
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("top_k", pa.int32()),
        ("n_features", pa.int32()),
        *((f"{name}{bound}", pa.float64()) for name in _MEASURES for bound in ("", "_low", "_high")),
    ]
)


def validate(
    measured: Exact, crosscoder: Crosscoder, config: AblationConfig | None = None, *, ks: Sequence[int] = TOP_K
) -> pa.Table:
    """Correlate RelIE and RelDec with the ratio of ablation effects, over features, for neighbouring checkpoints.

    For each task and each pair of neighbouring checkpoints A and B, over the union of both checkpoints' top features
    by |IE|: Spearman's correlation of |D_B| / |D_A| with RelIE = |IE_B| / (|IE_A| + |IE_B|), and with RelDec likewise.
    D is the change of the log-probability difference when the feature is ablated, which is its exact effect. |D_B| /
    (|D_A| + |D_B|) is ranked instead of the ratio: it rises with the ratio and is bounded.

    Args:
        measured: Exact effects on one or several tasks.
        crosscoder: The crosscoder of these features.
        config: Settings; the defaults if None. `bootstrap` is the number of resamples of the features for the
            intervals. Numbers of top features beyond `exact` are skipped.
        ks: Numbers of top features of each of the two checkpoints; features without effect are left out.

    Returns:
        One row per task, pair and k: task, first, second (checkpoints), top_k, n_features, and, each with its _low and
        _high: rel_ie, rel_dec (the two correlations) and difference (the first minus the second, in the same
        resamples). Null for task or pair stands for the mean over tasks or pairs; for the interval of a mean, each of
        its correlations is resampled separately. NaN if there is nothing to rank.

    Raises:
        InputError: The exact effects are of other checkpoints.

    Example:
        >>> import numpy as np
        >>> import crosstime as ct
        >>> from crosstime.attribution.features import long_table
        >>> names, values = ["step64", "step3786"], np.array([[0.1, 0.2, 0.4], [0.3, 0.2, 0.1]])
        >>> exact = ct.Exact(long_table("agreement", names, np.arange(3), {"ie": values, "exact": 2 * values}))
        >>> crosscoder = ct.Crosscoder(ct.CrosscoderConfig(tuple(names), layer=1, width=8, features=3))
        >>> ct.validate(exact, crosscoder, ks=[2])["rel_ie"].to_pylist()
        [1.0, 1.0, 1.0]
    """
    config = config or AblationConfig()
    names = list(crosscoder.config.checkpoints)
    if not measured.tasks:
        return _SCHEMA.empty_table()
    if measured.checkpoints != names:
        raise InputError(
            f"the exact effects are of {measured.checkpoints}, the crosscoder of {names}: measure them again"
        )
    norms = crosscoder.decoder_norms().detach().cpu().numpy()
    rng = np.random.default_rng(config.seed)
    rows = []
    for k in (k for k in ks if k <= config.exact):
        groups: dict[tuple[str, int], _Correlations] = {}
        for task in measured.tasks:
            features, ie, change = measured.features(task), measured.array(task, "ie"), measured.array(task, "exact")
            for m in range(len(names) - 1):
                pair = slice(m, m + 2)
                top = sorted(set().union(*(strongest(row, k) for row in ie[pair])))
                measures = ie[pair][:, top], norms[pair][:, features[top]], change[pair][:, top]
                rel_ie, rel_dec, ablated = (_second_share(values) for values in measures)
                groups[task, m] = _Correlations.from_measures(rel_ie, rel_dec, ablated, config.bootstrap, rng)
        rows += [group.row(task, names[m : m + 2], k) for (task, m), group in groups.items()]
        for m in range(len(names) - 1):
            mean = _Correlations.mean([groups[task, m] for task in measured.tasks])
            rows.append(mean.row(None, names[m : m + 2], k))
        rows.append(_Correlations.mean(list(groups.values())).row(None, [None, None], k))
    return pa.Table.from_pylist(rows, _SCHEMA)


@dataclass(frozen=True)
class _Correlations:
    """The correlations over some features, or their mean over several groups of features."""

    n_features: int
    samples: Float[np.ndarray, "samples 3"]
    """First of the features themselves, then of each resample; one column per measure."""

    @classmethod
    def from_measures(
        cls,
        rel_ie: Float[np.ndarray, " n"],
        rel_dec: Float[np.ndarray, " n"],
        change: Float[np.ndarray, " n"],
        bootstrap: int,
        rng: np.random.Generator,
    ) -> _Correlations:
        """Correlate two measures with the change by ablation."""
        n = len(change)
        drawn = np.concatenate([np.arange(n)[None], rng.integers(max(n, 1), size=(bootstrap, n))])
        rho_ie, rho_dec = (spearman(measure[drawn], change[drawn]) for measure in (rel_ie, rel_dec))
        return cls(n, np.stack([rho_ie, rho_dec, rho_ie - rho_dec], axis=-1))

    @classmethod
    def mean(cls, groups: Sequence[_Correlations]) -> _Correlations:
        """Average over groups, resample by resample, ignoring groups with nothing to rank."""
        with _ignore_empty_means():
            return cls(sum(g.n_features for g in groups), np.nanmean([g.samples for g in groups], axis=0))

    def row(self, task: str | None, pair: Sequence[str | None], k: int) -> dict[str, object]:
        """Return a row of the table."""
        row = {"task": task, "first": pair[0], "second": pair[1], "top_k": k, "n_features": self.n_features}
        resamples = self.samples[1:] if len(self.samples) > 1 else np.full((1, len(_MEASURES)), np.nan)
        with _ignore_empty_means():
            bounds = np.nanquantile(resamples, LEVELS, axis=0)
        for name, value, low, high in zip(_MEASURES, self.samples[0], *bounds, strict=True):
            row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
        return row


def _second_share(values: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, " n"]:
    """Return the second's share of both sizes, which rises with their ratio: one half if both are 0."""
    first, second = np.abs(values.astype(np.float64)) + TINY
    return second / (first + second)


@contextmanager
def _ignore_empty_means() -> Iterator[None]:
    """Suppress numpy's warnings: the mean or a percentile of nothing is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
