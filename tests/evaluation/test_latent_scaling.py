"""Latent scaling against least squares by brute force, and under changes of units that must not matter."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import crosstime as ct
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.latent_scaling import latent_scaling, scaled_decoder
from crosstime.text.corpus import Corpus
from planted import plant


@pytest.fixture
def crosscoder(crosscoder):
    """The shared one, with decoder norms that differ between checkpoints."""
    with torch.no_grad():
        crosscoder.W_dec *= torch.rand(*crosscoder.W_dec.shape[:2], 1, generator=torch.Generator().manual_seed(0))
    return crosscoder


@pytest.fixture
def text():
    blocks = np.random.default_rng(0).integers(0, 96, (9, 12), dtype=np.uint16)
    return Corpus(blocks, "random")


def by_brute_force(crosscoder, models, text):
    """Both betas, [F, M] each, by numpy's least squares over one target at a time."""
    tokens = torch.from_numpy(text.blocks.astype(np.int64))
    x = torch.stack([model.lower(tokens)[:, 1:] for model in models], dim=2).flatten(0, 1).double()
    f = crosscoder.encode(x)
    scale, norms = crosscoder.scale.double(), crosscoder.decoder_norms()
    x_hat, x = crosscoder.decode(f) * scale[:, None], x * scale[:, None]
    error, reconstruction = np.full((2, *norms.shape), np.nan)
    for j in range(len(norms)):
        r = int(norms[j].argmax())
        written = (crosscoder.at(f, r)[:, j, None] * crosscoder.W_dec[j, r]).flatten().numpy()
        for m in range(norms.shape[1]):
            own = crosscoder.at(f, m)[:, j, None] * crosscoder.W_dec[j, m]
            targets = x[:, m] - (x_hat[:, m] - own), x_hat[:, m] - crosscoder.b_dec[m]
            for beta, y in zip((error, reconstruction), targets, strict=True):
                if written.any():
                    beta[j, m] = np.linalg.lstsq(written[:, None], y.flatten().numpy())[0].item()
    return error, reconstruction


@pytest.mark.parametrize("sparsity", [ct.L1(), ct.JumpReLU(threshold=0.05)], ids=lambda rule: rule.rule)
@torch.no_grad()
def test_it_is_the_least_squares_factor(models, crosscoder, text, sparsity):
    exact = Crosscoder(dataclasses.replace(crosscoder.config, sparsity=sparsity)).double()
    exact.load_state_dict(crosscoder.state_dict(), strict=False)  # the thresholds of JumpReLU stay as they are
    found = latent_scaling(exact, models, text, batch_blocks=4)
    error, reconstruction = by_brute_force(exact, models, text)
    np.testing.assert_allclose(found.error, error, rtol=1e-5)
    np.testing.assert_allclose(found.reconstruction, reconstruction, rtol=1e-5)
    assert found.n_tokens == 9 * 11
    assert np.nanmax(np.ptp(found.error, axis=1)) > 0.1  # the checkpoints differ, or nothing was tested


def test_a_true_crosscoder_finds_the_planted_strengths():
    """Without noise a feature that keeps its direction has, in the error target, just its planted strength."""
    world = plant()
    found = latent_scaling(world.crosscoder(), world.models(), world.corpus(60, 17))
    steady = [i for i, kind in enumerate(world.kinds) if kind != "rotating"]
    np.testing.assert_allclose(found.error[steady], world.strengths[steady], atol=1e-3)
    np.testing.assert_array_equal(found.fired > 0, True)


def test_in_its_reconstruction_an_isolated_feature_has_its_own_strength():
    """METHOD: beta_reconstruction is 1 at the reference where a feature's direction is orthogonal to all others."""
    world = plant(width=40)
    orthogonal = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0][:10]
    directions = orthogonal[:, None].expand(-1, 3, -1)
    rows = world.means + torch.einsum("nf,fmd->nmd", world.codes, world.strengths[:, :, None] * directions)
    world = dataclasses.replace(world, directions=directions, rows=rows)
    found = latent_scaling(world.crosscoder(), world.models(), world.corpus(60, 17))
    np.testing.assert_allclose(found.reconstruction, world.strengths, atol=1e-5)


def test_batches_do_not_matter(models, crosscoder, text):
    whole, parts = (latent_scaling(crosscoder, models, text, batch_blocks=n) for n in (9, 2))
    np.testing.assert_allclose(parts.error, whole.error, rtol=1e-4)
    np.testing.assert_allclose(parts.reconstruction, whole.reconstruction, rtol=1e-4)
    np.testing.assert_array_equal(parts.fired, whole.fired)


@torch.no_grad()
def test_neither_the_units_of_a_checkpoint_nor_folding_matter(models, crosscoder, text):
    before = latent_scaling(crosscoder, models, text)
    folded = crosscoder.fold()
    louder = copy.deepcopy(crosscoder)
    louder.scale[1] /= 7
    loud_model = copy.copy(models[1])
    loud_model.lower = lambda *args: 7 * models[1].lower(*args)
    for changed, read in ((folded, models), (louder, [models[0], loud_model])):
        after = latent_scaling(changed, read, text)
        np.testing.assert_allclose(after.error, before.error, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(after.reconstruction, before.reconstruction, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaled_decoder(folded), crosscoder.W_dec, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_the_bias_is_not_something_that_a_feature_writes():
    world = plant()
    models, text, crosscoder = world.models(), world.corpus(40, 17), world.crosscoder()
    before = latent_scaling(crosscoder, models, text)
    for model in models:
        model.embed += 5.0
    crosscoder.b_dec += 5
    crosscoder.b_enc -= 5 * crosscoder.W_enc.sum((0, 1))
    np.testing.assert_allclose(
        latent_scaling(crosscoder, models, text).reconstruction, before.reconstruction, atol=1e-3
    )


@torch.no_grad()
def test_features_that_never_fire_or_write_nothing_have_no_factor(world):
    crosscoder = world.crosscoder()
    crosscoder.b_enc[3] = -1000
    crosscoder.W_dec[5] = 0
    found = latent_scaling(crosscoder, world.models(), world.corpus(20, 9))
    unknown = np.isnan(found.error).all(1)
    assert np.flatnonzero(unknown).tolist() == [3, 5]
    np.testing.assert_array_equal(unknown, np.isnan(found.reconstruction).any(1))
    assert found.fired[3] == 0


def test_bad_input_is_refused(world):
    crosscoder, models = world.crosscoder(), world.models()
    with pytest.raises(ValueError, match="reads 3 checkpoints; got 2"):
        latent_scaling(crosscoder, models[:2], world.corpus(6, 9))
    with pytest.raises(ValueError, match="give more text"):
        latent_scaling(crosscoder, models, world.corpus(3, 1))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        latent_scaling(crosscoder, models, world.corpus(6, 9), max_blocks=0)
