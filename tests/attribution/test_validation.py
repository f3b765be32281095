"""The validation by ablation against the paper's formula, and on values whose answer is known."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats

from crosstime.attribution.ablation import AblationConfig
from crosstime.attribution.exact import Exact, validate
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig

NAMES = ("a", "b", "c")


def exact_with(ie: np.ndarray, exact: np.ndarray, task: str = "t") -> Exact:
    """Exact effects [K, M] of features 0, 2, 4 ..., of which only means matter."""
    rows = [
        {"task": task, "feature": 2 * i, "checkpoint": name, "ie": ie[i, m], "exact": exact[i, m]}
        for i in range(len(ie))
        for m, name in enumerate(NAMES)
    ]
    return Exact(pa.Table.from_pylist(rows))


@pytest.fixture
def crosscoder() -> Crosscoder:
    crosscoder = Crosscoder(CrosscoderConfig(NAMES, 0, 4, 120))
    with torch.no_grad():
        crosscoder.W_dec.copy_(torch.rand(crosscoder.W_dec.shape, generator=torch.Generator().manual_seed(0)))
    return crosscoder


@pytest.fixture
def values() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ie = rng.normal(size=(60, 3)) * rng.lognormal(size=(60, 1))
    return ie, ie + 0.5 * rng.normal(size=(60, 3))


def rows_of(table: pa.Table) -> dict:
    return {(row["task"], row["first"], row["second"], row["top_k"]): row for row in table.to_pylist()}


def test_it_is_the_papers_correlation_for_each_pair_of_neighbours(crosscoder, values):
    ie, change = values
    found = rows_of(validate(exact_with(ie, change), crosscoder, AblationConfig(bootstrap=0), ks=(5, 30)))
    norms = crosscoder.decoder_norms().detach().numpy().T[::2]
    for a, b in ((0, 1), (1, 2)):
        for k in (5, 30):
            row = found["t", NAMES[a], NAMES[b], k]
            top = sorted({*np.argsort(-np.abs(ie[:, a]))[:k], *np.argsort(-np.abs(ie[:, b]))[:k]})
            ratio = np.abs(change[top, b] + 1e-16) / np.abs(change[top, a] + 1e-16)
            rel_ie = np.abs(ie[top, b]) / (np.abs(ie[top, a]) + np.abs(ie[top, b]))
            rel_dec = norms[top, b] / (norms[top, a] + norms[top, b])
            assert row["n_features"] == len(top)
            assert row["rel_ie"] == pytest.approx(stats.spearmanr(ratio, rel_ie).statistic)
            assert row["rel_dec"] == pytest.approx(stats.spearmanr(ratio, rel_dec).statistic)
            assert row["difference"] == pytest.approx(row["rel_ie"] - row["rel_dec"])
            assert np.isnan(row["rel_ie_low"])
    assert {key[:3] for key in found} == {
        ("t", "a", "b"), ("t", "b", "c"), (None, "a", "b"), (None, "b", "c"), (None, None, None),
    }  # fmt: skip


def test_means_over_tasks_and_pairs(crosscoder, values):
    ie, change = values
    joined = Exact.join([exact_with(ie, change, "t"), exact_with(ie[::-1], change, "u")])
    found = rows_of(validate(joined, crosscoder, AblationConfig(bootstrap=30), ks=[20]))
    of_pair = [found[task, "a", "b", 20] for task in ("t", "u")]
    assert found[None, "a", "b", 20]["rel_ie"] == pytest.approx(np.mean([row["rel_ie"] for row in of_pair]))
    assert found[None, "a", "b", 20]["n_features"] == sum(row["n_features"] for row in of_pair)
    every = [row for key, row in found.items() if key[0]]
    assert len(every) == 4
    for name in ("rel_ie", "rel_dec", "difference"):
        mean = found[None, None, None, 20]
        assert mean[name] == pytest.approx(np.mean([row[name] for row in every]))
        assert mean[f"{name}_low"] < mean[name] < mean[f"{name}_high"]
        widths = [row[f"{name}_high"] - row[f"{name}_low"] for row in every]
        assert mean[f"{name}_high"] - mean[f"{name}_low"] < np.mean(widths)  # a mean of four is surer than each


def test_where_ie_is_the_effect_its_correlation_is_one_and_surely_the_larger(crosscoder, values):
    ie, _ = values
    row = rows_of(validate(exact_with(ie, 3 * ie), crosscoder, AblationConfig(bootstrap=100), ks=[100]))[
        "t", "a", "b", 100
    ]
    assert row["n_features"] == 60
    assert row["rel_ie"] == row["rel_ie_low"] == row["rel_ie_high"] == pytest.approx(1)
    assert row["difference_low"] > 0.5


def test_the_seed_decides_the_intervals(crosscoder, values):
    tables = [validate(exact_with(*values), crosscoder, AblationConfig(bootstrap=20, seed=seed)) for seed in (0, 0, 1)]
    assert tables[0] == tables[1]
    assert tables[0]["rel_ie"] == tables[2]["rel_ie"]
    assert tables[0]["rel_ie_low"] != tables[2]["rel_ie_low"]


def test_where_there_is_nothing_to_rank_it_is_nan(crosscoder):
    one = rows_of(validate(exact_with(np.ones((1, 3)), np.ones((1, 3))), crosscoder, AblationConfig(bootstrap=5)))
    assert all(np.isnan(row["rel_ie"]) and np.isnan(row["difference_high"]) for row in one.values())
    none = rows_of(validate(exact_with(np.zeros((3, 3)), np.zeros((3, 3))), crosscoder, AblationConfig(bootstrap=5)))
    assert {row["n_features"] for row in none.values()} == {0}
    empty = exact_with(np.ones((1, 3)), np.ones((1, 3)))
    assert validate(Exact(empty.table.slice(0, 0)), crosscoder).num_rows == 0


def test_exact_effects_of_other_checkpoints_are_refused(values):
    other = Crosscoder(CrosscoderConfig(("a", "x", "c"), 0, 4, 120))
    with pytest.raises(ValueError, match="measure them again"):
        validate(exact_with(*values), other)
