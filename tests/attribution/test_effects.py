"""Indirect effects against planted worlds, autograd feature by feature, and the invariances that they owe."""

import copy
import dataclasses
import json
from itertools import product

import numpy as np
import pytest
import torch

from crosstime.attribution.baselines import BASELINES
from crosstime.attribution.effects import (
    AttributionConfig,
    CompletenessWarning,
    Effects,
    TaskTotals,
    attribute,
    attribute_several,
    load_totals,
    save_totals,
)
from crosstime.attribution.features import FeatureTable
from crosstime.attribution.methods import METHODS, mean_over_padded_batches
from crosstime.attribution.path import START, IntegrationPath
from crosstime.base.errors import SettingError
from crosstime.base.memory import MemoryWarning
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import JumpReLU
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from planted import RIGHT, WRONG

# Most of these tests take fewer steps than an accurate integral needs: what they check holds at any number.
pytestmark = pytest.mark.filterwarnings("ignore::crosstime.attribution.effects.CompletenessWarning")

EVERY_WAY = list(product(METHODS.names, BASELINES.names))
STEPS, THRESHOLD, BATCH, COLUMNS = 4, 0.02, 3, 5
INTEGRAL = IntegrationPath.from_rule("gauss-legendre", STEPS)
PADDED = [method.name for method in METHODS if method.aggregate is mean_over_padded_batches]


def _text(models):
    """Text for the means, in more than one batch."""
    return Corpus(np.random.default_rng(5).integers(2, models[0].vocab_size, (20, 9), dtype=np.uint16), "text")


def _effects(crosscoder, models, prompts, method="integrated", baseline="bias", **settings):
    """`attribute` with few steps, no intervals, and a threshold that matters."""
    few = {"steps": STEPS, "threshold": THRESHOLD, "reference_batch": BATCH, "n_columns": COLUMNS, "bootstrap": 0}
    config = AttributionConfig(method=method, baseline=baseline, **few | settings)
    return attribute(crosscoder, models, prompts, config, text=_text(models))


def _prompts(n_tokens, lengths=(4, 6, 4, 7, 6, 4, 2), answers=None, seed=1):
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(2, n_tokens, length).tolist() for length in lengths]
    n = len(tokens)
    if answers is None:
        right, wrong = torch.from_numpy(rng.permutation(n_tokens)[: 2 * n]).reshape(2, n)
    else:
        right, wrong = torch.full((n,), answers[0]), torch.full((n,), answers[1])
    patch = [rng.integers(2, n_tokens, length).tolist() for length in lengths]
    return Prompts("random", tokens, right, wrong, torch.arange(n), patch=patch)


def _take(prompts, numbers):
    """Some of the prompts, in another order."""
    return dataclasses.replace(
        prompts,
        tokens=[prompts.tokens[n] for n in numbers],
        patch=[prompts.patch[n] for n in numbers],
        right=prompts.right[numbers],
        wrong=prompts.wrong[numbers],
        pair_index=torch.arange(len(numbers)),
    )


@pytest.fixture(scope="module")
def prompts():
    return _prompts(96)


@pytest.fixture(scope="module")
def models64(transformers_models, models):
    """The models in float64."""
    return [
        SplitLM(copy.deepcopy(model).double(), split.layer, split.name)
        for model, split in zip(transformers_models, models, strict=True)
    ]


def _states(crosscoder, models, ids, first):
    """Residual streams [M][S D], features and errors [M][S F], [M][S D] at the encoded positions of one text."""
    x = torch.stack([model.lower(torch.tensor([ids]))[0] for model in models], dim=1)
    f = crosscoder.encode(x[first:])
    return x.unbind(1), [f] * len(models), (x[first:] - crosscoder.decode(f)).unbind(1)


@torch.no_grad()
def _compared_with(crosscoder, models, prompts, baseline, first):
    """Features and error that each prompt's path ends with, [N][M]; one for all positions, or one each."""
    if baseline == "patch":
        return [list(zip(*_states(crosscoder, models, ids, first)[1:], strict=True)) for ids in prompts.patch]
    states = [_states(crosscoder, models, ids, first) for ids in _text(models).blocks.tolist()]
    factor = 1 if baseline == "mean" else 0
    ends = [tuple(factor * torch.cat([s[part][m] for s in states]).mean(0) for part in (1, 2)) for m in range(2)]
    return [ends] * len(prompts)


def _by_autograd(crosscoder, models, prompts, method, baseline):
    """IE [M, F] and error effect [M] by definition: gradients with respect to the features, prompt by prompt."""
    single, together = (
        dict(zip(path.nodes, path.weights, strict=True))
        for path in (METHODS[method].feature_path or INTEGRAL, METHODS[method].total_path or INTEGRAL)
    )
    first = crosscoder.config.positions.first_encoded
    effects, errors = {}, {}
    for n, ends in enumerate(_compared_with(crosscoder, models, prompts, baseline, first)):
        with torch.no_grad():
            x, f, error = _states(crosscoder, models, prompts.tokens[n], first)
        for m, model in enumerate(models):
            f_end, error_end = ends[m]
            effects[n, m], errors[n, m] = torch.zeros(len(x[m]), 40, dtype=torch.float64), 0.0
            for node in single | together:
                f_at = (f[m] + node * (f_end - f[m])).requires_grad_()
                error_at = (error[m] + node * (error_end - error[m])).requires_grad_()
                z = torch.cat([x[m][:first], crosscoder.decode(f_at)[:, m] + error_at])
                log_p = model.upper(z[None])[0, -1].log_softmax(-1)
                g_f, g_error = torch.autograd.grad(log_p[prompts.wrong[n]] - log_p[prompts.right[n]], [f_at, error_at])
                effects[n, m][first:] += single.get(node, 0) * (f_end - f[m]) * g_f
                errors[n, m] += together.get(node, 0) * ((error_end - error[m]) * g_error).sum().item()
    return [_aggregate(values, prompts, method) for values in (effects, errors)]


def _aggregate(values, prompts, method):
    """By definition: sum over positions and mean over prompts, or the mean of padded batches in their order."""
    tensors = {key: torch.as_tensor(value) for key, value in values.items()}
    if method not in PADDED:
        summed = {key: value.sum(0) if value.ndim else value for key, value in tensors.items()}
        return [sum(summed[n, m] for n in range(len(prompts))) / len(prompts) for m in range(2)]
    totals = []
    for m in range(2):
        total = 0.0
        for numbers in torch.arange(len(prompts)).split(BATCH):
            positions = len(numbers) * max(len(prompts.tokens[n]) for n in numbers)
            for n in numbers.tolist():
                value = tensors[n, m]
                kept = (value * (value.abs() > THRESHOLD)).sum(0) if value.ndim else value
                total = total + COLUMNS / len(prompts) * kept / positions
        totals.append(total)
    return totals


@pytest.mark.parametrize("encode_first", [False, True])
@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_it_equals_autograd_feature_by_feature(crosscoder, models64, prompts, method, baseline, encode_first):
    crosscoder.config = dataclasses.replace(crosscoder.config, positions=Positions(encode_first=encode_first))
    crosscoder = crosscoder.double()
    found = _effects(crosscoder, models64, prompts, method, baseline)
    ie, error = _by_autograd(crosscoder, models64, prompts, method, baseline)
    size = torch.stack(ie).abs().max()
    assert size > 0.01
    np.testing.assert_allclose(found.ie, torch.stack(ie), rtol=1e-6, atol=1e-7 * size)  # `ie` is stored in float32
    np.testing.assert_allclose(found.error, error, rtol=1e-10, atol=1e-12)
    assert (found.method, found.baseline) == (method, baseline)


def test_planted_effects_are_exact_in_any_number_of_steps(world):
    prompts = _prompts(len(world.rows), answers=(RIGHT, WRONG))
    for steps in (1, 5):
        found = attribute(world.crosscoder(), world.models(), prompts, AttributionConfig(steps=steps, bootstrap=0))
        expected = world.ie(prompts).numpy()
        np.testing.assert_allclose(found.ie, expected, atol=2e-3)  # the true crosscoder takes MARGIN off each code
        assert found.gap.max() < 1e-4
    fires = np.abs(found.ie).sum(0) > 1e-2
    planted = world.rel_ie.numpy()
    np.testing.assert_allclose(found.rel_ie[:, fires], planted[:, fires], atol=0.05)
    assert fires.sum() >= 6
    irrelevant = world.features("irrelevant")
    assert np.abs(found.ie[:, irrelevant]).max() < 1e-4


@pytest.mark.parametrize("method", METHODS.names)
def test_in_a_linear_world_every_method_finds_the_planted_effects(world, method):
    """All prompts have one length, so the released aggregation differs by a constant; its threshold is off."""
    prompts = _prompts(len(world.rows), (5,) * 12, answers=(RIGHT, WRONG))
    found = _effects(world.crosscoder(), world.models(), prompts, method, threshold=0.0)
    # COLUMNS / N times the sum over N / BATCH batches of means over BATCH x 5 positions.
    constant = COLUMNS / (BATCH * 5) if method in PADDED else 1
    np.testing.assert_allclose(found.ie, constant * world.ie(prompts).numpy(), atol=2e-3)
    assert found.gap.max() < 1e-4


@pytest.mark.parametrize("baseline", ["mean", "patch"])
def test_in_a_linear_world_effects_are_those_of_the_change_of_the_codes(world, baseline):
    prompts = _prompts(len(world.rows), answers=(RIGHT, WRONG))
    found = _effects(world.crosscoder(), world.models(), prompts, "gradient", baseline)
    planted = world.ie(prompts)
    if baseline == "patch":
        planted = planted - world.ie(dataclasses.replace(prompts, tokens=prompts.patch))
    else:
        codes = world.codes[_text(world.models()).blocks[:, 1:].astype(int)].mean((0, 1))
        positions = np.mean([len(tokens) - 1 for tokens in prompts.tokens])
        planted = planted - positions * (codes[:, None] * world.effect_per_unit).T
    np.testing.assert_allclose(found.ie, planted, atol=2e-3)
    assert planted.abs().max() > 0.1
    assert found.gap.max() < 1e-3


@pytest.mark.parametrize("baseline", BASELINES.names)
def test_features_and_error_make_up_the_whole_change(crosscoder, models, prompts, baseline):
    found = _effects(crosscoder, models, prompts, baseline=baseline, steps=32)
    np.testing.assert_allclose(found.ie.sum(1) + found.error, found.total, atol=1e-3)
    np.testing.assert_allclose(found.total, found.metric_end - found.metric_clean, atol=1e-6)
    assert (found.gap < 0.005).all()
    assert np.abs(found.total).max() > 0.1


@pytest.mark.filterwarnings("error::crosstime.attribution.effects.CompletenessWarning")
def test_a_large_gap_is_warned_of_and_a_small_one_is_not(crosscoder, models, prompts):
    attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    with pytest.warns(CompletenessWarning, match=r"random: at checkpoint \w+ the effects miss \d+%"):
        attribute(crosscoder, models, prompts, AttributionConfig(rule="left", steps=1, bootstrap=0))
    with pytest.warns(CompletenessWarning):
        attribute(crosscoder, models, prompts, AttributionConfig(method="paper", bootstrap=0))
    # It does not claim to add up, so it does not warn; its gap is told all the same.
    assert attribute(crosscoder, models, prompts, AttributionConfig(method="released", bootstrap=0)).gap.max() > 0.05


def test_single_features_by_the_clean_gradient_and_their_sum_by_the_integral(crosscoder, models, prompts):
    clean, integral = (_effects(crosscoder, models, prompts, method) for method in ("gradient", "integrated"))
    released = _effects(crosscoder, models, prompts, "released", threshold=0.0, reference_batch=1, n_columns=1)
    assert np.abs(clean.ie - integral.ie).max() > 0.01
    for name in ("explained", "error", "total", "gap", "feature_share"):
        np.testing.assert_array_equal(getattr(clean, name), getattr(integral, name))
    np.testing.assert_allclose(integral.ie.sum(1), integral.feature_share * integral.explained, rtol=1e-4)
    assert np.corrcoef(clean.ie.ravel(), released.ie.ravel())[0, 1] > 0.9, "the same gradient, weighed otherwise"


def _metric(prompts, n, logits):
    return (logits[prompts.wrong[n]] - logits[prompts.right[n]]).item()


@pytest.mark.parametrize("method", METHODS.names)
def test_the_path_begins_with_the_model_as_it_is(crosscoder, models, prompts, method):
    found = _effects(crosscoder, models, prompts, method)
    for m, model in enumerate(models):
        clean = [_metric(prompts, n, model.logits(torch.tensor([t]))[0, -1]) for n, t in enumerate(prompts.tokens)]
        assert found.metric_clean[m] == pytest.approx(np.mean(clean), abs=1e-5)


@pytest.mark.parametrize("baseline", BASELINES.names)
def test_the_end_of_the_path(crosscoder, models, prompts, baseline):
    """The crosscoder's bias, the text's mean activation, or the second prefix's; position 0 stays as it is."""
    found = _effects(crosscoder, models, prompts, baseline=baseline)
    for m, model in enumerate(models):
        x = [model.lower(torch.tensor([tokens])) for tokens in prompts.tokens]
        mean = model.lower(torch.from_numpy(_text(models).blocks.astype(int)))[:, 1:].mean((0, 1))
        end = {"bias": crosscoder.raw_bias()[m].detach(), "mean": mean}
        metrics = []
        for n, row in enumerate(x):
            row[:, 1:] = end[baseline] if baseline in end else model.lower(torch.tensor([prompts.patch[n]]))[:, 1:]
            metrics.append(_metric(prompts, n, model.upper(row)[0, -1].detach()))
        assert found.metric_end[m] == pytest.approx(np.mean(metrics), abs=1e-4)


@pytest.mark.parametrize("baseline", BASELINES.names)
def test_the_gap_shrinks_with_the_order_of_the_rule(crosscoder, models, prompts, baseline):
    def gap(rule, steps):
        return _effects(crosscoder, models, prompts, baseline=baseline, rule=rule, steps=steps).gap.max()

    assert 0.4 < gap("left", 64) / gap("left", 32) < 0.6
    assert 0.2 < gap("midpoint", 64) / gap("midpoint", 32) < 0.3
    assert gap("gauss-legendre", 16) < 0.1 * gap("gauss-legendre", 4)


def test_a_small_feature_s_effect_is_what_its_ablation_does(crosscoder, models, prompts):
    """To first order, at the clean point. A feature that fires is made small, and the rest becomes error."""
    strongest = int(np.abs(_effects(crosscoder, models, prompts, "gradient").ie).min(0).argmax())
    with torch.no_grad():
        crosscoder.W_dec[strongest] *= 1e-2
    found = _effects(crosscoder, models, prompts, "gradient")
    for m, model in enumerate(models):
        change = []
        for n, tokens in enumerate(prompts.tokens):
            x = torch.stack([lm.lower(torch.tensor([tokens])) for lm in models], dim=2)
            f = crosscoder.encode(x)[:, 1:, strongest, None].detach()
            ablated = x[:, :, m].clone()
            ablated[:, 1:] -= f * crosscoder.raw_decoder(m)[strongest].detach()
            metrics = [_metric(prompts, n, model.upper(z)[0, -1].detach()) for z in (ablated, x[:, :, m])]
            change.append(metrics[0] - metrics[1])
        assert found.ie[m, strongest] == pytest.approx(np.mean(change), rel=0.05, abs=1e-6)


def test_a_pass_holds_no_more_positions_than_are_allowed(crosscoder, models, prompts, monkeypatch):
    one, sizes, upper = _effects(crosscoder, models, prompts), [], SplitLM.upper

    def counted(self, residual, *args, **kwargs):
        sizes.append(residual.shape[:2].numel())
        return upper(self, residual, *args, **kwargs)

    monkeypatch.setattr(SplitLM, "upper", counted)
    some = _effects(crosscoder, models, prompts, max_positions=60)
    assert max(sizes) <= 60
    np.testing.assert_allclose(some.ie, one.ie, atol=1e-6)


def test_when_memory_runs_out_it_goes_on_with_half_as_many_prompts(crosscoder, models, prompts, monkeypatch):
    one, upper = _effects(crosscoder, models, prompts), SplitLM.upper

    def small(self, residual, *args, **kwargs):
        if residual.shape[:2].numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upper(self, residual, *args, **kwargs)

    monkeypatch.setattr(SplitLM, "upper", small)
    with pytest.warns(
        MemoryWarning, match="effects: out of memory with 3 paths of 16 tokens per batch; continuing with 1"
    ):
        some = _effects(crosscoder, models, prompts)
    np.testing.assert_allclose(some.ie, one.ie, atol=1e-6)
    with pytest.raises(ValueError, match="out of memory with a single path of 64 tokens"):
        _effects(crosscoder, models, prompts, steps=16, batch_size=1)


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_batches_and_the_order_of_prompts_do_not_matter(crosscoder, models, prompts, method, baseline):
    one = _effects(crosscoder, models, prompts, method, baseline, batch_size=1)
    others = [_effects(crosscoder, models, prompts, method, baseline, batch_size=3)]
    if method not in PADDED:  # the released aggregation depends on the order by definition
        others.append(_effects(crosscoder, models, _take(prompts, [5, 2, 0, 6, 1, 4, 3]), method, baseline))
    for other in others:
        np.testing.assert_allclose(other.ie, one.ie, atol=1e-6)
        np.testing.assert_allclose(other.error, one.error, atol=1e-5)
        np.testing.assert_allclose(other.gap, one.gap, atol=1e-5)
        np.testing.assert_array_equal(other.sign_consistency, one.sign_consistency)


@pytest.mark.parametrize("baseline", BASELINES.names)
def test_other_prompts_do_not_matter(crosscoder, models, prompts, baseline):
    """The effects on a task are the mean of those on its prompts alone."""
    whole = _effects(crosscoder, models, prompts, baseline=baseline)
    single = [_effects(crosscoder, models, _take(prompts, [n]), baseline=baseline).ie for n in range(len(prompts))]
    np.testing.assert_allclose(whole.ie, np.mean(single, axis=0), atol=1e-6)


@pytest.mark.parametrize("method", PADDED)
def test_the_released_aggregation_depends_on_the_batches_of_the_public_code(crosscoder, models, prompts, method):
    one, other = (_effects(crosscoder, models, prompts, method, reference_batch=batch) for batch in (2, 7))
    assert np.abs(one.ie - other.ie).max() > 0.05 * np.abs(one.ie).max()
    np.testing.assert_allclose(one.total, other.total)
    np.testing.assert_allclose(one.gap, other.gap)


@pytest.mark.parametrize("method", PADDED)
def test_effects_at_the_threshold_or_below_count_for_nothing(crosscoder, models, prompts, method):
    sizes = np.abs(_effects(crosscoder, models, prompts, method, threshold=0.0).ie)
    assert (sizes > 0).any()
    assert (_effects(crosscoder, models, prompts, method, threshold=1e6).ie == 0).all()
    # A constant factor leaves RelIE as it is: the number of columns is such a factor.
    one, other = (_effects(crosscoder, models, prompts, method, n_columns=n) for n in (1, 18))
    np.testing.assert_allclose(other.ie, 18 * one.ie, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(other.rel_ie, one.rel_ie, atol=1e-6)


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
    clean = attribute(crosscoder, models, prompts, AttributionConfig(method="gradient", bootstrap=0))
    np.testing.assert_allclose(clean.ie, np.stack(ie), atol=2e-5)


@pytest.fixture
def crosscoders(crosscoder):
    """Two of another size and another bias."""
    other = Crosscoder(dataclasses.replace(crosscoder.config, features=24))
    generator = torch.Generator().manual_seed(8)
    mean = torch.randn(2, 16, generator=generator)
    other.initialise(mean, torch.tensor([1.0, 0.5]), decoder_norm=0.4, tied=True, generator=generator)
    return [crosscoder, other]


def _values(effects):
    return {name: value for name, value in vars(effects).items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_several_crosscoders_have_the_effects_of_a_call_for_each(crosscoders, models, prompts, method, baseline):
    config = AttributionConfig(method=method, baseline=baseline, threshold=THRESHOLD, bootstrap=20, steps=STEPS)
    shared_end = BASELINES[baseline].depends_on_crosscoder and METHODS[method].feature_path is START
    of_the_path = ("explained", "error", "total", "gap", "metric_end") if shared_end else ()
    several = attribute_several(crosscoders, models, prompts, config, text=_text(models))
    for crosscoder, found in zip(crosscoders, several, strict=True):
        alone = _values(attribute(crosscoder, models, prompts, config, text=_text(models)))
        for name, value in _values(found).items():
            assert np.array_equal(value, alone[name], equal_nan=True) == (name not in of_the_path), name


def test_several_crosscoders_go_to_the_mean_of_their_biases(crosscoders, models, prompts):
    found = attribute_several(crosscoders, models, prompts, AttributionConfig(bootstrap=0))
    middle = copy.deepcopy(crosscoders[0])
    with torch.no_grad():
        mean = torch.stack([crosscoder.raw_bias() for crosscoder in crosscoders]).mean(0)
        middle.b_dec.copy_(mean * middle.scale[:, None])
    expected = attribute(middle, models, prompts, AttributionConfig(bootstrap=0))
    for effects in found:
        np.testing.assert_allclose(effects.metric_end, expected.metric_end, rtol=1e-5)
        np.testing.assert_allclose(effects.explained, effects.total, atol=1e-3)  # the error's part makes it whole
    np.testing.assert_allclose(found[0].explained, expected.explained, rtol=1e-5)
    np.testing.assert_allclose(found[0].error, expected.error, rtol=1e-4)  # its own bias lies in the error
    assert np.abs(found[0].error - found[1].error).max() > 0.01


def test_the_models_run_once_for_several_crosscoders(crosscoders, models, prompts, monkeypatch):
    rows, upper = [], SplitLM.upper

    def counted(self, residual, *args, **kwargs):
        rows.append(len(residual))
        return upper(self, residual, *args, **kwargs)

    monkeypatch.setattr(SplitLM, "upper", counted)
    attribute(crosscoders[0], models, prompts, AttributionConfig(bootstrap=0))
    for_one = sum(rows)
    attribute_several(crosscoders, models, prompts, AttributionConfig(bootstrap=0))
    assert sum(rows) == 2 * for_one


def test_crosscoders_that_do_not_go_together_are_refused(crosscoders, models, prompts):
    with pytest.raises(ValueError, match="there is no crosscoder"):
        attribute_several([], models, prompts)
    crosscoders[1].config = dataclasses.replace(crosscoders[1].config, positions=Positions(encode_first=True))
    with pytest.raises(ValueError, match="some of the crosscoders encode position 0 and some don't"):
        attribute_several(crosscoders, models, prompts)


def test_identical_checkpoints_share_every_effect(crosscoder, models, prompts):
    twins = [_renamed(models[0], name) for name in ("a", "b", "c")]
    config = CrosscoderConfig(("a", "b", "c"), crosscoder.config.layer, models[0].width, 40)
    twin = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    twin.initialise(torch.zeros(3, models[0].width), torch.ones(3), decoder_norm=0.3, tied=True, generator=generator)
    found = attribute(twin, twins, prompts, AttributionConfig(steps=4, bootstrap=0))
    live = np.abs(found.ie).sum(0) > 0
    assert live.sum() > 10
    np.testing.assert_allclose(found.rel_ie[:, live], 1 / 3, atol=1e-6)


def _renamed(model, name):
    same = object.__new__(SplitLM)
    same.__dict__.update(model.__dict__, name=name)
    return same


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_permuting_the_checkpoints_permutes_the_rows(crosscoder, models, prompts, method, baseline):
    flipped = Crosscoder(dataclasses.replace(crosscoder.config, checkpoints=crosscoder.config.checkpoints[::-1]))
    with torch.no_grad():
        flipped.W_enc.copy_(crosscoder.W_enc.flip(0))
        flipped.W_dec.copy_(crosscoder.W_dec.flip(1))
        flipped.b_dec.copy_(crosscoder.b_dec.flip(0))
        flipped.b_enc.copy_(crosscoder.b_enc)
        flipped.scale.copy_(crosscoder.scale.flip(0))
    one = _effects(crosscoder, models, prompts, method, baseline, bootstrap=50)
    other = _effects(flipped, models[::-1], prompts, method, baseline, bootstrap=50)
    np.testing.assert_allclose(other.ie[::-1], one.ie, atol=1e-6)
    np.testing.assert_allclose(other.rel_ie[::-1], one.rel_ie, atol=1e-3)
    np.testing.assert_allclose(other.ie_low[::-1], one.ie_low, atol=1e-5)
    np.testing.assert_allclose(other.error[::-1], one.error, atol=1e-5)


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_the_size_and_the_order_of_features_do_not_matter(crosscoder, models, prompts, method, baseline):
    """A code twice as large with a decoder vector half as long is the same feature."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(40, generator=generator)
    size = torch.rand(40, generator=generator) * 3 + 0.5
    other = Crosscoder(crosscoder.config)
    with torch.no_grad():
        other.W_enc.copy_((crosscoder.W_enc * size)[..., order])
        other.b_enc.copy_((crosscoder.b_enc * size)[order])
        other.W_dec.copy_((crosscoder.W_dec / size[:, None, None])[order])
        other.b_dec.copy_(crosscoder.b_dec)
        other.scale.copy_(crosscoder.scale)
    found, expected = (_effects(c, models, prompts, method, baseline) for c in (other, crosscoder))
    np.testing.assert_allclose(found.ie, expected.ie[:, order], atol=1e-6)
    np.testing.assert_allclose(found.error, expected.error, atol=1e-5)
    np.testing.assert_allclose(found.gap, expected.gap, atol=1e-5)


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_a_dead_feature_has_no_effect_and_no_relative_effect(crosscoder, models, prompts, method, baseline):
    with torch.no_grad():
        crosscoder.b_enc[7] = -100
        crosscoder.W_dec[8, 1] = 0
    found = _effects(crosscoder, models, prompts, method, baseline, bootstrap=20)
    assert (found.ie[:, 7] == 0).all()
    assert np.isnan(found.rel_ie[:, 7]).all()
    assert np.isnan(found.sign_consistency[:, 7]).all()
    assert found.ie[1, 8] == 0
    assert np.isnan(found.sign_consistency[1, 8])
    table = FeatureTable.from_effects([found], crosscoder, np.full(40, 0.1))
    assert table.column("random", "class")[7] == table.column("random", "lifecycle")[7] == "undefined"
    assert table.array("random", "rel_dec")[1, 8] == 0


def test_a_dead_feature_is_shared_by_the_papers_convention(crosscoder, models, prompts):
    with torch.no_grad():
        crosscoder.b_enc[7] = -100
    found = _effects(crosscoder, models, prompts, no_effect="shared")
    assert (found.rel_ie[:, 7] == 0.5).all()
    plain = _effects(crosscoder, models, prompts).rel_ie
    np.testing.assert_array_equal(np.isnan(plain).any(0), (found.rel_ie == 0.5).all(0))


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_a_feature_whose_gate_is_closed_at_a_checkpoint_has_no_effect_there(
    crosscoder, models, prompts, method, baseline
):
    gated = Crosscoder(dataclasses.replace(crosscoder.config, sparsity=JumpReLU(threshold=0.01)))
    gated.load_state_dict(crosscoder.state_dict(), strict=False)
    with torch.no_grad():
        gated.W_dec[::3, 1] *= 1e-3
    found = _effects(gated, models, prompts, method, baseline, threshold=0.0)
    assert (found.ie[1, ::3] == 0).all()
    assert (found.ie[0, ::3] != 0).sum() > 5
    assert (found.ie[1] != 0).sum() > 5
    if method == "integrated":
        whole = _effects(gated, models, prompts, baseline=baseline, steps=32)
        np.testing.assert_allclose(whole.ie.sum(1) + whole.error, whole.total, atol=1e-3)


@pytest.mark.parametrize(("method", "baseline"), EVERY_WAY)
def test_sign_consistency_is_the_share_of_prompts_that_agree_with_the_mean(
    crosscoder, models, prompts, method, baseline
):
    found = _effects(crosscoder, models, prompts, method, baseline)
    single = np.stack([_effects(crosscoder, models, _take(prompts, [n]), method, baseline).ie for n in range(7)])
    with np.errstate(invalid="ignore"):
        share = (np.sign(single) == np.sign(found.ie)).sum(0, where=single != 0) / (single != 0).sum(0)
    np.testing.assert_allclose(found.sign_consistency, share, rtol=1e-6)
    assert np.nanmin(share) < 1


def test_intervals_hold_the_estimate_and_narrow_with_more_prompts(crosscoder, models):
    few = attribute(
        crosscoder, models, _prompts(96, (5,) * 8, answers=(3, 9)), AttributionConfig(steps=2, bootstrap=300)
    )
    many = attribute(
        crosscoder, models, _prompts(96, (5,) * 128, answers=(3, 9)), AttributionConfig(steps=2, bootstrap=300)
    )
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
    found = attribute(crosscoder, models, prompts, AttributionConfig(steps=2, bootstrap=2000))
    single = np.stack(
        [
            attribute(crosscoder, models, _take(prompts, [n]), AttributionConfig(steps=2, bootstrap=0)).ie
            for n in range(len(prompts))
        ]
    )
    width = 2 * 1.96 * single.std(0) / len(prompts) ** 0.5
    strong = np.abs(found.ie) > np.quantile(np.abs(found.ie), 0.7)
    np.testing.assert_allclose((found.ie_high - found.ie_low)[strong], width[strong], rtol=0.15)


def test_saved_and_read_again(crosscoder, models, prompts, tmp_path):
    found = attribute(crosscoder, models, prompts, AttributionConfig(steps=2, bootstrap=20))
    found.save(tmp_path)
    again = Effects.load(tmp_path)
    for field in dataclasses.fields(Effects):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))


def test_the_totals_are_saved_without_single_features(crosscoder, models, prompts, tmp_path):
    found = attribute(crosscoder, models, prompts, AttributionConfig(steps=2, bootstrap=0))
    none = dataclasses.replace(found, task="none", explained=np.array([np.nan, 1.0]))
    save_totals(tmp_path / "tasks.json", [found, none])
    one, other = load_totals(tmp_path / "tasks.json")
    for field in dataclasses.fields(TaskTotals):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(found, field.name))
    assert (other.task, np.isnan(other.explained).tolist()) == ("none", [True, False])
    entry, _ = json.loads((tmp_path / "tasks.json").read_text())
    assert entry["feature_share"] == one.feature_share.tolist()
    assert "ie" not in entry


def test_prompts_of_another_policy_are_refused(crosscoder, models, prompts):
    with pytest.raises(ValueError, match="the task was tokenised without BOS"):
        attribute(crosscoder, models, dataclasses.replace(prompts, bos=False))


def test_a_baseline_that_the_task_does_not_have_is_refused(crosscoder, models, prompts):
    with pytest.raises(ValueError, match="task random has no second prefixes: give its pairs `patch`"):
        attribute(crosscoder, models, dataclasses.replace(prompts, patch=None), AttributionConfig(baseline="patch"))
    with pytest.raises(ValueError, match='the baseline "mean" averages over a text'):
        attribute(crosscoder, models, prompts, AttributionConfig(baseline="mean"))
    with pytest.raises(ValueError, match="the text was tokenised without BOS"):
        attribute(
            crosscoder,
            models,
            prompts,
            AttributionConfig(baseline="mean"),
            text=dataclasses.replace(_text(models), bos=False),
        )
    patch = [[*prompts.patch[0], 5], *prompts.patch[1:]]
    with pytest.raises(ValueError, match="second prefix of prompt 0 has 5 tokens, the first one has 4"):
        attribute(crosscoder, models, dataclasses.replace(prompts, patch=patch), AttributionConfig(baseline="patch"))


def test_settings_outside_their_limits_are_refused():
    for name in ("reference_batch", "n_columns", "batch_size", "max_positions", "steps"):
        with pytest.raises(SettingError, match=f"^{name} must be at least 1, not 0$"):
            AttributionConfig(**{name: 0})
    with pytest.raises(SettingError, match=r"^threshold must be at least 0, not -0\.1$"):
        AttributionConfig(threshold=-0.1)
    for name in ("bootstrap", "seed"):
        with pytest.raises(SettingError, match=f"^{name} must be at least 0, not -1$"):
            AttributionConfig(**{name: -1})
    with pytest.raises(SettingError, match=r"^steps must be at least 2, not 1$"):
        AttributionConfig(rule="trapezoid", steps=1)
    for name in ("method", "baseline", "rule", "no_effect"):
        with pytest.raises(SettingError, match=f"^{name} names an unknown .* 'none': choose "):
            AttributionConfig(**{name: "none"})


def test_models_that_do_not_fit_are_refused(crosscoder, models, prompts):
    with pytest.raises(ValueError, match="reads 2 checkpoints; got 1"):
        attribute(crosscoder, models[:1], prompts)
    with pytest.raises(ValueError, match="pass the models in the order"):
        attribute(crosscoder, models[::-1], prompts)
