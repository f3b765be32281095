"""Diagnostics against planted worlds: what the sparsity penalty makes of features whose truth is known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from crosstime.attribution.relative import LIFECYCLES
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.diagnostics import LABELS, Diagnostics, complements, diagnose, label
from crosstime.evaluation.latent_scaling import scaled_decoder
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
    refuted = found.strength < 0.2
    artefact = np.array(world.label) == "artefact"
    split = np.isin(np.arange(len(artefact)), list(world.complement))
    for nu, where in ((found.nu_error, artefact & ~split), (found.nu_reconstruction, artefact & split)):
        other = found.nu_reconstruction if nu is found.nu_error else found.nu_error
        assert np.median(nu[where][refuted[where]]) > 0.8
        assert np.median(np.abs(other[where][refuted[where]])) < 0.5


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
    true = ((found.strength < 0.2) & there).any(1) & matched
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
    rows = [np.array([row]) for row in case[:3]]
    assert label(*rows, np.array([case[3]]), np.array([True])) == [case[4]]
    assert label(*rows, np.array([case[3]]), np.array([False])) == ["unclear"]


def test_complements_are_alike_and_never_at_one_checkpoint(monkeypatch):
    direction = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    present = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=bool)
    for at_once in (1, 2048):
        monkeypatch.setattr("crosstime.evaluation.diagnostics.FEATURES_AT_ONCE", at_once)
        assert complements(direction, present).tolist() == [1, 0, 0, -1, -1, -1]
    assert complements(direction, np.ones_like(present)).tolist() == [-1] * 6


@torch.no_grad()
def test_cosines_are_those_of_the_decoder_vectors_and_unknown_without_one(world):
    crosscoder = world.crosscoder()
    crosscoder.W_dec[1] = 0
    found = diagnose(crosscoder, world.models(), world.corpus(20, 9))
    i = world.features("rotating")[0]
    np.testing.assert_allclose(found.cosine[i], world.directions[i] @ world.directions[i].T, atol=1e-5)
    i = world.features("emerging")[0]  # absent at the first checkpoint
    np.testing.assert_array_equal(np.isnan(found.cosine[i]), [[True] * 3, [True, False, False], [True, False, False]])
    assert np.isnan(found.cosine[1]).all()
    assert np.isnan(found.strength[1]).all()
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
    assert table.num_rows == len(made[0].label)
    assert table["complement"].null_count == np.sum(made[1].complement < 0)
    assert set(table["reference"].to_pylist()) <= set(made[0].world.names)
