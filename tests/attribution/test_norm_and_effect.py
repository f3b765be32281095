import numpy as np
import pytest

from crosstime.attribution.norm_and_effect import norm_and_effect
from crosstime.attribution.relative import relative

REL_DEC = np.array([[0.1, 0.3, 0.6, 0.8, 0.5], [0.9, 0.7, 0.4, 0.2, 0.5]])
IE = np.array([[0.0, 0.2, -0.3, 0.4, 0.0], [0.9, -0.4, 0.2, 0.1, 0.0]])


def test_norms_that_follow_the_effects_correlate_with_them():
    found = norm_and_effect(REL_DEC, IE)
    assert found.features.tolist() == [0, 1, 2, 3]  # the last has no effect
    np.testing.assert_allclose(found.rel_ie, relative(IE)[:, :4])
    np.testing.assert_array_equal(found.rel_dec, REL_DEC[:, :4])
    np.testing.assert_allclose(found.correlation, [1, 1])
    np.testing.assert_allclose(norm_and_effect(REL_DEC[:, [3, 2, 1, 0, 4]], IE).correlation, [-1, -1])


def test_the_strongest_at_any_checkpoint_are_taken():
    assert norm_and_effect(REL_DEC, IE, k=1).features.tolist() == [0, 3]
    assert norm_and_effect(REL_DEC, IE, k=None).features.tolist() == [0, 1, 2, 3]


def test_without_variation_there_is_no_correlation():
    assert np.isnan(norm_and_effect(np.full((2, 5), 0.5), IE).correlation).all()
    assert np.isnan(norm_and_effect(REL_DEC, np.zeros((2, 5))).correlation).all()
    with pytest.raises(ValueError, match="at least 1, or None"):
        norm_and_effect(REL_DEC, IE, k=0)


def test_features_without_a_decoder_do_not_count():
    rel_dec = REL_DEC.copy()
    rel_dec[:, 1] = np.nan
    np.testing.assert_allclose(norm_and_effect(rel_dec, IE).correlation, [1, 1])
