from itertools import combinations

import numpy as np
import pytest

from crosstime.attribution.overlap import overlap


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
    with pytest.raises(ValueError, match="not of one crosscoder"):
        overlap({"a": np.ones((1, 4)), "b": np.ones((1, 5))}, ["only"])
    with pytest.raises(ValueError, match="not of one crosscoder"):
        overlap({"a": np.ones((1, 4))}, ["early", "late"])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        overlap({"a": np.ones((1, 4))}, ["only"], k=0)
