import copy
import dataclasses

import numpy as np
import pytest
import torch

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.quality import Quality
from crosstime.evaluation.seeds import matched_cosines, over_seeds, stability


def quality(l0, dead, explained, spliced):
    return Quality(
        checkpoints=["early", "late"],
        n_tokens=100,
        l0=l0,
        dead=dead,
        frequency=np.ones(8),
        explained_variance=np.array(explained),
        ce_clean=np.array([3.0, 2.0]),
        ce_spliced=np.array(spliced),
        ce_zero=np.array([5.0, 6.0]),
    )


QUALITIES = [
    quality(10.0, 1, [0.9, 0.8], [3.001, 2.5]),
    quality(11.0, 2, [0.9, 0.7], [3.002, 2.5]),
    quality(13.5, 6, [0.9, 0.6], [3.004, 2.5]),
]


def test_means_and_standard_deviations_of_the_sample_are_of_unrounded_values():
    found = over_seeds(QUALITIES)
    assert found.checkpoints == ["early", "late"]
    assert found.mean["l0"] == pytest.approx(11.5)
    assert found.std["l0"] == pytest.approx(np.sqrt((1.5**2 + 0.5**2 + 2**2) / 2))
    assert found.mean["dead"] == pytest.approx(3)
    np.testing.assert_allclose(found.mean["explained_variance"], [0.9, 0.7])
    np.testing.assert_allclose(found.std["explained_variance"], [0, 0.1], atol=1e-12)
    # Rounded to two digits first, as the paper's code does, the mean would be 0 and the deviation too.
    np.testing.assert_allclose(found.mean["delta_ce"], [0.007 / 3, 0.5])
    np.testing.assert_allclose(found.std["delta_ce"], [np.std([0.001, 0.002, 0.004], ddof=1), 0], atol=1e-12)
    np.testing.assert_allclose(found.mean["loss_recovered"], [1 - 0.0035 / 3, 0.875])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoints": ["early", "later"]}, "checkpoints"),
        ({"frequency": np.ones(9)}, "number of features 8 and 9"),
        ({"n_tokens": 99}, "held-out tokens 100 and 99"),
    ],
)
def test_crosscoders_that_differ_in_more_than_their_seed_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        over_seeds([QUALITIES[0], dataclasses.replace(QUALITIES[1], **change)])


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="at least 2 crosscoders; got 1"):
        over_seeds(QUALITIES[:1])


def shuffled(crosscoder, noise=0.0):
    """The same features in another order, with other strengths of code and decoder, and other scale factors."""
    other = copy.deepcopy(crosscoder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        order = torch.randperm(len(other.W_dec), generator=generator)
        strength = torch.rand(len(order), 1, 1, generator=generator) + 0.5
        other.W_dec.copy_(crosscoder.W_dec[order] * strength)
        other.W_dec.add_(noise * torch.randn(other.W_dec.shape, generator=generator))
        other.scale *= 3
    return other


def test_the_same_features_in_another_order_match_exactly(crosscoder):
    other = shuffled(crosscoder)
    np.testing.assert_allclose(matched_cosines(crosscoder, other), 1, atol=1e-5)
    np.testing.assert_allclose(matched_cosines(crosscoder, other.fold()), 1, atol=1e-5)


def test_partners_are_one_to_one(crosscoder):
    """All features of one are alike: only one of them can be the partner of each of the other's."""
    uniform = copy.deepcopy(crosscoder)
    with torch.no_grad():
        uniform.W_dec.copy_(crosscoder.W_dec[:1].expand_as(uniform.W_dec))
    found = matched_cosines(uniform, crosscoder)
    assert np.sum(found > 0.99) == 1


def test_stability_is_the_mean_over_all_pairs(crosscoder):
    others = [crosscoder, shuffled(crosscoder), shuffled(crosscoder, noise=0.1)]
    pairs = [matched_cosines(others[a], others[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert stability(others) == pytest.approx(np.mean(pairs))
    assert 0.3 < stability(others) < 0.99


def test_crosscoders_of_other_sizes_are_not_matched(crosscoder):
    other = Crosscoder(dataclasses.replace(crosscoder.config, features=41))
    with pytest.raises(ValueError, match="can't match"):
        matched_cosines(crosscoder, other)
