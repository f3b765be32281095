"""A path takes the weighted gradients of its rule, in one pass, and ends where it should."""

import pytest
import torch

from crosstime.attribution.integration import Path, metric, slope
from crosstime.attribution.path_rules import nodes_and_weights

RIGHT, WRONG = torch.tensor([3, 50]), torch.tensor([7, 90])


@pytest.fixture
def line():
    """Where a path of two prompts begins, and its way."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, 16, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("rule", ["gauss-legendre", "midpoint", "trapezoid", "left"])
def test_the_mean_gradient_is_the_weighted_sum_of_single_ones(models, line, rule):
    model, (x, change) = models[0], line
    found = Path.of(rule, 5).integrate(model, slope(model, x, RIGHT, WRONG), x, change, RIGHT, WRONG)
    single = [slope(model, x + node * change, RIGHT, WRONG).gradient for node in nodes_and_weights(rule, 5)[0]]
    expected = sum(weight * one for weight, one in zip(nodes_and_weights(rule, 5)[1], single, strict=True))
    torch.testing.assert_close(found.gradient, expected.float())
    torch.testing.assert_close(found.metric, metric(model, x + change, RIGHT, WRONG))
    assert (single[0] - single[-1]).abs().max() > 0.01


def test_one_left_step_is_the_gradient_where_the_path_begins(models, line):
    model, (x, change) = models[0], line
    clean = slope(model, x, RIGHT, WRONG)
    found = Path.of("left", 1).integrate(model, clean, x, change, RIGHT, WRONG)
    torch.testing.assert_close(found.gradient, clean.gradient)
    torch.testing.assert_close(found.metric, metric(model, x + change, RIGHT, WRONG))
    torch.testing.assert_close(clean.metric, metric(model, x, RIGHT, WRONG))
