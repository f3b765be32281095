"""Exact effects against planted worlds, by hand, and against what the estimate says."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats

from crosstime.attribution import exact as exact_module
from crosstime.attribution.ablation import AblationConfig, intervene
from crosstime.attribution.effects import AttributionConfig, attribute
from crosstime.attribution.exact import Exact, exact_effects
from crosstime.attribution.relative import relative
from crosstime.tasks.prompts import Prompts
from planted import plant


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    rng = np.random.default_rng(5)
    tokens = [rng.integers(0, 96, length).tolist() for length in (4, 6, 4, 7, 6, 4, 2)]
    answers = torch.from_numpy(rng.permutation(96)[:14]).reshape(2, 7)
    return Prompts("random", tokens, answers[0], answers[1], torch.arange(7))


@pytest.mark.parametrize("n_checkpoints", [2, 3, 4])
def test_where_the_upper_half_is_linear_exact_and_estimate_are_the_planted_effect(n_checkpoints):
    world = plant(n_checkpoints=n_checkpoints)
    prompts, models, crosscoder = world.prompts(), world.models(), world.crosscoder()
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=200, seed=3))
    found = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=10, bootstrap=200, seed=3))
    assert found.tasks == ["planted"]
    assert found.checkpoints == list(world.names)
    features = found.features("planted")
    for column, estimate in (
        ("exact", effects.ie),
        ("exact_low", effects.ie_low),
        ("exact_high", effects.ie_high),
        ("ie", effects.ie),
    ):
        np.testing.assert_allclose(found.array("planted", column), estimate[:, features], atol=1e-4)
    np.testing.assert_allclose(found.array("planted", "exact"), world.ie(prompts).numpy()[:, features], atol=5e-3)
    relevant = np.isin(features, world.features("irrelevant"), invert=True)
    for column, estimate in (
        ("rel_exact", world.rel_ie.numpy()),
        ("rel_exact_low", effects.rel_ie_low),
        ("rel_exact_high", effects.rel_ie_high),
    ):
        np.testing.assert_allclose(
            found.array("planted", column)[:, relevant], estimate[:, features[relevant]], atol=5e-3, err_msg=column
        )


def test_the_union_of_the_strongest_is_measured_and_the_mean_over_prompts_told(models, crosscoder, prompts):
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    found = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=4, bootstrap=0))
    top = [set(np.argsort(-np.abs(ie))[:4].tolist()) for ie in effects.ie]
    features = found.features("random")
    assert set(features.tolist()) == top[0] | top[1]
    answers = intervene(crosscoder, models, prompts, features.tolist(), batch_size=8)
    change = (answers.clean[:, None] - answers.alone).mean(-1).numpy()
    np.testing.assert_allclose(found.array("random", "exact"), change, atol=1e-5)
    np.testing.assert_allclose(found.array("random", "rel_exact"), relative(change), atol=1e-4)
    np.testing.assert_allclose(found.array("random", "ie"), effects.ie[:, features])
    assert np.isnan(found.array("random", "exact_low")).all()
    assert np.isnan(found.array("random", "rel_exact_high")).all()


def test_the_intervals_are_percentiles_over_resampled_prompts(models, crosscoder, prompts):
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    found = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=3, bootstrap=50, seed=4))
    answers = intervene(crosscoder, models, prompts, found.features("random").tolist(), batch_size=64)
    change = (answers.clean[:, None] - answers.alone).numpy()
    drawn = torch.randint(7, (50, 7), generator=torch.Generator().manual_seed(4)).numpy()
    resampled = change[:, :, drawn].mean(-1)  # [M, K, R]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=-1)
    np.testing.assert_allclose(found.array("random", "exact_low"), low, atol=1e-5)
    np.testing.assert_allclose(found.array("random", "exact_high"), high, atol=1e-5)
    with np.errstate(invalid="ignore"):  # a resample in which a feature never fires
        shares = np.abs(resampled) / np.abs(resampled).sum(0)
    low, high = np.nanquantile(shares, [0.025, 0.975], axis=-1)
    np.testing.assert_allclose(found.array("random", "rel_exact_low"), low, atol=1e-4)
    np.testing.assert_allclose(found.array("random", "rel_exact_high"), high, atol=1e-4)


def test_neither_batches_nor_memory_change_the_numbers(models, crosscoder, prompts, monkeypatch):
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    one = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=9, bootstrap=20))
    monkeypatch.setattr(exact_module, "VALUES_AT_ONCE", 2 * 20 * 4)  # four features at a time
    other = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=9, bootstrap=20, batch_size=3))
    assert one.features("random").tolist() == other.features("random").tolist()
    assert len(one.features("random")) > 8
    for name in ("exact", "exact_low", "rel_exact_high"):
        np.testing.assert_allclose(one.array("random", name), other.array("random", name), atol=1e-4)


def test_a_prompt_on_which_a_feature_does_not_fire_costs_nothing(models, crosscoder, prompts, monkeypatch):
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    with torch.no_grad():
        crosscoder.b_enc[:] = -1000
    rows = []
    for model in models:
        upper = model.upper
        monkeypatch.setattr(model, "upper", lambda x, upper=upper, **kw: rows.append(len(x)) or upper(x, **kw))
    found = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=5, bootstrap=10))
    assert sum(rows) == 2 * len(prompts)  # the models as they are
    assert set(found.table["exact"].to_pylist()) == {0.0}
    assert set(found.table["exact_high"].to_pylist()) == {0.0}
    assert np.isnan(found.array("random", "rel_exact")).all()


def test_the_correlations_are_over_features_by_checkpoint(models, crosscoder, prompts):
    effects = attribute(crosscoder, models, prompts, AttributionConfig(method="integrated", bootstrap=0))
    found = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=20, bootstrap=0))
    first, last = found.correlations
    assert (first["task"], first["checkpoint"], last["checkpoint"]) == ("random", "early", "late")
    ie, exact = (found.array("random", name) for name in ("ie", "exact"))
    assert last["n_features"] == ie.shape[1]
    assert last["ie"] == pytest.approx(stats.spearmanr(ie[1], exact[1]).statistic)
    shares = relative(ie)[1], relative(exact)[1]
    assert last["rel_ie"] == pytest.approx(stats.spearmanr(*shares).statistic)
    assert 0.5 < last["ie"] < 1


def test_nothing_that_has_an_effect_gives_an_empty_table(models, crosscoder, prompts, tmp_path):
    with torch.no_grad():
        crosscoder.W_dec[:] = 0
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    found = exact_effects(crosscoder, models, prompts, effects)
    assert found.table.num_rows == 0
    assert found.tasks == found.correlations == []
    found.save(tmp_path)
    assert Exact.load(tmp_path).table == found.table


def test_join_save_and_load(models, crosscoder, prompts, tmp_path):
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    one = exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=2, bootstrap=10))
    table = one.table.set_column(0, "task", pa.array(["other"] * one.table.num_rows))
    joined = Exact.join([one, Exact(table)])
    assert joined.tasks == ["random", "other"]
    np.testing.assert_array_equal(joined.array("other", "exact"), one.array("random", "exact"))
    joined.save(tmp_path)
    assert Exact.load(tmp_path).table == joined.table
    assert json.loads((tmp_path / "exact.json").read_text()) == joined.correlations
    with pytest.raises(ValueError, match="no exact effects"):
        Exact.join([])


def test_what_does_not_belong_together_is_refused(world):
    prompts, models, crosscoder = world.prompts(), world.models(), world.crosscoder()
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    other = Prompts("other", prompts.tokens, prompts.right, prompts.wrong, prompts.pair_index)
    with pytest.raises(ValueError, match="pass one task"):
        exact_effects(crosscoder, models, other, effects)
    with pytest.raises(ValueError, match="in the order"):
        exact_effects(crosscoder, models[::-1], prompts, effects)
    with pytest.raises(ValueError, match="at least 1"):
        exact_effects(crosscoder, models, prompts, effects, AblationConfig(exact=0))
