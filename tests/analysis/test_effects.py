"""Indirect effects against planted worlds, autograd feature by feature, and the invariances that they owe."""

import dataclasses

import numpy as np
import pytest
import torch

from crosstime.analysis.effects import CompletenessWarning, Effects, attribute
from crosstime.analysis.features import feature_table
from crosstime.analysis.path_rules import nodes_and_weights
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.data.positions import Positions
from crosstime.data.task import Prompts
from crosstime.lm.split import SplitLM
from planted import RIGHT, WRONG

# Most of these tests take fewer steps than an accurate integral needs: what they check holds at any number.
pytestmark = pytest.mark.filterwarnings("ignore::crosstime.analysis.effects.CompletenessWarning")


def _prompts(n_tokens, lengths=(4, 6, 4, 7, 6, 4, 2), answers=None, seed=1):
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(2, n_tokens, length).tolist() for length in lengths]
    n = len(tokens)
    if answers is None:
        right, wrong = torch.from_numpy(rng.permutation(n_tokens)[: 2 * n]).reshape(2, n)
    else:
        right, wrong = torch.full((n,), answers[0]), torch.full((n,), answers[1])
    return Prompts("random", tokens, right, wrong, torch.arange(n))


@pytest.fixture(scope="module")
def prompts():
    return _prompts(96)


def _by_autograd(crosscoder, models, prompts, rule, steps):
    """IE [M, F] and error effect [M] by definition: gradients with respect to the features, prompt by prompt."""
    nodes, weights = nodes_and_weights(rule, steps)
    first = crosscoder.config.positions.first_encoded
    ie = torch.zeros(len(models), crosscoder.config.features)
    error_effect = torch.zeros(len(models))
    for n, tokens in enumerate(prompts.tokens):
        ids = torch.tensor([tokens])
        x = torch.stack([model.lower(ids) for model in models], dim=2)
        f = crosscoder.encode(x).detach()[:, first:]
        error = (x[:, first:] - crosscoder.decode(f)).detach()
        for m, model in enumerate(models):
            for node, weight in zip(nodes, weights, strict=True):
                f_at = ((1 - node) * f).float().requires_grad_()
                error_at = ((1 - node) * error[:, :, m]).float().requires_grad_()
                z = torch.cat([x[:, :first, m], crosscoder.decode(f_at)[:, :, m] + error_at], dim=1)
                logits = model.upper(z)[0, -1]
                metric = logits[prompts.wrong[n]] - logits[prompts.right[n]]
                g_f, g_error = torch.autograd.grad(metric, [f_at, error_at])
                ie[m] += weight * (-f * g_f).sum((0, 1))
                error_effect[m] += weight * (-error[:, :, m] * g_error).sum()
    return ie.numpy() / len(prompts), error_effect.numpy() / len(prompts)


@pytest.mark.parametrize(("rule", "steps"), [("gauss-legendre", 4), ("left", 10)])
@pytest.mark.parametrize("encode_first", [False, True])
def test_it_equals_autograd_feature_by_feature(crosscoder, models, prompts, rule, steps, encode_first):
    config = dataclasses.replace(crosscoder.config, positions=Positions(encode_first=encode_first))
    crosscoder.config = config
    found = attribute(crosscoder, models, prompts, rule=rule, steps=steps, bootstrap=0)
    ie, error = _by_autograd(crosscoder, models, prompts, rule, steps)
    np.testing.assert_allclose(found.ie, ie, atol=2e-5)
    np.testing.assert_allclose(found.error, error, atol=2e-5)
    assert np.abs(ie).max() > 0.01


def test_planted_effects_are_exact_in_any_number_of_steps(world):
    prompts = _prompts(len(world.rows), answers=(RIGHT, WRONG))
    for steps in (1, 5):
        found = attribute(world.crosscoder(), world.models(), prompts, steps=steps, bootstrap=0)
        expected = world.ie(prompts).numpy()
        np.testing.assert_allclose(found.ie, expected, atol=2e-3)  # the true crosscoder takes MARGIN off each code
        assert found.gap.max() < 1e-4
    fires = np.abs(found.ie).sum(0) > 1e-2
    planted = world.rel_ie.numpy()
    np.testing.assert_allclose(found.rel_ie[fires], planted[fires], atol=0.05)
    assert fires.sum() >= 6
    irrelevant = world.features("irrelevant")
    assert np.abs(found.ie[:, irrelevant]).max() < 1e-4


def test_features_and_error_make_up_the_whole_change(crosscoder, models, prompts):
    found = attribute(crosscoder, models, prompts, steps=32, bootstrap=0)
    np.testing.assert_allclose(found.ie.sum(1) + found.error, found.total, atol=1e-3)
    np.testing.assert_allclose(found.total, found.metric_end - found.metric_clean, atol=1e-6)
    assert (found.gap < 0.005).all()


@pytest.mark.filterwarnings("error::crosstime.analysis.effects.CompletenessWarning")
def test_a_large_gap_is_warned_of_and_a_small_one_is_not(crosscoder, models, prompts):
    attribute(crosscoder, models, prompts, bootstrap=0)
    with pytest.warns(CompletenessWarning, match=r"random: at checkpoint \w+ the effects miss \d+%"):
        attribute(crosscoder, models, prompts, rule="left", steps=1, bootstrap=0)


def test_the_end_of_the_path_is_the_crosscoders_bias_at_encoded_positions(crosscoder, models, prompts):
    found = attribute(crosscoder, models, prompts, steps=1, bootstrap=0)
    for m, model in enumerate(models):
        ends = []
        for n, tokens in enumerate(prompts.tokens):
            x = model.lower(torch.tensor([tokens])).clone()
            x[:, 1:] = crosscoder.raw_bias()[m]
            logits = model.upper(x)[0, -1]
            ends.append((logits[prompts.wrong[n]] - logits[prompts.right[n]]).item())
        assert found.metric_end[m] == pytest.approx(np.mean(ends), abs=1e-4)


def test_the_gap_shrinks_with_the_order_of_the_rule(crosscoder, models, prompts):
    def gap(rule, steps):
        return attribute(crosscoder, models, prompts, rule=rule, steps=steps, bootstrap=0).gap.max()

    assert gap("left", 64) < 0.6 * gap("left", 32)
    assert gap("midpoint", 64) < 0.3 * gap("midpoint", 32)
    assert gap("gauss-legendre", 16) < 0.1 * gap("gauss-legendre", 4)


def test_long_prompts_make_smaller_batches(crosscoder, models, prompts, monkeypatch):
    one = attribute(crosscoder, models, prompts, steps=4, bootstrap=0)
    monkeypatch.setattr("crosstime.analysis.effects.POSITIONS_AT_ONCE", 60)
    np.testing.assert_allclose(attribute(crosscoder, models, prompts, steps=4, bootstrap=0).ie, one.ie, atol=1e-6)


def test_batches_and_the_order_of_prompts_do_not_matter(crosscoder, models, prompts):
    one = attribute(crosscoder, models, prompts, batch_size=1, steps=4, bootstrap=0)
    order = [5, 2, 0, 6, 1, 4, 3]
    shuffled = Prompts(
        prompts.task, [prompts.tokens[i] for i in order], prompts.right[order], prompts.wrong[order], torch.arange(7)
    )
    for other in (
        attribute(crosscoder, models, prompts, batch_size=3, steps=4, bootstrap=0),
        attribute(crosscoder, models, shuffled, steps=4, bootstrap=0),
    ):
        np.testing.assert_allclose(other.ie, one.ie, atol=1e-6)
        np.testing.assert_allclose(other.error, one.error, atol=1e-5)
        np.testing.assert_allclose(other.gap, one.gap, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_would_change_nothing(crosscoder, models, prompts, side):
    """`attribute` never pads; effects of all prompts in one padded batch, padded on either side, are the same."""
    longest = max(map(len, prompts.tokens))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    last, first = torch.zeros(2, len(prompts), dtype=torch.long)
    for n, tokens in enumerate(prompts.tokens):
        begin = longest - len(tokens) if side == "left" else 0
        ids[n, begin : begin + len(tokens)] = torch.tensor(tokens)
        mask[n, begin : begin + len(tokens)] = 1
        first[n], last[n] = begin, begin + len(tokens) - 1
    real = (mask == 1) & (torch.arange(longest) != first[:, None])
    x = torch.stack([model.lower(ids, mask) for model in models], dim=2)
    f = torch.where(real[:, :, None], crosscoder.encode(x.nan_to_num()), 0.0).detach()
    rows = torch.arange(len(prompts))
    ie = []
    for m, model in enumerate(models):
        z = x[:, :, m].clone().requires_grad_()
        logits = model.upper(z, mask, positions=last)
        metric = (logits[rows, prompts.wrong] - logits[rows, prompts.right]).sum()
        (gradient,) = torch.autograd.grad(metric, z)
        gradient = torch.where(real[:, :, None], gradient, 0.0)
        ie.append(-(f * (gradient @ crosscoder.raw_decoder(m).T)).sum((0, 1)).detach().numpy() / len(prompts))
    clean = attribute(crosscoder, models, prompts, rule="left", steps=1, bootstrap=0)
    np.testing.assert_allclose(clean.ie, np.stack(ie), atol=2e-5)


def test_identical_checkpoints_share_every_effect(crosscoder, models, prompts):
    twins = [_renamed(models[0], name) for name in ("a", "b", "c")]
    config = CrosscoderConfig(("a", "b", "c"), crosscoder.config.layer, models[0].width, 40)
    twin = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    twin.initialise(torch.zeros(3, models[0].width), torch.ones(3), decoder_norm=0.3, tied=True, generator=generator)
    found = attribute(twin, twins, prompts, steps=4, bootstrap=0)
    live = np.abs(found.ie).sum(0) > 0
    assert live.sum() > 10
    np.testing.assert_allclose(found.rel_ie[live], 1 / 3, atol=1e-6)


def _renamed(model, name):
    same = object.__new__(SplitLM)
    same.__dict__.update(model.__dict__, name=name)
    return same


def test_permuting_the_checkpoints_permutes_the_columns(crosscoder, models, prompts):
    flipped = Crosscoder(dataclasses.replace(crosscoder.config, checkpoints=crosscoder.config.checkpoints[::-1]))
    with torch.no_grad():
        flipped.W_enc.copy_(crosscoder.W_enc.flip(0))
        flipped.W_dec.copy_(crosscoder.W_dec.flip(1))
        flipped.b_dec.copy_(crosscoder.b_dec.flip(0))
        flipped.b_enc.copy_(crosscoder.b_enc)
        flipped.scale.copy_(crosscoder.scale.flip(0))
    one = attribute(crosscoder, models, prompts, steps=4, bootstrap=50)
    other = attribute(flipped, models[::-1], prompts, steps=4, bootstrap=50)
    np.testing.assert_allclose(other.ie[::-1], one.ie, atol=1e-6)
    np.testing.assert_allclose(other.rel_ie[:, ::-1], one.rel_ie, atol=1e-3)
    np.testing.assert_allclose(other.ie_low[::-1], one.ie_low, atol=1e-5)


def test_a_dead_feature_has_no_effect_and_no_relative_effect(crosscoder, models, prompts):
    with torch.no_grad():
        crosscoder.b_enc[7] = -100
        crosscoder.W_dec[8, 1] = 0
    found = attribute(crosscoder, models, prompts, steps=2, bootstrap=20)
    assert (found.ie[:, 7] == 0).all()
    assert np.isnan(found.rel_ie[7]).all()
    assert found.ie[1, 8] == 0
    table = feature_table([found], crosscoder, np.full(40, 0.1)).to_pylist()
    assert table[7]["class"] == table[7]["lifecycle"] == "undefined"
    assert table[8]["rel_dec_late"] == 0


def test_intervals_hold_the_estimate_and_narrow_with_more_prompts(crosscoder, models):
    few = attribute(crosscoder, models, _prompts(96, (5,) * 8, answers=(3, 9)), steps=2, bootstrap=300)
    many = attribute(crosscoder, models, _prompts(96, (5,) * 128, answers=(3, 9)), steps=2, bootstrap=300)
    for found in (few, many):
        assert ((found.ie_low <= found.ie + 1e-6) & (found.ie <= found.ie_high + 1e-6)).mean() > 0.99
        defined = ~np.isnan(found.rel_ie_low)
        assert (found.rel_ie_low <= found.rel_ie_high)[defined].all()
        assert ((found.rel_ie_low >= 0) & (found.rel_ie_high <= 1))[defined].all()
    live = few.ie.any(0) & many.ie.any(0)
    assert np.mean((many.ie_high - many.ie_low)[:, live]) < 0.5 * np.mean((few.ie_high - few.ie_low)[:, live])


def test_a_bootstrap_interval_is_that_of_the_mean(crosscoder, models):
    """Against the textbook: 1.96 standard errors either way, from the effects of the single prompts."""
    prompts = _prompts(96, (5,) * 64, answers=(3, 9))
    found = attribute(crosscoder, models, prompts, steps=2, bootstrap=2000)
    single = np.stack(
        [attribute(crosscoder, models, _one(prompts, n), steps=2, bootstrap=0).ie for n in range(len(prompts))]
    )
    width = 2 * 1.96 * single.std(0) / len(prompts) ** 0.5
    strong = np.abs(found.ie) > np.quantile(np.abs(found.ie), 0.7)
    np.testing.assert_allclose((found.ie_high - found.ie_low)[strong], width[strong], rtol=0.15)


def _one(prompts, n):
    return Prompts(
        "one", [prompts.tokens[n]], prompts.right[n : n + 1], prompts.wrong[n : n + 1], torch.zeros(1).long()
    )


def test_saved_and_read_again(crosscoder, models, prompts, tmp_path):
    found = attribute(crosscoder, models, prompts, steps=2, bootstrap=20)
    found.save(tmp_path)
    again = Effects.load(tmp_path)
    for field in dataclasses.fields(Effects):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    assert again.summary() == found.summary()


def test_prompts_of_another_policy_are_refused(crosscoder, models, prompts):
    with pytest.raises(ValueError, match="the task was tokenised without BOS"):
        attribute(crosscoder, models, dataclasses.replace(prompts, bos=False))


def test_models_that_do_not_fit_are_refused(crosscoder, models, prompts):
    with pytest.raises(ValueError, match="reads 2 checkpoints; got 1"):
        attribute(crosscoder, models[:1], prompts)
    with pytest.raises(ValueError, match="pass the models in the order"):
        attribute(crosscoder, models[::-1], prompts)


def test_the_table_of_features_has_a_row_a_task_and_feature(crosscoder, models, prompts):
    found = attribute(crosscoder, models, prompts, steps=2, bootstrap=20)
    other = dataclasses.replace(found, task="other")
    table = feature_table([found, other], crosscoder, np.linspace(0, 1, 40))
    assert table.num_rows == 80
    row = table.to_pylist()[45]
    assert (row["task"], row["feature"]) == ("other", 5)
    assert row["ie_late"] == pytest.approx(found.ie[1, 5])
    assert row["rel_dec_early"] + row["rel_dec_late"] == pytest.approx(1)
    assert row["rel_ie_early"] + row["rel_ie_late"] == pytest.approx(1)
    assert row["decoder_norm_early"] == pytest.approx(0.3, rel=1e-5)
