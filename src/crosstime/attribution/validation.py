"""Ablation validation: which relative measure says where ablating a feature hurts more (arXiv 2509.05291, Table 7)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from crosstime.attribution.ablation import strongest
from crosstime.attribution.bootstrap import LEVELS
from crosstime.attribution.correlation import spearman
from crosstime.attribution.exact import Exact
from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder

TOP_K = (10, 100)
"""The paper's numbers of top features of each checkpoint."""
TINY = 1e-16
"""Added to both sizes of a ratio, as in the paper's code."""
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
    exact: Exact, crosscoder: Crosscoder, *, top_k: Sequence[int] = TOP_K, bootstrap: int = 1000, seed: int = 0
) -> pa.Table:
    """Rank correlation, over features, of RelIE and of RelDec with the ratio of ablation effects, for neighbours.

    For each task and each pair of neighbouring checkpoints A and B, over the union of both checkpoints' top features
    by |IE|: Spearman's correlation of |D_B| / |D_A| with RelIE = |IE_B| / (|IE_A| + |IE_B|), and with RelDec likewise.
    D is the change of the log-probability difference when the feature is ablated, which is its exact effect. Ranks
    are taken of |D_B| / (|D_A| + |D_B|), which rises with the ratio and is bounded.

    Args:
        exact: exact effects of one task or several; of each checkpoint at least the top max(top_k) features.
        crosscoder: whose they are.
        top_k: top features of each of the two checkpoints, by |IE|; those without any effect are left out.
        bootstrap: resamples of the features for the 95 % intervals; 0 for none (the bounds are then NaN).
        seed: of the resampling.

    Returns:
        one row per task, pair and k: task, first, second (checkpoints), top_k, n_features, and, each with its _low
        and _high: rel_ie, rel_dec (the two correlations) and difference (the first minus the second, feature by
        feature in the same resamples). A null task, or a null pair, stands for the mean over tasks, or pairs; in the
        intervals of a mean each of its correlations is resampled by itself. NaN where there is nothing to rank.

    Raises:
        InputError: the exact effects are of other checkpoints.
    """
    names = list(crosscoder.config.checkpoints)
    if not exact.tasks:
        return _SCHEMA.empty_table()
    if exact.checkpoints != names:
        raise InputError(f"the exact effects are of {exact.checkpoints}, the crosscoder of {names}: measure them again")
    norms = crosscoder.decoder_norms().detach().cpu().numpy().T
    rng = np.random.default_rng(seed)
    rows = []
    for k in top_k:
        groups: dict[tuple[str, int], _Group] = {}
        for task in exact.tasks:
            features, ie, change = exact.features(task), exact.array(task, "ie"), exact.array(task, "exact")
            for m in range(len(names) - 1):
                pair = slice(m, m + 2)
                top = sorted(set().union(*(strongest(row, k) for row in ie[pair])))
                of_ie, of_dec, of_change = (
                    _share(v[pair]) for v in (ie[:, top], norms[:, features[top]], change[:, top])
                )
                groups[task, m] = _Group.of(of_ie, of_dec, of_change, bootstrap, rng)
        rows += [group.row(task, names[m : m + 2], k) for (task, m), group in groups.items()]
        for m in range(len(names) - 1):
            rows.append(_Group.mean([groups[task, m] for task in exact.tasks]).row(None, names[m : m + 2], k))
        rows.append(_Group.mean(list(groups.values())).row(None, [None, None], k))
    return pa.Table.from_pylist(rows, _SCHEMA)


@dataclass(frozen=True)
class _Group:
    """The correlations over some features, or their mean over several such groups."""

    n_features: int
    samples: Float[np.ndarray, "samples 3"]
    """Of the features themselves, then of each resample: one column a measure."""

    @classmethod
    def of(
        cls,
        rel_ie: Float[np.ndarray, " n"],
        rel_dec: Float[np.ndarray, " n"],
        change: Float[np.ndarray, " n"],
        bootstrap: int,
        rng: np.random.Generator,
    ) -> _Group:
        """Of two measures with a third."""
        n = len(change)
        drawn = np.concatenate([np.arange(n)[None], rng.integers(max(n, 1), size=(bootstrap, n))])
        of_ie, of_dec = (spearman(measure[drawn], change[drawn]) for measure in (rel_ie, rel_dec))
        return cls(n, np.stack([of_ie, of_dec, of_ie - of_dec], axis=-1))

    @classmethod
    def mean(cls, groups: Sequence[_Group]) -> _Group:
        """Over groups, resample by resample; those with nothing to rank do not count."""
        with _nothing_to_rank():
            return cls(sum(g.n_features for g in groups), np.nanmean([g.samples for g in groups], axis=0))

    def row(self, task: str | None, pair: Sequence[str | None], k: int) -> dict[str, object]:
        """A row of the table."""
        row = {"task": task, "first": pair[0], "second": pair[1], "top_k": k, "n_features": self.n_features}
        resamples = self.samples[1:] if len(self.samples) > 1 else np.full((1, len(_MEASURES)), np.nan)
        with _nothing_to_rank():
            bounds = np.nanquantile(resamples, LEVELS, axis=0)
        for name, value, low, high in zip(_MEASURES, self.samples[0], *bounds, strict=True):
            row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
        return row


def _share(values: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, " n"]:
    """The second's share of both sizes, which rises with their ratio: a half where both are 0."""
    first, second = np.abs(values.astype(np.float64)) + TINY
    return second / (first + second)


@contextmanager
def _nothing_to_rank() -> Iterator[None]:
    """A mean or a percentile of nothing is NaN, and no surprise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
