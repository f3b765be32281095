"""The gradients of a task's metric on a straight path of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.attribution.path_rules import PathRule, nodes_and_weights
from crosstime.models.split import SplitLM


@dataclass(frozen=True)
class Slope:
    """A gradient of the metric, and the metric."""

    gradient: Float[Tensor, "B S D"]
    metric: Float[Tensor, " B"]


def metric(
    model: SplitLM, x: Float[Tensor, "B S D"], right: Int[Tensor, " B"], wrong: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """logit(wrong) - logit(right) at the last position, from residual streams."""
    last = torch.full((len(x),), x.shape[1] - 1, device=model.device)
    answers = torch.stack([wrong, right], dim=1).to(model.device)
    logits = model.upper(x.to(model.device), positions=last, tokens=answers).to(x)
    return logits[:, 0] - logits[:, 1]


@torch.enable_grad()
def slope(model: SplitLM, x: Float[Tensor, "B S D"], right: Int[Tensor, " B"], wrong: Int[Tensor, " B"]) -> Slope:
    """The metric at residual streams, and its gradient there."""
    leaf = x.detach().requires_grad_()
    found = metric(model, leaf, right, wrong)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    return Slope(gradient, found.detach())


@dataclass(frozen=True)
class Path:
    """Points on a path from 0 to 1, and their weights in its integral."""

    nodes: Float[np.ndarray, " K"]
    weights: Float[np.ndarray, " K"]

    @classmethod
    def of(cls, rule: PathRule, steps: int) -> Path:
        """The rule's nodes; `of("left", 1)` takes the gradient where the path begins and nowhere else.

        Raises:
            InputError: an unknown rule, or fewer steps than it needs.
        """
        return cls(*nodes_and_weights(rule, steps))

    @property
    def gradients(self) -> int:
        """How many are taken: one where the path begins, and one at every later node."""
        return 1 + int((self.nodes > 0).sum())

    def integrate(
        self,
        model: SplitLM,
        clean: Slope,
        x: Float[Tensor, "B S D"],
        change: Float[Tensor, "B S D"],
        right: Int[Tensor, " B"],
        wrong: Int[Tensor, " B"],
    ) -> Slope:
        """The mean gradient on the line from x to x + change, all its points in one pass, and the metric at its end.

        `clean` is the slope at x, where the path begins.
        """
        later = self.nodes > 0
        gradient = self.weights[~later].sum() * clean.gradient
        nodes, weights = (torch.from_numpy(values[later]).to(x) for values in (self.nodes, self.weights))
        if len(nodes):
            at = (x + nodes[:, None, None, None] * change).flatten(0, 1)
            slopes = slope(model, at, right.repeat(len(nodes)), wrong.repeat(len(nodes)))
            gradient = gradient + torch.einsum("k,kbsd->bsd", weights, slopes.gradient.unflatten(0, (-1, len(x))))
        with torch.no_grad():
            return Slope(gradient, metric(model, x + change, right, wrong))
