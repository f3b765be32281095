"""One optimisation step: the paper's loss, with its gradients written out.

Writing them by hand keeps only the codes and their gradient in memory, and makes the products the whole cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.crosscoder.crosscoder import Crosscoder


@dataclass
class StepStats:
    """What a step measured, as tensors on the device: reading them is what would wait for it."""

    squared_error: Float[Tensor, " M"]
    """Mean over rows of ||xhat_m - x_m||^2, in scaled units."""
    variance: Float[Tensor, " M"]
    """Mean over rows of ||x_m - batch mean||^2, in scaled units."""
    penalty: Float[Tensor, ""]
    """Mean over rows of sum_i f_i sum_m ||d_i,m||."""
    l0: Float[Tensor, ""]
    """Mean over rows of the number of features that fire."""


@torch.no_grad()
def gradients(crosscoder: Crosscoder, x: Float[Tensor, "B W"], l1: float, products: torch.dtype) -> StepStats:
    """Set the gradients of mean_b [sum_m ||xhat_m - x_m||^2 + l1 sum_i f_i sum_m ||d_i,m||] (arXiv 2509.05291).

    Args:
        crosscoder: its parameters' `.grad` are replaced.
        x: scaled activations of all checkpoints side by side, W = M D.
        l1: weight of the sparsity penalty.
        products: precision of the five matrix products.
    """
    batch, (n_checkpoints, width) = len(x), crosscoder.b_dec.shape
    x_low = x.to(products)
    w_enc = crosscoder.W_enc.flatten(0, 1).to(products)
    w_dec = crosscoder.W_dec.flatten(1).to(products)
    norms = crosscoder.decoder_norms()

    f = torch.addmm(crosscoder.b_enc.to(products), x_low, w_enc).relu_()
    error = (f @ w_dec).float() + crosscoder.b_dec.flatten() - x
    f_sum = f.sum(0, dtype=torch.float32)
    fires = f > 0

    error_gradient = (error * (2 / batch)).to(products)
    f_gradient = torch.addmm((norms.sum(1) * (l1 / batch)).to(products), error_gradient, w_dec.T)
    f_gradient *= fires

    crosscoder.b_dec.grad = error_gradient.sum(0, dtype=torch.float32).unflatten(0, crosscoder.b_dec.shape)
    crosscoder.b_enc.grad = f_gradient.sum(0, dtype=torch.float32)
    crosscoder.W_enc.grad = (x_low.T @ f_gradient).float().unflatten(0, (n_checkpoints, width))
    w_dec_grad = (f.T @ error_gradient).float().unflatten(1, (n_checkpoints, width))
    # The penalty pulls each decoder vector inwards along itself; a vector of norm 0 has no such direction.
    pull = (f_sum * (l1 / batch))[:, None] / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    crosscoder.W_dec.grad = w_dec_grad.addcmul_(crosscoder.W_dec, pull[:, :, None])

    return StepStats(
        squared_error=error.square().sum(0).unflatten(0, (n_checkpoints, width)).sum(1) / batch,
        variance=x.var(0, correction=0).unflatten(0, (n_checkpoints, width)).sum(1),
        penalty=(f_sum @ norms.sum(1)) / batch,
        l0=fires.sum() / batch,
    )
