"""One optimisation step: the loss of a sparsity rule, with its gradients written out.

Writing them by hand keeps only the codes and their gradient in memory, and makes the products the whole cost.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rule import Progress, count_active
from crosstime.crosscoder.sparsity.topk import Reviving
from crosstime.training.auxiliary import add_auxiliary_gradients

SMALLEST_NORM = 1e-12
"""What stands for the norm of a decoder vector of less, by which a gradient is divided."""


@dataclass
class StepStats:
    """What a step measured, as tensors on the device: reading them is what would wait for it."""

    squared_error: Float[Tensor, " M"]
    """Mean over rows of ||xhat_m - x_m||^2, in scaled units."""
    variance: Float[Tensor, " M"]
    """Mean over rows of ||x_m - batch mean||^2, in scaled units."""
    penalty: Float[Tensor, ""]
    """What the sparsity rule adds to the loss."""
    auxiliary: Float[Tensor, ""]
    """What dead features add to the loss."""
    l0: Float[Tensor, ""]
    """Mean over rows of the number of features that fire."""
    taken: Float[Tensor, ""]
    """1; or 0 where the step was not taken because its gradient was not finite, and then all else is 0 too."""

    def only_if(self, taken: Bool[Tensor, ""]) -> StepStats:
        """These, or zeros where no step was taken."""
        return StepStats(**{f.name: torch.where(taken, getattr(self, f.name), 0.0) for f in fields(self)})


@torch.no_grad()
def gradients(
    crosscoder: Crosscoder,
    x: Float[Tensor, "B W"],
    progress: Progress,
    products: torch.dtype,
    idle: Int[Tensor, " F"],
) -> StepStats:
    """Set the gradients of mean_b sum_m ||xhat_m - x_m||^2 + what the sparsity rule adds (arXiv 2509.05291 for L1).

    Args:
        crosscoder: its parameters' `.grad` are replaced; a threshold that its rule measures moves.
        x: scaled activations of all checkpoints side by side, W = M D.
        progress: which step of how many.
        products: precision of the matrix products.
        idle: rows since each feature last fired; brought up to date.
    """
    rule, norms = crosscoder.config.sparsity, crosscoder.decoder_norms()
    batch, shape = len(x), crosscoder.b_dec.shape
    x_low = x.to(products)
    w_enc = crosscoder.W_enc.flatten(0, 1).to(products)
    w_dec = crosscoder.W_dec.flatten(1).to(products)

    h = _product(x_low, w_enc, crosscoder.b_enc.to(products)).relu_()
    codes = rule.codes(h, norms, crosscoder.threshold, progress)
    # One group of columns of the decoder a matrix of codes: all checkpoints together, or each by itself.
    written = [f.to(products) for f in codes.written]
    columns = w_dec.chunk(len(written), dim=1)
    centred = x - crosscoder.b_dec.flatten()
    error = _side_by_side([f @ w for f, w in zip(written, columns, strict=True)]) - centred

    error_gradient = (error * (2 / batch)).to(products)
    error_columns = error_gradient.chunk(len(written), dim=1)
    slope = None if codes.slope is None else codes.slope.to(products)
    h_gradient, norms_gradient, threshold_gradient = codes.backward(
        [_product(e, w.T, slope) for e, w in zip(error_columns, columns, strict=True)]
    )
    h_gradient = h_gradient.to(products)

    _set_gradient(crosscoder.b_dec, error.sum(0) * (2 / batch))
    _set_gradient(crosscoder.b_enc, h_gradient.sum(0))
    _set_gradient(crosscoder.W_enc, x_low.T @ h_gradient)
    w_dec_gradient = _side_by_side([f.T @ e for f, e in zip(written, error_columns, strict=True)])
    _set_gradient(crosscoder.W_dec, w_dec_gradient)
    if norms_gradient is not None and crosscoder.W_dec.grad is not None:
        # A penalty on norms pulls each decoder vector along itself; a vector of norm 0 has no such direction.
        pull = norms_gradient / norms.clamp_min(SMALLEST_NORM)
        crosscoder.W_dec.grad.addcmul_(crosscoder.W_dec, pull[:, :, None])
    if threshold_gradient is not None and crosscoder.threshold is not None:
        crosscoder.threshold.grad = threshold_gradient

    idle.add_(batch).masked_fill_(codes.sums > 0, 0)
    crosscoder.measure_threshold(codes.shared, progress)
    auxiliary = _revive(crosscoder, x, -error, h, idle, progress, products)
    return StepStats(
        squared_error=_mean_square(error, shape),
        # About b_dec, which is near the mean, so that nothing is lost in the difference.
        variance=_mean_square(centred, shape) - centred.mean(0).unflatten(0, shape).square().sum(1),
        penalty=codes.penalty,
        auxiliary=auxiliary,
        l0=count_active(codes.shared) / batch,
        taken=torch.ones_like(codes.penalty),
    )


def _revive(
    crosscoder: Crosscoder,
    x: Float[Tensor, "B W"],
    left_over: Float[Tensor, "B W"],
    h: Float[Tensor, "B F"],
    idle: Int[Tensor, " F"],
    progress: Progress,
    products: torch.dtype,
) -> Float[Tensor, ""]:
    """The auxiliary loss, its gradients added, where the rule has one and there was time to die."""
    rule, rows = crosscoder.config.sparsity, (progress.step + 1) * len(x)
    if not isinstance(rule, Reviving) or not rule.aux_weight or rule.dead_tokens > rows:
        return left_over.new_zeros(())
    dead, k = idle >= rule.dead_tokens, rule.aux_k or crosscoder.config.width // 2
    return add_auxiliary_gradients(crosscoder, x, left_over, h, dead, k=k, weight=rule.aux_weight, products=products)


def _product(
    a: Float[Tensor, "B W"], b: Float[Tensor, "W F"], bias: Float[Tensor, " F"] | None
) -> Float[Tensor, "B F"]:
    # Adding in place is cheaper than addmm, which first fills its output with the bias.
    return a @ b if bias is None else (a @ b).add_(bias)


def _mean_square(values: Float[Tensor, "B W"], shape: torch.Size) -> Float[Tensor, " M"]:
    """Mean over rows of the squared norm at each checkpoint."""
    return values.unflatten(1, shape).norm(dim=-1).square().mean(0)


def _set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Into the memory of the gradient before it: on a CPU, to get memory anew costs more than to write into it."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    parameter.grad.copy_(gradient.view_as(parameter))


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
