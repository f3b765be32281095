import numpy as np
import pytest

from crosstime.attribution.evolution import evolution

IE = np.array([[0.5, -0.2, 0.0, 0.1, 0.0], [9.0, 9.0, 9.0, 9.0, 9.0], [0.3, 0.4, 0.0, -0.1, 0.2]])


def test_the_largest_and_smallest_of_both_ends_are_chosen():
    found = {e.feature: e.chosen for e in evolution(IE, k=1)}
    assert found == {
        0: ("largest at first",),
        1: ("smallest at first", "largest at last"),
        3: ("smallest at last",),
    }
    np.testing.assert_array_equal(evolution(IE, k=1)[1].ie, [-0.2, 9.0, 0.4])


def test_a_feature_without_an_effect_or_with_the_other_sign_is_in_no_group():
    found = {e.feature: e.chosen for e in evolution(IE, k=5)}
    assert 2 not in found
    assert found[0] == ("largest at first", "largest at last")
    assert found[4] == ("largest at last",)
    assert [name for name in found[3] if "last" in name] == ["smallest at last"]


def test_nothing_cannot_be_asked_for():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        evolution(IE, k=0)
