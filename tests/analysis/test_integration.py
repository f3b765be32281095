"""A path keeps what its rule integrates, begins and ends where it should, and visits no point twice."""

import pytest
import torch

from crosstime.analysis.integration import Path
from crosstime.analysis.path_rules import nodes_and_weights


@pytest.mark.parametrize("rule", ["gauss-legendre", "midpoint", "trapezoid", "left"])
def test_a_path_is_its_rule_with_both_ends(rule):
    nodes, weights = nodes_and_weights(rule, 5)
    path = Path.of(rule, 5)
    assert path.nodes[0] == 0
    assert path.nodes[-1] == 1
    assert (path.nodes.diff() > 0).all()
    for power in range(4):
        assert (path.weights * path.nodes**power).sum() == pytest.approx(weights @ nodes**power)


def test_one_left_step_is_the_gradient_where_the_path_begins():
    path = Path.of("left", 1)
    torch.testing.assert_close(path.nodes, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(path.weights, torch.tensor([1.0, 0.0], dtype=torch.float64))
