"""Quality against planted worlds, plain transformers and hand-made sums."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU
from crosstime.evaluation import quality as module
from crosstime.evaluation.quality import EvaluationConfig, Quality, evaluate
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from planted import plant

PER_CHECKPOINT = ("explained_variance", "ce_clean", "ce_spliced", "ce_zero")


@pytest.fixture(scope="module")
def text() -> Corpus:
    blocks = np.random.default_rng(0).integers(0, 96, (7, 12), dtype=np.uint16)
    return Corpus(blocks, "random")


def copied(crosscoder, **changes):
    """The crosscoder with other weights or another position policy."""
    crosscoder = copy.deepcopy(crosscoder)
    if "positions" in changes:
        crosscoder.config = dataclasses.replace(crosscoder.config, positions=changes.pop("positions"))
    with torch.no_grad():
        for name, value in changes.items():
            getattr(crosscoder, name).copy_(value)
    return crosscoder


def rows_of(models, text, first):
    """All activations that are encoded, [N, M, D] in float64."""
    tokens = torch.from_numpy(text.blocks.astype(np.int64))
    return torch.stack([m.lower(tokens)[:, first:] for m in models], dim=2).flatten(0, 1).double()


def test_the_true_crosscoder_of_a_planted_world_is_perfect(world):
    text = world.corpus(n_blocks=20, context=9)
    found = evaluate(world.crosscoder(), world.models(), text)
    fires = (world.codes[text.blocks[:, 1:].astype(np.int64)] > 0).double()
    assert found.n_tokens == 20 * 8
    assert found.l0 == pytest.approx(fires.sum(-1).mean().item())
    np.testing.assert_allclose(found.frequency, fires.mean((0, 1)).numpy())
    assert found.dead == 0
    np.testing.assert_allclose(found.explained_variance, 1, atol=1e-5)
    np.testing.assert_allclose(found.ce_spliced, found.ce_clean, atol=1e-3)
    np.testing.assert_allclose(found.loss_recovered, 1, atol=1e-3)


def test_planted_noise_is_what_remains_unexplained():
    world = plant(n_rows=4000, noise=0.1, density=0.3)
    crosscoder = world.crosscoder()
    text = world.corpus(n_blocks=50, context=41)
    found = evaluate(crosscoder, world.models(), text, EvaluationConfig(blocks=50))
    rows = rows_of(world.models(), text, 1)
    with torch.no_grad():
        left = (rows - crosscoder(rows.float())).square().sum((0, 2))
    expected = 1 - left / (rows - rows.mean(0)).square().sum((0, 2))
    np.testing.assert_allclose(found.explained_variance, expected, rtol=1e-5)
    assert np.all((found.explained_variance > 0.5) & (found.explained_variance < 0.99))


def test_a_feature_that_cannot_fire_is_dead(world):
    crosscoder = world.crosscoder()
    with torch.no_grad():
        crosscoder.b_enc[3] = -1000
    found = evaluate(crosscoder, world.models(), world.corpus(20, 9))
    assert found.dead == 1
    assert found.dead_fraction == pytest.approx(1 / 10)
    assert found.frequency[3] == 0


def test_reconstruction_of_zero_recovers_exactly_nothing(models, crosscoder, text):
    nothing = copied(crosscoder, W_dec=torch.zeros(40, 2, 16), b_dec=torch.zeros(2, 16))
    found = evaluate(nothing, models, text)
    np.testing.assert_array_equal(found.ce_spliced, found.ce_zero)
    np.testing.assert_array_equal(found.loss_recovered, 0)


def test_reconstruction_by_the_mean_explains_no_variance(models, crosscoder, text):
    mean = rows_of(models, text, 1).mean(0)
    b_dec = mean.float() * crosscoder.scale[:, None]
    found = evaluate(
        copied(crosscoder, W_dec=torch.zeros(40, 2, 16), b_dec=b_dec), models, text, EvaluationConfig(batch_blocks=2)
    )
    np.testing.assert_allclose(found.explained_variance, 0, atol=1e-6)


def test_explained_variance_keeps_its_digits_beside_a_large_mean():
    far = plant(n_rows=256)
    models = far.models()
    for model in models:
        model.embed += 1000.0
    crosscoder = far.crosscoder()
    with torch.no_grad():
        crosscoder.b_dec += 1000
        crosscoder.b_enc -= 1000 * crosscoder.W_enc.sum((0, 1))
        crosscoder.W_dec *= 0.5
    text = far.corpus(30, 9)
    rows = rows_of(models, text, 1)
    with torch.no_grad():
        left = (rows - crosscoder(rows.float())).square().sum((0, 2))
    expected = 1 - left / (rows - rows.mean(0)).square().sum((0, 2))
    found = evaluate(crosscoder, models, text, EvaluationConfig(batch_blocks=4))
    np.testing.assert_allclose(found.explained_variance, expected, rtol=1e-4)


def test_clean_cross_entropy_is_the_models_own_loss(transformers_models, models, crosscoder, text):
    found = evaluate(copied(crosscoder, positions=Positions(encode_first=True)), models, text)
    tokens = torch.from_numpy(text.blocks.astype(np.int64))
    expected = [model(tokens, labels=tokens).loss.item() for model in transformers_models]
    np.testing.assert_allclose(found.ce_clean, expected, rtol=1e-6)
    assert found.n_tokens == text.n_tokens


@pytest.mark.parametrize("first", [0, 1])
def test_spliced_and_zeroed_cross_entropy_equal_those_of_a_hooked_model(
    transformers_models, models, crosscoder, text, first
):
    crosscoder = copied(crosscoder, positions=Positions(encode_first=first == 0))
    found = evaluate(crosscoder, models, text, EvaluationConfig(batch_blocks=3))
    tokens = torch.from_numpy(text.blocks.astype(np.int64))
    with torch.no_grad():
        xhat = crosscoder(torch.stack([model.lower(tokens) for model in models], dim=2))
    for m, model in enumerate(transformers_models):
        for replacement, ours in ((xhat[:, :, m], found.ce_spliced), (torch.zeros_like(xhat[:, :, m]), found.ce_zero)):

            def splice(_module, _inputs, output, replacement=replacement):
                return torch.cat([output[:, :first], replacement[:, first:]], dim=1)

            handle = model.gpt_neox.layers[1].register_forward_hook(splice)
            with torch.no_grad():
                logits = model(tokens).logits
            handle.remove()
            expected = cross_entropy(logits[:, first:-1].flatten(0, 1), tokens[:, first + 1 :].flatten())
            assert ours[m] == pytest.approx(expected.item(), rel=1e-5)


def test_the_numbers_do_not_depend_on_batches_or_on_how_logits_are_chunked(models, crosscoder, text, monkeypatch):
    whole = evaluate(crosscoder, models, text, EvaluationConfig(batch_blocks=7))
    for batch_blocks, max_logits in ((1, 2**25), (5, 2 * text.blocks.shape[1] * 96)):
        monkeypatch.setattr(module, "MAX_LOGITS", max_logits)
        found = evaluate(crosscoder, models, text, EvaluationConfig(batch_blocks=batch_blocks))
        assert (found.n_tokens, found.l0, found.dead) == (whole.n_tokens, whole.l0, whole.dead)
        for name in PER_CHECKPOINT:
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-5)


def test_blocks_takes_the_first_blocks(models, crosscoder, text):
    np.testing.assert_array_equal(
        evaluate(crosscoder, models, text, EvaluationConfig(blocks=3)).ce_clean,
        evaluate(crosscoder, models, text.take(3)).ce_clean,
    )


@pytest.mark.parametrize("rule", [L1(), BatchTopK(5), JumpReLU()], ids=lambda rule: rule.rule)
def test_evaluating_changes_nothing(transformers_models, models, crosscoder, text, rule):
    """The public code of the paper moves BatchTopK's threshold whenever it validates."""
    ruled = Crosscoder(dataclasses.replace(crosscoder.config, sparsity=rule))
    ruled.load_state_dict(crosscoder.state_dict(), strict=False)
    crosscoder = ruled
    everything = [crosscoder, *transformers_models]

    def state():
        tensors = [value.clone() for module in everything for value in module.state_dict().values()]
        gradients = [p.grad is None for module in everything for p in module.parameters()]
        modes = [part.training for module in everything for part in module.modules()]
        return [*tensors, torch.get_rng_state()], [gradients, modes, torch.is_grad_enabled()]

    before = state()
    evaluate(crosscoder, models, text)
    after = state()
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]


def test_permuting_the_checkpoints_permutes_the_columns(world):
    order = [2, 0, 1]
    crosscoder = world.crosscoder()
    permuted = copied(crosscoder, W_enc=crosscoder.W_enc[order], W_dec=crosscoder.W_dec[:, order])
    permuted = copied(permuted, b_dec=crosscoder.b_dec[order])
    permuted.config = dataclasses.replace(crosscoder.config, checkpoints=tuple(world.names[m] for m in order))
    models, text = world.models(), world.corpus(20, 9)
    one, other = evaluate(crosscoder, models, text), evaluate(permuted, [models[m] for m in order], text)
    assert other.checkpoints == [world.names[m] for m in order]
    for name in PER_CHECKPOINT:
        np.testing.assert_allclose(getattr(other, name), getattr(one, name)[order], rtol=1e-5)


def test_quality_survives_the_disk_nan_included(tmp_path):
    quality = Quality(
        checkpoints=["a", "b"],
        n_tokens=100,
        l0=3.5,
        dead=1,
        frequency=np.array([0.0, 0.1, 0.25]),
        explained_variance=np.array([0.9, np.nan]),
        ce_clean=np.array([3.0, 2.0]),
        ce_spliced=np.array([3.1, 2.5]),
        ce_zero=np.array([5.0, 2.0]),
    )
    quality.save(tmp_path)
    loaded = Quality.load(tmp_path)
    for field in dataclasses.fields(Quality):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(quality, field.name))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["loss_recovered"] == [pytest.approx(0.95), None]  # zeros cost nothing at b: undefined
    assert metrics["delta_ce"] == [pytest.approx(0.1), pytest.approx(0.5)]
    assert metrics["explained_variance"][1] is None


def test_activations_that_are_not_finite_are_refused_with_their_checkpoint_and_token(world):
    text = world.corpus(6, 9)
    models = world.models()
    bad = text.blocks[[4, 5], [5, 2]]
    models[1].embed[bad.astype(np.int64)] = torch.nan
    row, position = np.argwhere(np.isin(text.blocks, bad))[0]
    token = int(text.blocks[row, position])
    with pytest.raises(ValueError, match=f"checkpoint step10: .* token id {token}, position {position};"):
        evaluate(world.crosscoder(), models, text)


def test_other_models_are_refused(world):
    models, text = world.models(), world.corpus(6, 9)
    with pytest.raises(ValueError, match="reads 3 checkpoints; got 2"):
        evaluate(world.crosscoder(), models[:2], text)
    with pytest.raises(ValueError, match="in the order"):
        evaluate(world.crosscoder(), models[::-1], text)
    with pytest.raises(ValueError, match="its width is 20"):
        evaluate(world.crosscoder(), plant(width=20).models(), text)


def test_text_in_which_nothing_is_predicted_is_refused(world):
    for text in (world.corpus(0, 9), world.corpus(3, 2)):
        with pytest.raises(ValueError, match="give more text"):
            evaluate(world.crosscoder(), world.models(), text)
