"""RelIE and RelDec: the paper's cases, any number of checkpoints, and classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crosstime.analysis.relative import lifecycle, negligible, relative, sharing

NAMES = ["A", "B", "C"]


def _rel(*rows):
    return relative(np.array(rows, dtype=np.float64).T)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.2, 0.3, 0.5), (0.2, 0.3, 0.5)),
        ((1, 1, 2), (0.25, 0.25, 0.5)),
        ((0, 0, 2), (0, 0, 1)),
        ((-1, 3, 0), (0.25, 0.75, 0)),
        ((1, 3), (0.25, 0.75)),
    ],
)
def test_relative_is_the_share_of_the_absolute_values(values, expected):
    np.testing.assert_allclose(_rel(values)[0], expected)


def test_no_effect_anywhere_is_undefined_not_shared():
    assert np.isnan(_rel((0, 0, 0))).all()


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 8), st.just(5)), elements=st.floats(-1e3, 1e3, width=32)),
    st.floats(0.1, 10),
)
def test_rows_sum_to_one_and_units_do_not_matter(values, factor):
    rel = relative(values)
    defined = np.abs(values).sum(0) > 0
    np.testing.assert_allclose(rel[defined].sum(1), 1)
    assert np.isnan(rel[~defined]).all()
    np.testing.assert_allclose(relative(values * factor), rel, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((0.1, 0.1, 0.8), "specific:C"),
        ((0.7, 0.3, 0.0), "shared:A+B"),  # exactly .7 is not specific, exactly .3 is shared: the paper's bounds
        ((0.34, 0.33, 0.33), "shared:A+B+C"),
        ((0.4, 0.1, 0.5), "shared:A+C"),
        ((0.65, 0.2, 0.15), "other"),
        ((np.nan, np.nan, np.nan), "undefined"),
    ],
)
def test_classes(row, expected):
    assert sharing(np.array([row]), np.array([False]), NAMES) == [expected]


def test_with_two_checkpoints_the_classes_are_the_papers():
    rel = np.array([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5], [0.2, 0.8]])
    assert sharing(rel, np.zeros(4, bool), ["A", "B"]) == ["specific:A", "shared:A+B", "shared:A+B", "specific:B"]


def test_an_equal_share_of_many_checkpoints_is_shared_by_all():
    names = [f"c{i}" for i in range(8)]
    assert sharing(np.full((1, 8), 1 / 8), np.array([False]), names) == ["shared:" + "+".join(names)]


def test_lifecycles():
    rel = np.array(
        [[0.02, 0.28, 0.7], [0.3, 0.3, 0.4], [0.9, 0.1, 0], [0.05, 0.9, 0.05], [np.nan] * 3, [0.3, 0.3, 0.4]]
    )
    small = np.array([False, False, False, False, False, True])
    expected = ["emerged", "maintained", "dropped", "transient", "undefined", "negligible"]
    assert lifecycle(rel, small) == expected


def test_an_effect_is_negligible_only_if_it_is_so_at_every_checkpoint():
    ie = np.array([[100.0, 0.01, 0.01], [1.0, 0.5, 0.0001]])
    assert negligible(ie, 1e-3).tolist() == [False, False, True]
