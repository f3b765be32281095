"""The shapes of accuracies, the features present, and the turn of decoder directions."""

import numpy as np
import pytest

from crosstime.report.trends import (
    chance_band,
    find_turn,
    mean_similarity,
    pooled,
    population,
    positions,
    present,
    shape,
)

STEPS = [float(i) for i in range(12)]


def test_the_steepest_stretch_is_the_shortest_that_holds_half_of_the_rise():
    accuracy = np.array([0.50, 0.51, 0.62, 0.80, 0.87, 0.96])
    rise = shape(accuracy, 1000, STEPS).rise
    assert rise is not None
    assert (rise.whole.start, rise.whole.end, rise.whole.rise) == (0, 5, pytest.approx(0.46))
    assert (rise.steepest.start, rise.steepest.end, rise.steepest.rise) == (1, 3, pytest.approx(0.29))
    assert rise.emerges


def test_the_length_of_a_stretch_is_in_log_tokens():
    accuracy = np.array([0.5, 0.6, 0.7])
    rise = shape(accuracy, 1000, positions([1000, 2000, 16_000])).rise
    assert rise is not None
    assert (rise.steepest.start, rise.steepest.end) == (0, 1)


def test_a_rise_is_counted_from_its_low():
    rise = shape(np.array([0.6, 0.5, 0.8, 0.7]), 1000, STEPS).rise
    assert rise is not None
    assert (rise.whole.start, rise.whole.end) == (1, 2)


def test_noise_is_no_rise_and_no_dip():
    forms = [shape(0.5 + np.random.default_rng(i).normal(0, 0.025, 12), 400, STEPS) for i in range(40)]
    assert sum(form.rise is not None or form.dip is not None for form in forms) <= 1


def test_positions_put_zero_before_the_first_and_fall_back_on_order():
    zero, first, second = positions([0, 1000, 10_000])
    assert zero < first < second
    assert positions([None, 1000, 10_000]) == [0, 1, 2]
    assert positions([0, 0]) == [0, 1]


def test_a_dip_needs_significance_not_only_a_low_value():
    accuracy = np.array([0.50, 0.34, 0.42])
    assert shape(accuracy, 20, STEPS).dip is None
    dip = shape(accuracy, 1000, STEPS).dip
    assert dip is not None
    assert (dip.lowest, dip.accuracy, dip.recovered) == (1, 0.34, False)
    assert dip.p_value < 1e-10


def test_a_dip_that_is_made_good_is_known():
    dip = shape(np.array([0.5, 0.4, 0.7]), 1000, STEPS).dip
    assert dip is not None
    assert dip.recovered


def test_unmeasured_checkpoints_are_passed_over():
    rise = shape(np.array([np.nan, 0.5, np.nan, 0.9]), 500, STEPS).rise
    assert rise is not None
    assert (rise.whole.start, rise.whole.end) == (1, 3)
    empty = shape(np.full(3, np.nan), 500, STEPS)
    assert empty.rise is None
    assert np.isnan(empty.last)


def test_pooling_weighs_tasks_by_their_pairs():
    accuracy = np.array([[0.5, 0.8], [0.6, np.nan]])
    assert pooled(accuracy, [300, 100]) == pytest.approx([0.575, 0.6])


def test_the_chance_band_is_the_binomial_interval():
    assert chance_band(100) == pytest.approx(0.098)


def test_new_and_gone_features_add_up():
    is_present = np.random.default_rng(0).random((6, 200)) < 0.5
    counts = population(is_present)
    assert counts.present.tolist() == is_present.sum(axis=1).tolist()
    assert (counts.new[0], counts.gone[0]) == (0, 0)
    assert np.diff(counts.present).tolist() == (counts.new - counts.gone)[1:].tolist()
    assert counts.new[1] == (~is_present[0] & is_present[1]).sum()


def test_a_feature_is_present_from_three_tenths_of_an_equal_share_on():
    relative = np.array([[0.1, 0.14, 0.76], [np.nan, np.nan, np.nan]]).T
    assert present(relative).T.tolist() == [[True, True, True], [False, False, False]]
    assert present(np.array([[0.09], [0.15], [0.76]])).tolist() == [[False], [True], [True]]


def blocks(sizes, within=0.9, across=0.1):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(group[:, None] == group[None, :], within, across)


@pytest.mark.parametrize("first_after", [1, 2, 5])
def test_the_turn_is_where_the_blocks_meet(first_after):
    found = find_turn(blocks([first_after, 6 - first_after]))
    assert found is not None
    assert (found.first_after, found.within, found.across) == (first_after, pytest.approx(0.9), pytest.approx(0.1))


def test_two_checkpoints_or_unknown_cosines_have_no_turn():
    assert find_turn(np.eye(2)) is None
    unknown = blocks([2, 2])
    unknown[0, 1] = np.nan
    assert find_turn(unknown) is None


def test_the_mean_is_over_the_features_present_at_both():
    similarity = np.array(
        [[[1.0, 0.2], [0.2, 1.0]], [[1.0, 0.6], [0.6, 1.0]], [[1.0, np.nan], [np.nan, 1.0]]]
    ).transpose(1, 2, 0)
    is_present = np.array([[True, True, True], [True, False, True]])
    mean = mean_similarity(similarity, is_present)
    assert mean[0, 1] == mean[1, 0] == pytest.approx(0.2)
    assert mean[0, 0] == 1.0
    assert np.isnan(mean_similarity(similarity, np.zeros((2, 3), bool))).all()
