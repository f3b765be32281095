import numpy as np

from crosstime.report.population import population, present


def test_arrivals_and_departures_add_up():
    there = np.random.default_rng(0).random((6, 200)) < 0.5
    counts = population(there)
    assert counts.present.tolist() == there.sum(axis=1).tolist()
    assert (counts.arrived[0], counts.left[0]) == (0, 0)
    assert np.diff(counts.present).tolist() == (counts.arrived - counts.left)[1:].tolist()
    assert counts.arrived[1] == (~there[0] & there[1]).sum()


def test_a_feature_is_present_from_three_tenths_of_an_equal_share_on():
    relative = np.array([[0.1, 0.14, 0.76], [np.nan, np.nan, np.nan]]).T
    assert present(relative).T.tolist() == [[True, True, True], [False, False, False]]
    assert present(np.array([[0.09], [0.15], [0.76]])).tolist() == [[False], [True], [True]]
