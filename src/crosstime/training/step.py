"""One optimisation step: the loss of a sparsity rule, with its gradients written out.

Writing them by hand keeps only the codes and their gradient in memory, and makes the products the whole cost.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rule import Progress, count_active
from crosstime.crosscoder.sparsity.scratch import Scratch
from crosstime.crosscoder.sparsity.topk import Reviving
from crosstime.training.auxiliary import add_auxiliary_gradients
from crosstime.training.matmul import Products, product

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
    matmul_dtype: torch.dtype,
    tokens_since_fired: Int[Tensor, " F"],
    scratch: Scratch,
) -> StepStats:
    """Set the gradients of mean_b sum_m ||xhat_m - x_m||^2 + what the sparsity rule adds (arXiv 2509.05291 for L1).

    Args:
        crosscoder: its parameters' `.grad` are replaced; a threshold that its rule measures moves.
        x: scaled activations of all checkpoints side by side, W = M D.
        progress: which step of how many.
        matmul_dtype: precision of the matrix products.
        tokens_since_fired: rows since each feature last fired; brought up to date.
        scratch: memory to work in, kept from step to step.
    """
    rule, norms = crosscoder.config.sparsity, crosscoder.decoder_norms()
    batch, shape = x.shape, crosscoder.b_dec.shape
    x_low = scratch.empty("x", batch, x, matmul_dtype).copy_(x)
    w_enc = _low(crosscoder.W_enc.flatten(0, 1), matmul_dtype, scratch, "W_enc")
    w_dec = _low(crosscoder.W_dec.flatten(1), matmul_dtype, scratch, "W_dec")

    # To add in place is cheaper than addmm, which first fills its output with the bias.
    h = product(x_low, w_enc, scratch, "h").add_(crosscoder.b_enc.to(matmul_dtype)).relu_()
    codes = rule.codes(h, norms, crosscoder.threshold, progress, scratch)
    active = count_active(codes.shared)
    with_codes = Products.of(codes, active, w_dec, scratch)
    centred = torch.sub(x, crosscoder.b_dec.flatten(), out=scratch.empty("centred", batch, x))
    error = torch.sub(with_codes.decode(), centred, out=scratch.empty("error", batch, x))
    error_gradient = torch.mul(error, 2 / len(x), out=scratch.empty("error gradient", batch, x, matmul_dtype))

    found = with_codes.backward(x_low, error_gradient)
    _set_gradient(crosscoder.b_dec, error.sum(0) * (2 / len(x)))
    _set_gradient(crosscoder.b_enc, found.b_enc)
    _set_gradient(crosscoder.W_enc, found.W_enc)
    _set_gradient(crosscoder.W_dec, found.W_dec)
    if found.norms is not None and crosscoder.W_dec.grad is not None:
        # A penalty on norms pulls each decoder vector along itself; a vector of norm 0 has no such direction.
        pull = found.norms / norms.clamp_min(SMALLEST_NORM)
        crosscoder.W_dec.grad.addcmul_(crosscoder.W_dec, pull[:, :, None])
    if isinstance(crosscoder.threshold, nn.Parameter):
        crosscoder.threshold.grad = found.threshold
    elif crosscoder.threshold is not None and codes.threshold is not None:
        crosscoder.threshold.copy_(codes.threshold)

    tokens_since_fired.add_(len(x)).masked_fill_(codes.sums > 0, 0)
    auxiliary = _revive(crosscoder, x, error, h, tokens_since_fired, progress, matmul_dtype)
    return StepStats(
        squared_error=_mean_square(error, shape),
        # About b_dec, which is near the mean, so that nothing is lost in the difference.
        variance=_mean_square(centred, shape) - centred.mean(0).unflatten(0, shape).square().sum(1),
        penalty=codes.penalty,
        auxiliary=auxiliary,
        l0=active / len(x),
        taken=torch.ones_like(codes.penalty),
    )


def _revive(
    crosscoder: Crosscoder,
    x: Float[Tensor, "B W"],
    error: Float[Tensor, "B W"],
    h: Float[Tensor, "B F"],
    tokens_since_fired: Int[Tensor, " F"],
    progress: Progress,
    matmul_dtype: torch.dtype,
) -> Float[Tensor, ""]:
    """The auxiliary loss, its gradients added, where the rule has one and there was time to die."""
    rule, rows = crosscoder.config.sparsity, (progress.step + 1) * len(x)
    if not isinstance(rule, Reviving) or not rule.aux_weight or rule.dead_tokens > rows:
        return error.new_zeros(())
    dead, k = tokens_since_fired >= rule.dead_tokens, rule.aux_k or crosscoder.config.width // 2
    return add_auxiliary_gradients(
        crosscoder, x, -error, h, dead, k=k, weight=rule.aux_weight, matmul_dtype=matmul_dtype
    )


def _low(weights: Tensor, matmul_dtype: torch.dtype, scratch: Scratch, name: str) -> Tensor:
    """The weights in the precision of the products."""
    return (
        weights
        if weights.dtype == matmul_dtype
        else scratch.empty(name, weights.shape, weights, matmul_dtype).copy_(weights)
    )


def _mean_square(values: Float[Tensor, "B W"], shape: torch.Size) -> Float[Tensor, " M"]:
    """Mean over rows of the squared norm at each checkpoint."""
    return values.unflatten(1, shape).norm(dim=-1).square().mean(0)


def _set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Into the memory of the gradient before it: on a CPU, to get memory anew costs more than to write into it."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    parameter.grad.copy_(gradient.view_as(parameter))
