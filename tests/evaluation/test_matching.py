import copy
import dataclasses

import numpy as np
import pytest
import torch

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.matching import matched_cosines, stability


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


def test_crosscoders_of_other_comparisons_are_refused(crosscoder):
    other = Crosscoder(dataclasses.replace(crosscoder.config, features=41))
    with pytest.raises(ValueError, match="cannot be matched"):
        matched_cosines(crosscoder, other)
