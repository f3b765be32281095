"""The rules integrate what they should, at the order they should."""

import numpy as np
import pytest

from crosstime.attribution.path_rules import nodes_and_weights

RULES = ["gauss-legendre", "midpoint", "trapezoid", "left"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 5, 16])
def test_weights_sum_to_one_and_nodes_lie_on_the_path(rule, steps):
    nodes, weights = nodes_and_weights(rule, steps)
    assert weights.sum() == pytest.approx(1)
    assert nodes.min() >= 0
    assert nodes.max() <= 1


def test_the_left_rule_is_the_papers_ten_points():
    nodes, weights = nodes_and_weights("left", 10)
    np.testing.assert_allclose(nodes, np.arange(10) / 10)
    np.testing.assert_allclose(weights, 0.1)


@pytest.mark.parametrize(("rule", "order"), [("midpoint", 2), ("trapezoid", 2), ("left", 1)])
def test_doubling_the_steps_shrinks_the_error_with_the_rules_order(rule, order):
    def error(steps):
        nodes, weights = nodes_and_weights(rule, steps)
        return abs(weights @ np.exp(nodes) - (np.e - 1))

    ratio = error(32) / error(64)
    assert ratio == pytest.approx(2**order, rel=0.1)


def test_gauss_legendre_is_exact_for_polynomials_up_to_twice_its_steps():
    nodes, weights = nodes_and_weights("gauss-legendre", 4)
    for power in range(8):
        assert weights @ nodes**power == pytest.approx(1 / (power + 1))


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        nodes_and_weights("midpoint", 0)
    with pytest.raises(ValueError, match="at least 2 steps"):
        nodes_and_weights("trapezoid", 1)
