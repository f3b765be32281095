"""The auxiliary loss: features that died learn what the living ones leave over (Gao et al. 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rule import total_norms
from crosstime.crosscoder.sparsity.topk import largest_per_row


@torch.no_grad()
def add_auxiliary_gradients(
    crosscoder: Crosscoder,
    x: Float[Tensor, "B W"],
    left_over: Float[Tensor, "B W"],
    h: Float[Tensor, "B F"],
    dead: Bool[Tensor, " F"],
    *,
    k: int,
    weight: float,
    matmul_dtype: torch.dtype,
) -> Float[Tensor, ""]:
    """Add the gradients of weight * ||e - ehat||^2 / ||e - mean e||^2 to those that the parameters have.

    e is what the living features left over, ehat what the k largest dead ones of each row decode to, without bias.

    Args:
        crosscoder: its parameters' `.grad` are added to.
        x: scaled activations of all checkpoints side by side, W = M D.
        left_over: e = x - xhat. (The public code of arXiv 2509.05291 takes xhat - x, and so teaches the opposite.)
        h: activations before the sparsity rule.
        dead: which features are dead.
        k: dead features that each row trains, at most.
        weight: of the loss.
        matmul_dtype: precision of the matrix products.

    Returns:
        the weighted loss; 0 where no feature is dead or nothing is left over.
    """
    index = dead.nonzero()[:, 0]
    if not len(index):
        return left_over.new_zeros(())
    total = (left_over - left_over.mean(0)).square().sum()
    h, w_dec = h[:, index], crosscoder.W_dec.flatten(1)[index].to(matmul_dtype)
    f = h * largest_per_row(h * total_norms(crosscoder.decoder_norms())[index], min(k, len(index)))
    rest = (f.to(matmul_dtype) @ w_dec).float() - left_over
    price = torch.where(total > 0, weight / total, 0.0)

    gradient = (rest * (2 * price)).to(matmul_dtype)
    f_gradient = (gradient @ w_dec.T) * (f > 0)
    shape = crosscoder.b_dec.shape
    assert crosscoder.W_dec.grad is not None
    assert crosscoder.W_enc.grad is not None
    assert crosscoder.b_enc.grad is not None
    crosscoder.W_dec.grad[index] += (f.to(matmul_dtype).T @ gradient).float().unflatten(1, shape)
    crosscoder.W_enc.grad[:, :, index] += (x.to(matmul_dtype).T @ f_gradient).float().unflatten(0, shape)
    crosscoder.b_enc.grad[index] += f_gradient.sum(0, dtype=torch.float32)
    return price * rest.square().sum()
