"""Integration paths: a task's metric, and its gradients on a straight line in the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.base.registry import Registry
from crosstime.models.split import SplitLM


@dataclass(frozen=True)
class MetricGradient:
    """The metric of some prompts, and its gradient with respect to their residual streams."""

    gradient: Float[Tensor, "B S D"]
    metric: Float[Tensor, " B"]


def metric(
    model: SplitLM, x: Float[Tensor, "B S D"], right: Int[Tensor, " B"], wrong: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Return logit(wrong) - logit(right) at the last position, given residual streams."""
    last = torch.full((len(x),), x.shape[1] - 1, device=model.device)
    answers = torch.stack([wrong, right], dim=1).to(model.device)
    logits = model.upper(x.to(model.device), positions=last, tokens=answers).to(x)
    return logits[:, 0] - logits[:, 1]


@torch.enable_grad()
def metric_gradient(
    model: SplitLM, x: Float[Tensor, "B S D"], right: Int[Tensor, " B"], wrong: Int[Tensor, " B"]
) -> MetricGradient:
    """Return the metric at residual streams, and its gradient there."""
    leaf = x.detach().requires_grad_()
    value = metric(model, leaf, right, wrong)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return MetricGradient(gradient, value.detach())


Quadrature = tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]
"""Nodes in [0, 1], and their weights, which sum to 1."""


@dataclass(frozen=True)
class PathRule:
    """A quadrature rule: at which points of the path gradients are taken, and how they are weighted."""

    name: str
    quadrature: Callable[[int], Quadrature]
    """Nodes and weights for a number of steps."""
    min_steps: int = 1


PATH_RULES: Registry[PathRule] = Registry("path rule")


def _gauss_legendre(steps: int) -> Quadrature:
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def _trapezoid(steps: int) -> Quadrature:
    weights = np.full(steps, 1 / (steps - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights


# The error falls with K steps as K^-2K for a smooth path (Gauss-Legendre), as K^-2 (midpoint, trapezoid) or as K^-1
# (left, the paper's rule).
PATH_RULES.add(PathRule("gauss-legendre", _gauss_legendre))
PATH_RULES.add(PathRule("midpoint", lambda steps: ((np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps))))
PATH_RULES.add(PathRule("trapezoid", _trapezoid, min_steps=2))
PATH_RULES.add(PathRule("left", lambda steps: (np.arange(steps) / steps, np.full(steps, 1 / steps))))


@dataclass(frozen=True, eq=False)
class IntegrationPath:
    """Points on the line from a residual stream (0) to its baseline (1), and their weights in a mean gradient.

    Example:
        >>> import crosstime as ct
        >>> ct.IntegrationPath.from_rule("midpoint", 2).nodes.tolist(), ct.IntegrationPath.from_point(1.0).n_gradients
        ([0.25, 0.75], 1)
    """

    nodes: Float[np.ndarray, " K"]
    weights: Float[np.ndarray, " K"]

    @classmethod
    def from_rule(cls, rule: str, steps: int) -> IntegrationPath:
        """Place the nodes by a registered rule.

        Raises:
            InputError: The rule is unknown, or needs more steps.
        """
        least = PATH_RULES[rule].min_steps
        if steps < least:
            raise InputError(f"the {rule} rule needs at least {least} step{'s' * (least > 1)}, not {steps}")
        return cls(*PATH_RULES[rule].quadrature(steps))

    @classmethod
    def from_point(cls, node: float) -> IntegrationPath:
        """Take the gradient at a single point only: 0 is the start, 1 the end."""
        return cls(np.array([node]), np.ones(1))

    @property
    def n_gradients(self) -> int:
        """Number of gradients to compute besides the one at the start."""
        return int((self.nodes > 0).sum())

    def mean_gradient(
        self,
        model: SplitLM,
        start: MetricGradient,
        x: Float[Tensor, "B S D"],
        displacement: Float[Tensor, "B S D"],
        right: Int[Tensor, " B"],
        wrong: Int[Tensor, " B"],
    ) -> Float[Tensor, "B S D"]:
        """Return the weighted mean of the gradients from x to x + displacement, all nodes in one pass.

        Args:
            model: One checkpoint.
            start: Metric and gradient at x, where the path begins.
            x: Residual streams.
            displacement: The end of the path minus x.
            right: Token ids of the right answers.
            wrong: Token ids of the wrong answers.
        """
        later = self.nodes > 0
        gradient = self.weights[~later].sum() * start.gradient
        nodes, weights = (torch.from_numpy(values[later]).to(x) for values in (self.nodes, self.weights))
        if len(nodes):
            on_path = (x + nodes[:, None, None, None] * displacement).flatten(0, 1)
            found = metric_gradient(model, on_path, right.repeat(len(nodes)), wrong.repeat(len(nodes)))
            gradient = gradient + torch.einsum("k,kbsd->bsd", weights, found.gradient.unflatten(0, (-1, len(x))))
        return gradient


START = IntegrationPath.from_point(0.0)
"""The gradient of the unmodified model only."""
