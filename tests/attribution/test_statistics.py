"""Rank correlation against scipy's."""

import numpy as np
import pytest
from scipy import stats

from crosstime.attribution.statistics import spearman


def test_it_is_scipys_with_ties_row_by_row():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 5, 30)).astype(float)
    found = spearman(x, y)
    assert found.shape == (5,)
    for row in range(5):
        assert found[row] == pytest.approx(stats.spearmanr(x[row], y[row]).statistic)


def test_where_nothing_can_be_ranked_it_is_nan():
    assert np.isnan(spearman(np.ones((1, 4)), np.arange(4.0)[None])).all()
    assert np.isnan(spearman(np.zeros((2, 0)), np.zeros((2, 0)))).all()
    assert np.isnan(spearman(np.ones((2, 1)), np.ones((2, 1)))).all()
