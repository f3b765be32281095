"""Comparisons: the strongest effects over training, the overlap of tasks, and RelDec against RelIE."""

from itertools import combinations

import numpy as np
import pytest

from crosstime.attribution.comparisons import evolution, norm_and_effect, overlap
from crosstime.attribution.relative import relative

EVOLVING = np.array([[0.5, -0.2, 0.0, 0.1, 0.0], [9.0, 9.0, 9.0, 9.0, 9.0], [0.3, 0.4, 0.0, -0.1, 0.2]])


def test_the_largest_and_smallest_of_both_ends_are_chosen():
    found = {e.feature: e.groups for e in evolution(EVOLVING, k=1)}
    assert found == {
        0: ("largest at first",),
        1: ("smallest at first", "largest at last"),
        3: ("smallest at last",),
    }
    np.testing.assert_array_equal(evolution(EVOLVING, k=1)[1].ie, [-0.2, 9.0, 0.4])


def test_a_feature_without_an_effect_or_with_the_other_sign_is_in_no_group():
    found = {e.feature: e.groups for e in evolution(EVOLVING, k=5)}
    assert 2 not in found
    assert found[0] == ("largest at first", "largest at last")
    assert found[4] == ("largest at last",)
    assert [name for name in found[3] if "last" in name] == ["smallest at last"]


def test_nothing_cannot_be_asked_for():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        evolution(EVOLVING, k=0)


def test_tops_are_compared_task_by_task_at_each_checkpoint():
    a = np.array([[3.0, -2.0, 1.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.0, 0.0]])
    b = np.array([[-3.0, 1.0, 2.0, 0.5, 0.0], [0.0, 0.0, 0.0, -1.0, 0.0]])
    found = overlap({"a": a, "b": b}, ["early", "late"], k=2)
    assert found.tasks == ["a", "b"]
    np.testing.assert_array_equal(found.size, [[2, 2], [2, 1]])
    np.testing.assert_array_equal(found.shared, [[[2, 1], [1, 2]], [[2, 0], [0, 1]]])
    np.testing.assert_allclose(found.jaccard, [[[1, 1 / 3], [1 / 3, 1]], [[1, 0], [0, 1]]])
    # Four features have an effect on either task, at both checkpoints; the fifth has none.
    np.testing.assert_allclose(found.expected, [[[np.nan, 1], [1, np.nan]], [[np.nan, 0.5], [0.5, np.nan]]])
    assert found.p_value[1, 0, 1] == 1


def test_the_p_value_is_the_share_of_all_draws():
    """Of the 6 features with an effect every pair of tops of 3 is enumerated."""
    a = np.array([[6.0, 5, 4, 3, 2, 0, 0, 0]])
    b = np.array([[6.0, 5, 0, 0, 0, 4, 0, 0]])
    found = overlap({"a": a, "b": b}, ["only"], k=3)
    drawn = [len({0, 1, 2} & set(top)) for top in combinations(range(6), 3)]
    assert found.shared[0, 0, 1] == 2
    assert found.p_value[0, 0, 1] == pytest.approx(np.mean([n >= 2 for n in drawn]))
    assert found.expected[0, 0, 1] == pytest.approx(np.mean(drawn))


def test_independent_effects_share_what_chance_does():
    rng = np.random.default_rng(0)
    ie = {f"task {t}": rng.normal(size=(1, 400)) for t in range(30)}
    found = overlap(ie, ["only"], k=40)
    pairs = ~np.eye(30, dtype=bool)
    assert found.shared[0][pairs].mean() == pytest.approx(found.expected[0][pairs].mean(), rel=0.05)
    assert np.mean(found.p_value[0][pairs] < 0.05) < 0.07


def test_a_task_without_effects_shares_nothing():
    found = overlap({"a": np.zeros((1, 4)), "b": np.zeros((1, 4)), "c": np.ones((1, 4))}, ["only"], k=2)
    assert found.size.tolist() == [[0, 0, 2]]
    assert np.isnan(found.jaccard[0, 0, 1])
    assert found.expected[0, 0, 1] == 0
    assert found.p_value[0, 0, 1:].tolist() == [1, 1]


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="aren't of one crosscoder"):
        overlap({"a": np.ones((1, 4)), "b": np.ones((1, 5))}, ["only"])
    with pytest.raises(ValueError, match="aren't of one crosscoder"):
        overlap({"a": np.ones((1, 4))}, ["early", "late"])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        overlap({"a": np.ones((1, 4))}, ["only"], k=0)


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
    with pytest.raises(ValueError, match="at least 1, not 0"):
        norm_and_effect(REL_DEC, IE, k=0)


def test_features_without_a_decoder_do_not_count():
    rel_dec = REL_DEC.copy()
    rel_dec[:, 1] = np.nan
    np.testing.assert_allclose(norm_and_effect(rel_dec, IE).correlation, [1, 1])
