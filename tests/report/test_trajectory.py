import numpy as np
import pytest

from crosstime.report.trajectory import chance_band, pooled, shape


def test_the_largest_rise_between_the_compared_checkpoints_is_found():
    accuracy = np.array([0.50, 0.51, 0.62, 0.80, 0.87, 0.96])
    (rise,) = shape(accuracy, 1000, grid=[2, 4, 5]).rises
    assert (rise.start, rise.end) == (2, 4)
    assert rise.rise == pytest.approx(0.25)


def test_two_rises_of_nearly_the_same_size_are_both_told():
    accuracy = np.array([0.51, 0.65, 0.66, 0.80])
    first, second = shape(accuracy, 1000, grid=[1, 2, 3]).rises
    assert (first.start, first.end, second.start, second.end) == (0, 1, 2, 3)


def test_neighbouring_rises_are_one():
    (rise,) = shape(np.array([0.5, 0.65, 0.8, 0.8]), 1000, grid=[0, 1, 2, 3]).rises
    assert (rise.start, rise.end, rise.before, rise.after) == (0, 2, 0.5, 0.8)


def test_noise_is_no_rise_and_no_dip():
    noisy = 0.5 + np.random.default_rng(0).normal(0, 0.5 / np.sqrt(400), 12)
    form = shape(noisy, 400, grid=range(12))
    assert form.rises == ()
    assert form.dip is None


def test_a_dip_needs_significance_not_only_a_low_value():
    accuracy = np.array([0.50, 0.34, 0.42])
    assert shape(accuracy, 20, [0, 1, 2]).dip is None
    dip = shape(accuracy, 1000, [0, 1, 2]).dip
    assert dip is not None
    assert (dip.lowest, dip.accuracy, dip.recovered) == (1, 0.34, False)
    assert dip.p_value < 1e-10


def test_a_dip_that_is_made_good_is_known():
    dip = shape(np.array([0.5, 0.4, 0.7]), 1000, [0, 1, 2]).dip
    assert dip is not None
    assert dip.recovered


def test_unmeasured_checkpoints_are_passed_over():
    form = shape(np.array([np.nan, 0.5, np.nan, 0.9]), 500, grid=[0, 1, 2, 3])
    assert [(s.start, s.end) for s in form.rises] == [(1, 3)]
    empty = shape(np.full(3, np.nan), 500, grid=[0, 1, 2])
    assert empty.rises == ()
    assert np.isnan(empty.last)


def test_pooling_weighs_tasks_by_their_pairs():
    accuracy = np.array([[0.5, 0.8], [0.6, np.nan]])
    assert pooled(accuracy, [300, 100]) == pytest.approx([0.575, 0.6])


def test_the_chance_band_is_the_binomial_interval():
    assert chance_band(100) == pytest.approx(0.098)
