"""Diagnostics against planted worlds with known truth, and latent scaling against brute-force least squares."""

import copy
import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import crosstime as ct
from crosstime.attribution.relative import LIFECYCLES
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.diagnostics import (
    LABELS,
    Diagnostics,
    DiagnosticsConfig,
    complements,
    diagnose,
    label,
    latent_scaling,
    scaled_decoder,
)
from crosstime.text.corpus import Corpus
from planted import plant
from planted_artefacts import faulty, misled


def recall_and_precision(found, true):
    hits = np.sum(found & true)
    return hits / true.sum(), hits / found.sum()


@pytest.fixture(scope="module")
def made():
    """A crosscoder with faults over 300 planted features, and its diagnostics."""
    made = faulty()
    return made, diagnose(made.crosscoder, made.world.models(), made.world.corpus(200, 33))


def test_decoder_labels_share_no_word_with_lifecycles():
    assert not set(LABELS) & set(LIFECYCLES)


@pytest.mark.parametrize("word", LABELS)
def test_every_label_is_found_where_it_was_planted(made, word):
    truth, found = (np.array(labels) == word for labels in (made[0].label, made[1].label))
    recall, precision = recall_and_precision(found, truth)
    assert min(recall, precision) >= 0.9


def test_the_halves_of_decoupled_pairs_find_each_other(made):
    pairs = made[0].complement
    assert np.mean([made[1].complement[a] == b for a, b in pairs.items()]) >= 0.9
    assert np.mean([i in pairs for i in np.flatnonzero(made[1].complement >= 0)]) >= 0.9


def test_shrinkage_shows_in_the_error_and_decoupling_in_the_reconstruction(made):
    world, found = made
    refuted = found.relative_norm < 0.2
    artefact = np.array(world.label) == "artefact"
    split = np.isin(np.arange(len(artefact)), list(world.complement))
    for nu, where in ((found.nu_error, artefact & ~split), (found.nu_reconstruction, artefact & split)):
        other = found.nu_reconstruction if nu is found.nu_error else found.nu_error
        assert np.median(nu[:, where][refuted[:, where]]) > 0.8
        assert np.median(np.abs(other[:, where][refuted[:, where]])) < 0.5


def test_what_the_l1_penalty_distorts_is_found():
    """The penalty itself makes the artefacts here: truth is that a feature absent by its decoder is planted there."""
    made = misled()
    world, crosscoder = made.world, made.crosscoder
    found = diagnose(crosscoder, world.models(), world.corpus(200, 33))
    decoder = scaled_decoder(crosscoder).detach()
    direction = normalize(decoder[torch.arange(len(decoder)), torch.from_numpy(found.reference)], dim=1)
    cosine, planted = (direction @ world.directions[:, 0].T).max(1)
    matched = (cosine.numpy() > 0.8) & (found.fired >= 10)
    strengths = world.strengths[planted].numpy()
    there = strengths >= 0.2 * np.take_along_axis(strengths, found.reference[:, None], 1)
    true = ((found.relative_norm.T < 0.2) & there).any(1) & matched
    kinds = np.array(world.kinds)[planted]
    assert matched.sum() > 100
    assert np.sum(true & (kinds == "weak")) >= 15  # complete shrinkage took place
    assert np.sum(true & (kinds == "apart")) >= 15  # and so did decoupling
    labels = np.array(found.label)
    assert min(recall_and_precision((labels == "artefact") & matched, true)) >= 0.9
    for kind, word in (("dropped", "early"), ("emerging", "late"), ("maintained", "persistent")):
        assert np.mean(labels[matched & (kinds == kind)] == word) >= 0.9


@pytest.mark.parametrize("tied", [True, False])
def test_of_an_untrained_crosscoder_nothing_is_said(made, tied):
    world = made[0].world
    crosscoder = Crosscoder(dataclasses.replace(made[0].crosscoder.config, features=200))
    crosscoder.initialise(
        world.rows.mean(0), torch.ones(3), decoder_norm=0.08, tied=tied, generator=torch.Generator().manual_seed(0)
    )
    assert diagnose(crosscoder, world.models(), world.corpus(50, 33)).counts["unclear"] >= 190


# strength, nu_error, nu_reconstruction, cosine of first and last -> label
CASES = [
    ((1.0, 0.5, 0.9), (1.0, 0.5, 0.9), (1.0, 0.5, 0.9), 0.8, "persistent"),
    ((1.0, 0.0, 0.9), (1.0, 0.0, 0.9), (1.0, 0.0, 0.9), 0.8, "persistent"),  # a gap, and it came back
    ((1.0, 0.5, 0.9), (1.0, 0.2, 0.1), (1.0, 0.2, 0.1), 0.3, "rotated"),
    ((0.1, 0.5, 1.0), (0.1, 0.5, 1.0), (0.4, 0.5, 1.0), 0.8, "late"),
    ((0.1, 0.5, 1.0), (0.1, 0.5, 1.0), (0.4, 0.5, 1.0), 0.3, "late"),  # a vector that is absent cannot have turned
    ((1.0, 0.5, 0.1), (1.0, 0.5, 0.1), (1.0, 0.5, 0.4), 0.8, "early"),
    ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0), np.nan, "early"),  # present only between
    ((0.1, 0.5, 1.0), (0.3, 0.5, 1.0), (0.3, 0.5, 1.0), 0.8, "artefact"),  # shrunk to nothing at the first
    ((0.1, 0.5, 1.0), (0.1, 0.5, 1.0), (0.6, 0.5, 1.0), 0.8, "artefact"),  # written by another at the first
    ((1.0, 0.0, 1.0), (1.0, 0.9, 1.0), (1.0, 0.0, 1.0), 0.8, "artefact"),  # the gap is none
    ((1.0, 0.5, 0.1), (1.0, 0.5, -0.9), (np.nan, np.nan, np.nan), 0.8, "early"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[-1])
def test_the_rule(case):
    columns = [np.array(column)[:, None] for column in case[:3]]
    assert label(*columns, np.array([case[3]]), np.array([True])) == [case[4]]
    assert label(*columns, np.array([case[3]]), np.array([False])) == ["unclear"]


def test_complements_are_alike_and_never_at_one_checkpoint(monkeypatch):
    direction = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    present = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=bool)
    for at_once in (1, 2048):
        monkeypatch.setattr("crosstime.evaluation.diagnostics.MATCH_CHUNK", at_once)
        assert complements(direction, present.T).tolist() == [1, 0, 0, -1, -1, -1]
    assert complements(direction, np.ones_like(present.T)).tolist() == [-1] * 6


@torch.no_grad()
def test_cosines_are_those_of_the_decoder_vectors_and_unknown_without_one(world):
    crosscoder = world.crosscoder()
    crosscoder.W_dec[1] = 0
    found = diagnose(crosscoder, world.models(), world.corpus(20, 9))
    i = world.features("rotating")[0]
    np.testing.assert_allclose(found.cosine[..., i], world.directions[i] @ world.directions[i].T, atol=1e-5)
    i = world.features("emerging")[0]  # absent at the first checkpoint
    np.testing.assert_array_equal(
        np.isnan(found.cosine[..., i]), [[True] * 3, [True, False, False], [True, False, False]]
    )
    assert np.isnan(found.cosine[..., 1]).all()
    assert np.isnan(found.relative_norm[:, 1]).all()
    assert found.label[1] == "unclear"


def test_diagnostics_survive_the_disk(made, tmp_path):
    made[1].save(tmp_path)
    loaded = Diagnostics.load(tmp_path)
    for field in dataclasses.fields(Diagnostics):
        before, after = getattr(made[1], field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            np.testing.assert_allclose(after, before, rtol=1e-6)
        else:
            assert after == before
    table = loaded.table
    rows, names = table.to_pylist(), made[0].world.names
    assert [(row["feature"], row["checkpoint"]) for row in rows] == list(product(range(len(made[0].label)), names))
    assert [row["label"] for row in rows[:: len(names)]] == made[1].label
    assert [row["nu_error"] for row in rows[:3]] == pytest.approx(made[1].nu_error[:, 0], nan_ok=True)
    assert table["complement"].null_count == len(names) * np.sum(made[1].complement < 0)
    assert set(table["reference"].to_pylist()) <= set(names)


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
    """Both betas, [M, F] each, by numpy's least squares over one target at a time."""
    tokens = torch.from_numpy(text.blocks.astype(np.int64))
    x = torch.stack([model.lower(tokens)[:, 1:] for model in models], dim=2).flatten(0, 1).double()
    f = crosscoder.encode(x)
    scale, norms = crosscoder.scale.double(), crosscoder.decoder_norms().T
    x_hat, x = crosscoder.decode(f) * scale[:, None], x * scale[:, None]
    error, reconstruction = np.full((2, *norms.T.shape), np.nan)
    for j in range(len(norms)):
        r = int(norms[j].argmax())
        written = (crosscoder.gate(f, r)[:, j, None] * crosscoder.W_dec[j, r]).flatten().numpy()
        for m in range(norms.shape[1]):
            own = crosscoder.gate(f, m)[:, j, None] * crosscoder.W_dec[j, m]
            targets = x[:, m] - (x_hat[:, m] - own), x_hat[:, m] - crosscoder.b_dec[m]
            for beta, y in zip((error, reconstruction), targets, strict=True):
                if written.any():
                    beta[m, j] = np.linalg.lstsq(written[:, None], y.flatten().numpy())[0].item()
    return error, reconstruction


@pytest.mark.parametrize("sparsity", [ct.L1(), ct.JumpReLU(threshold=0.05)], ids=lambda rule: rule.rule)
@torch.no_grad()
def test_it_is_the_least_squares_factor(models, crosscoder, text, sparsity):
    exact = Crosscoder(dataclasses.replace(crosscoder.config, sparsity=sparsity)).double()
    exact.load_state_dict(crosscoder.state_dict(), strict=False)  # the thresholds of JumpReLU stay as they are
    found = latent_scaling(exact, models, text, DiagnosticsConfig(batch_blocks=4))
    error, reconstruction = by_brute_force(exact, models, text)
    np.testing.assert_allclose(found.error, error, rtol=1e-5)
    np.testing.assert_allclose(found.reconstruction, reconstruction, rtol=1e-5)
    assert found.n_tokens == 9 * 11
    assert np.nanmax(np.ptp(found.error, axis=0)) > 0.1  # the checkpoints differ, or nothing was tested


def test_a_true_crosscoder_finds_the_planted_strengths():
    """Without noise a feature that keeps its direction has, in the error target, just its planted strength."""
    world = plant()
    found = latent_scaling(world.crosscoder(), world.models(), world.corpus(60, 17))
    steady = [i for i, kind in enumerate(world.kinds) if kind != "rotating"]
    np.testing.assert_allclose(found.error[:, steady], world.strengths[steady].T, atol=1e-3)
    np.testing.assert_array_equal(found.fired > 0, True)


def test_in_its_reconstruction_an_isolated_feature_has_its_own_strength():
    """METHOD: beta_reconstruction is 1 at the reference where a feature's direction is orthogonal to all others."""
    world = plant(width=40)
    orthogonal = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0][:10]
    directions = orthogonal[:, None].expand(-1, 3, -1)
    rows = world.means + torch.einsum("nf,fmd->nmd", world.codes, world.strengths[:, :, None] * directions)
    world = dataclasses.replace(world, directions=directions, rows=rows)
    found = latent_scaling(world.crosscoder(), world.models(), world.corpus(60, 17))
    np.testing.assert_allclose(found.reconstruction, world.strengths.T, atol=1e-5)


def test_batches_do_not_matter(models, crosscoder, text):
    whole, parts = (latent_scaling(crosscoder, models, text, DiagnosticsConfig(batch_blocks=n)) for n in (9, 2))
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
    unknown = np.isnan(found.error).all(0)
    assert np.flatnonzero(unknown).tolist() == [3, 5]
    np.testing.assert_array_equal(unknown, np.isnan(found.reconstruction).any(0))
    assert found.fired[3] == 0


def test_bad_input_is_refused(world):
    crosscoder, models = world.crosscoder(), world.models()
    with pytest.raises(ValueError, match="reads 3 checkpoints; got 2"):
        latent_scaling(crosscoder, models[:2], world.corpus(6, 9))
    with pytest.raises(ValueError, match="give more text"):
        latent_scaling(crosscoder, models, world.corpus(3, 1))
    with pytest.raises(ValueError, match="blocks must be at least 1, not 0"):
        latent_scaling(crosscoder, models, world.corpus(6, 9), DiagnosticsConfig(blocks=0))
