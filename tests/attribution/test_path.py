"""Integration paths: the rules integrate at their order, and mean gradients are weighted as they should be."""

import numpy as np
import pytest
import torch

from crosstime.attribution.path import PATH_RULES, START, IntegrationPath, metric, metric_gradient

RIGHT, WRONG = torch.tensor([3, 50]), torch.tensor([7, 90])


@pytest.fixture
def line():
    """Where a path of two prompts begins, and its way."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, 16, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("rule", PATH_RULES.names)
def test_the_mean_gradient_is_the_weighted_sum_of_single_ones(models, line, rule):
    model, (x, change), path = models[0], line, IntegrationPath.from_rule(rule, 5)
    found = path.mean_gradient(model, metric_gradient(model, x, RIGHT, WRONG), x, change, RIGHT, WRONG)
    single = [metric_gradient(model, x + node * change, RIGHT, WRONG).gradient for node in path.nodes]
    expected = sum(weight * one for weight, one in zip(path.weights, single, strict=True))
    torch.testing.assert_close(found, expected.float())
    assert (single[0] - single[-1]).abs().max() > 0.01


def test_at_a_single_point_it_is_the_gradient_there(models, line):
    model, (x, change) = models[0], line
    clean = metric_gradient(model, x, RIGHT, WRONG)
    torch.testing.assert_close(clean.metric, metric(model, x, RIGHT, WRONG))
    assert START.mean_gradient(model, clean, x, change, RIGHT, WRONG).equal(clean.gradient)
    end = IntegrationPath.from_point(1.0).mean_gradient(model, clean, x, change, RIGHT, WRONG)
    torch.testing.assert_close(end, metric_gradient(model, x + change, RIGHT, WRONG).gradient)
    assert (START.n_gradients, IntegrationPath.from_point(1.0).n_gradients) == (0, 1)
    left = IntegrationPath.from_rule("left", 1)
    assert (left.nodes.tolist(), left.weights.tolist(), left.n_gradients) == ([0], [1], 0)


@pytest.mark.parametrize("rule", PATH_RULES.names)
@pytest.mark.parametrize("steps", [2, 5, 16])
def test_weights_sum_to_one_and_nodes_lie_on_the_path(rule, steps):
    path = IntegrationPath.from_rule(rule, steps)
    nodes, weights = path.nodes, path.weights
    assert weights.sum() == pytest.approx(1)
    assert nodes.min() >= 0
    assert nodes.max() <= 1


def test_the_left_rule_is_the_papers_ten_points():
    path = IntegrationPath.from_rule("left", 10)
    nodes, weights = path.nodes, path.weights
    np.testing.assert_allclose(nodes, np.arange(10) / 10)
    np.testing.assert_allclose(weights, 0.1)


@pytest.mark.parametrize(("rule", "order"), [("midpoint", 2), ("trapezoid", 2), ("left", 1)])
def test_doubling_the_steps_shrinks_the_error_with_the_rules_order(rule, order):
    def error(steps):
        path = IntegrationPath.from_rule(rule, steps)
        return abs(path.weights @ np.exp(path.nodes) - (np.e - 1))

    ratio = error(32) / error(64)
    assert ratio == pytest.approx(2**order, rel=0.1)


def test_gauss_legendre_is_exact_for_polynomials_up_to_twice_its_steps():
    path = IntegrationPath.from_rule("gauss-legendre", 4)
    nodes, weights = path.nodes, path.weights
    for power in range(8):
        assert weights @ nodes**power == pytest.approx(1 / (power + 1))


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        IntegrationPath.from_rule("midpoint", 0)
    with pytest.raises(ValueError, match="at least 2 steps, not 1"):
        IntegrationPath.from_rule("trapezoid", 1)
