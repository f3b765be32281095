"""The gradients of a task's metric on a straight path of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.analysis.path_rules import PathRule, nodes_and_weights
from crosstime.lm.split import SplitLM


@dataclass(frozen=True)
class Slopes:
    """What integrating along the path gives for one batch at one checkpoint."""

    clean: Float[Tensor, "B S D"]
    """Gradient of the metric where the path begins."""
    mean: Float[Tensor, "B S D"]
    """Mean gradient of the metric along the path."""
    metric_clean: Float[Tensor, " B"]
    """The metric where the path begins: of the model as it is."""
    metric_end: Float[Tensor, " B"]


@dataclass(frozen=True)
class Path:
    """Points on a path and their weights in its integral; the first and the last one are its ends."""

    nodes: Float[Tensor, " K"]
    weights: Float[Tensor, " K"]

    @classmethod
    def of(cls, rule: PathRule, steps: int) -> Path:
        """The rule's nodes, and both ends; where the rule has no node at an end, only the metric is read there.

        `of("left", 1)` takes the gradient where the path begins and nowhere else.

        Raises:
            ValueError: an unknown rule, or fewer steps than it needs.
        """
        nodes, weights = (torch.from_numpy(array).double() for array in nodes_and_weights(rule, steps))
        inside = (nodes > 0) & (nodes < 1)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        first, last = ((weights * (nodes == end)).sum()[None] for end in ends)
        return cls(
            torch.cat([ends[:1], nodes[inside], ends[1:]]),
            torch.cat([first, weights[inside], last]),
        )

    @torch.enable_grad()
    def integrate(
        self,
        model: SplitLM,
        x: Float[Tensor, "B S D"],
        change: Float[Tensor, "B S D"],
        right: Int[Tensor, " B"],
        wrong: Int[Tensor, " B"],
    ) -> Slopes:
        """Gradients of logit(wrong) - logit(right) at the last position, on the line from x to x + change."""
        batch, length = x.shape[:2]
        nodes, weights = (values.to(x.dtype).to(x.device) for values in (self.nodes, self.weights))
        at = (x + nodes[:, None, None, None] * change).flatten(0, 1).requires_grad_()
        last = torch.full((len(at),), length - 1, device=model.device)
        logits = model.upper(at.to(model.device), positions=last).to(x.dtype).unflatten(0, (-1, batch))
        rows, right, wrong = (index.to(logits.device) for index in (torch.arange(batch), right, wrong))
        metric = logits[:, rows, wrong] - logits[:, rows, right]
        (gradient,) = torch.autograd.grad(metric.sum(), at)
        gradient = gradient.unflatten(0, (-1, batch))
        metric = metric.detach().to(x.device)
        return Slopes(gradient[0], torch.einsum("k,kbsd->bsd", weights, gradient), metric[0], metric[-1])
