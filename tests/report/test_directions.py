import numpy as np
import pytest

from crosstime.report.directions import mean_similarity, turn


def blocks(sizes, within=0.9, across=0.1):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(group[:, None] == group[None, :], within, across)


@pytest.mark.parametrize("first_after", [1, 2, 5])
def test_the_turn_is_where_the_blocks_meet(first_after):
    found = turn(blocks([first_after, 6 - first_after]))
    assert found is not None
    assert (found.first_after, found.within, found.across) == (first_after, pytest.approx(0.9), pytest.approx(0.1))


def test_two_checkpoints_or_unknown_cosines_have_no_turn():
    assert turn(np.eye(2)) is None
    unknown = blocks([2, 2])
    unknown[0, 1] = np.nan
    assert turn(unknown) is None


def test_the_mean_is_over_the_features_present_at_both():
    similarity = np.array([[[1.0, 0.2], [0.2, 1.0]], [[1.0, 0.6], [0.6, 1.0]], [[1.0, np.nan], [np.nan, 1.0]]])
    there = np.array([[True, True, True], [True, False, True]])
    mean = mean_similarity(similarity, there)
    assert mean[0, 1] == mean[1, 0] == pytest.approx(0.2)
    assert mean[0, 0] == 1.0
    assert np.isnan(mean_similarity(similarity, np.zeros((2, 3), bool))).all()
