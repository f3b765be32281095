"""Ablation against hooks on plain transformers, planted worlds, and by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from crosstime.attribution.ablation import Ablation, AblationConfig, ablate, controls
from crosstime.attribution.effects import AttributionConfig, Effects, attribute
from crosstime.tasks.prompts import Prompts
from planted import plant


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    rng = np.random.default_rng(1)
    tokens = [rng.integers(0, 96, length).tolist() for length in (4, 6, 4, 7, 6, 4, 2)]
    answers = torch.from_numpy(rng.permutation(96)[:14]).reshape(2, 7)
    return Prompts("random", tokens, answers[0], answers[1], torch.arange(7))


def by_key(table: pa.Table, *names: str) -> dict:
    return {tuple(row[name] for name in names): row for row in table.to_pylist()}


def effects_with(ie: np.ndarray, task: str, checkpoints: list[str]) -> Effects:
    """Effects of which only the IE matters."""
    m, f = ie.shape
    bounds, numbers = np.full((m, f), np.nan), np.zeros(m)
    relative = np.full((m, f), np.nan)
    return Effects(
        task=task, method="integrated", baseline="bias", checkpoints=checkpoints, n_examples=1, skipped={},
        explained=np.ones(m),
        ie=ie, ie_low=bounds, ie_high=bounds, rel_ie=relative, rel_ie_low=relative, rel_ie_high=relative,
        sign_consistency=bounds, error=numbers, total=numbers, gap=numbers, metric_clean=numbers, metric_end=numbers,
    )  # fmt: skip


def hooked_lpd(model, layer, prompts, removed):
    """lpd of each prompt of a plain transformers model, one prompt at a time, with something taken from the layer."""
    values = []
    for n, tokens in enumerate(prompts.tokens):
        handle = model.gpt_neox.layers[layer].register_forward_hook(lambda _m, _i, out, n=n: out - removed[n])
        with torch.no_grad():
            log_p = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        handle.remove()
        values.append((log_p[prompts.right[n]] - log_p[prompts.wrong[n]]).item())
    return np.array(values)


@torch.no_grad()
def codes(crosscoder, models, prompts):
    """The features of each prompt; none at position 0."""
    found = []
    for tokens in prompts.tokens:
        x = torch.stack([model.lower(torch.tensor([tokens])) for model in models], dim=2)
        found.append(crosscoder.encode(x))
        found[-1][:, 0] = 0
    return found


def test_ablation_equals_a_hook_on_the_plain_model(transformers_models, models, crosscoder, prompts):
    ie = np.random.default_rng(2).normal(size=(2, 40)).astype(np.float32)
    frequency = np.linspace(0.01, 0.4, 40)
    found = ablate(
        crosscoder,
        models,
        prompts,
        effects_with(ie, "random", ["early", "late"]),
        frequency,
        AblationConfig(top_k=3, batch_size=5),
    )
    rows, joint = by_key(found.table, "feature", "checkpoint"), by_key(found.joint, "checkpoint", "group")
    assert len(rows) == found.table.num_rows
    top = [set(np.argsort(-np.abs(ie[m]))[:3].tolist()) for m in range(2)]
    assert {key[0] for key, row in rows.items() if row["group"] == "top"} == top[0] | top[1]
    f, changed = codes(crosscoder, models, prompts), 0
    for m, name in enumerate(("early", "late")):
        clean = hooked_lpd(transformers_models[m], 1, prompts, [0] * len(prompts))
        decoder = crosscoder.raw_decoder(m).detach()
        for feature in sorted(top[0] | top[1]):
            removed = [code[..., [feature]] @ decoder[[feature]] for code in f]
            expected = hooked_lpd(transformers_models[m], 1, prompts, removed)
            row = rows[feature, name]
            assert row["ie"] == pytest.approx(ie[m, feature])
            assert row["lpd_clean"] == pytest.approx(clean.mean(), abs=1e-5)
            assert row["lpd_ablated"] == pytest.approx(expected.mean(), abs=1e-5)
            assert row["delta_lpd"] == pytest.approx((clean - expected).mean(), abs=1e-5)
            assert row["accuracy_clean"] == pytest.approx((clean > 0).mean())
            assert row["delta_accuracy"] == pytest.approx((clean > 0).mean() - (expected > 0).mean())
            changed += abs(row["delta_lpd"]) > 1e-3
        removed = [code[..., list(top[m])] @ decoder[list(top[m])] for code in f]
        expected = hooked_lpd(transformers_models[m], 1, prompts, removed)
        assert joint[name, "top"]["delta_lpd"] == pytest.approx((clean - expected).mean(), abs=1e-5)
        assert joint[name, "top"]["n_features"] == 3
    assert changed >= 6


def test_where_the_upper_half_is_linear_ablation_equals_the_indirect_effect(world):
    prompts, models, crosscoder = world.prompts(), world.models(), world.crosscoder()
    effects = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    found = ablate(crosscoder, models, prompts, effects, np.full(10, 0.15), AblationConfig(top_k=4))
    for row in found.table.to_pylist():
        m = world.names.index(row["checkpoint"])
        assert row["delta_lpd"] == pytest.approx(effects.ie[m, row["feature"]], abs=1e-4)
        assert row["delta_lpd"] == pytest.approx(world.ie(prompts)[m, row["feature"]].item(), abs=5e-3)
    for row in found.joint.to_pylist():
        m = world.names.index(row["checkpoint"])
        if row["group"] == "top":
            top = np.sort(np.abs(effects.ie[m]))[-4:]
            signs = effects.ie[m][np.argsort(np.abs(effects.ie[m]))[-4:]]
            assert row["delta_lpd"] == pytest.approx(signs.sum(), abs=1e-3)
            assert np.abs(row["delta_lpd"]) <= top.sum() + 1e-3
    assert found.correlation > 0.95  # rounding ranks the features without effect anyhow
    assert found.pearson == pytest.approx(1, abs=1e-4)


def test_a_feature_with_no_decoder_changes_nothing(models, crosscoder, prompts):
    with torch.no_grad():
        crosscoder.W_dec[5] = 0
    ie = np.zeros((2, 40), dtype=np.float32)
    ie[:, 5] = 1
    found = ablate(crosscoder, models, prompts, effects_with(ie, "random", ["early", "late"]), np.zeros(40))
    assert [row["feature"] for row in found.table.to_pylist()] == [5, 5]
    np.testing.assert_allclose(found.table["delta_lpd"].to_numpy(), 0, atol=1e-5)
    assert np.isnan(found.correlation)  # ie is constant


def test_a_feature_that_does_not_fire_costs_no_forward_pass_and_changes_exactly_nothing(
    models, crosscoder, prompts, monkeypatch
):
    with torch.no_grad():
        crosscoder.b_enc[:] = -1000
    rows = []
    for model in models:
        upper = model.upper
        monkeypatch.setattr(model, "upper", lambda x, upper=upper, **kw: rows.append(len(x)) or upper(x, **kw))
    effects = effects_with(np.ones((2, 40), np.float32), "random", ["early", "late"])
    found = ablate(crosscoder, models, prompts, effects, np.full(40, 0.1))
    assert sum(rows) == 2 * len(prompts)
    assert set(found.table["delta_lpd"].to_pylist()) == {0.0}
    assert set(found.joint["delta_lpd"].to_pylist()) == {0.0}


def test_batch_size_does_not_matter_and_the_seed_decides_the_random_group_only(models, crosscoder, prompts):
    ie = np.random.default_rng(3).normal(size=(2, 40)).astype(np.float32)
    effects, frequency = effects_with(ie, "random", ["early", "late"]), np.linspace(0.01, 0.4, 40)
    one, two = (
        ablate(crosscoder, models, prompts, effects, frequency, AblationConfig(top_k=4, batch_size=size, seed=1))
        for size in (3, 256)
    )
    assert one.table.drop_columns(["lpd_clean", "lpd_ablated", "delta_lpd"]) == two.table.drop_columns(
        ["lpd_clean", "lpd_ablated", "delta_lpd"]
    )
    np.testing.assert_allclose(one.table["delta_lpd"].to_numpy(), two.table["delta_lpd"].to_numpy(), atol=1e-5)
    other = ablate(crosscoder, models, prompts, effects, frequency, AblationConfig(top_k=4, seed=2))
    groups = {
        name: [{row["feature"] for row in a.table.to_pylist() if row["group"] == name} for a in (two, other)]
        for name in ("top", "random")
    }
    assert groups["top"][0] == groups["top"][1]
    assert groups["random"][0] != groups["random"][1]
    assert len(groups["random"][0]) == len(groups["top"][0])


def test_controls_are_live_near_in_frequency_distinct_and_never_top():
    frequency = np.random.default_rng(0).uniform(0.001, 1, 500)
    frequency[::3] = 0
    top = [1, 2, 4, 200, 301]
    partner = controls(top, frequency, seed=0)
    assert list(partner) == top
    assert len(set(partner.values())) == len(top)
    assert not set(partner.values()) & set(top)
    for feature, chosen in partner.items():
        assert frequency[chosen] > 0
        nearer = np.abs(frequency - frequency[feature]) < abs(frequency[chosen] - frequency[feature])
        assert (nearer & (frequency > 0)).sum() <= 20 + len(top)
    assert controls(top, frequency, seed=0) == partner


def test_controls_where_live_features_are_few():
    assert controls([0, 1], np.array([0.5, 0.5, 0.0]), seed=0) == {}
    assert controls([0, 1], np.array([0.5, 0.5, 0.2, 0.0]), seed=0) == {0: 2, 1: 2}


def test_a_task_on_which_nothing_has_an_effect_gives_empty_groups(models, crosscoder, prompts):
    effects = effects_with(np.zeros((2, 40), np.float32), "random", ["early", "late"])
    found = ablate(crosscoder, models, prompts, effects, np.full(40, 0.1))
    assert found.table.num_rows == 0
    assert found.joint["n_features"].to_pylist() == [0] * 4
    assert np.isnan(found.correlation)


def test_join_and_disk(models, crosscoder, prompts, tmp_path):
    ie = np.random.default_rng(4).normal(size=(2, 40)).astype(np.float32)
    effects = effects_with(ie, "random", ["early", "late"])
    one = ablate(crosscoder, models, prompts, effects, np.full(40, 0.1), AblationConfig(top_k=2))
    joined = Ablation.join([one, one])
    assert joined.table.num_rows == 2 * one.table.num_rows
    assert joined.correlation == pytest.approx(one.correlation)
    joined.save(tmp_path)
    loaded = Ablation.load(tmp_path)
    assert loaded.table == joined.table
    assert loaded.joint == joined.joint
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {
        "correlation": joined.correlation, "pearson": joined.pearson, "n_rows": joined.table.num_rows,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no ablations"):
        Ablation.join([])


def test_what_does_not_belong_together_is_refused(world):
    prompts, models, crosscoder = world.prompts(), world.models(), world.crosscoder()
    effects = effects_with(np.ones((3, 10), np.float32), "planted", list(world.names))
    with pytest.raises(ValueError, match="pass one task"):
        ablate(crosscoder, models, prompts, effects_with(effects.ie, "other", list(world.names)), np.ones(10))
    with pytest.raises(ValueError, match="attribute the task again"):
        ablate(crosscoder, models, prompts, effects_with(effects.ie, "planted", list("abc")), np.ones(10))
    with pytest.raises(ValueError, match="evaluate the crosscoder again"):
        ablate(crosscoder, models, prompts, effects, np.ones(9))
    with pytest.raises(ValueError, match="in the order"):
        ablate(crosscoder, plant(width=30).models(), prompts, effects, np.ones(10))
    with pytest.raises(ValueError, match="at least 1"):
        ablate(crosscoder, models, prompts, effects, np.ones(10), AblationConfig(top_k=0))
