"""One training step: the loss of a crosscoder and its gradients, written by hand.

x [B, M D] are the scaled activations of B tokens at M checkpoints of width D, side by side; W_enc [M D, F] and W_dec
[F, M D] are the weights as matrices. A step computes

    h      = ReLU(x W_enc + b_enc)                                [B, F]
    f      = rule(h)                                              [B, F], few of them not 0
    e      = f W_dec + b_dec - x                                  [B, M D]
    loss   = mean_b ||e_b||^2 + penalty(f, ||d_m,i||) + AuxK loss

    df     = (2/B) e W_dec^T + dpenalty/df                        [B, F]
    dh     = df where f > 0 (or what the rule makes of it)        [B, F]
    dW_enc = x^T dh          db_enc = sum_b dh_b                  [M D, F], [F]
    dW_dec = f^T (2/B) e     db_dec = sum_b (2/B) e_b             [F, M D], [M D]

where a penalty on decoder norms adds (dpenalty / d||d_m,i||) d_m,i / ||d_m,i|| to dW_dec. The five matrix products take
2 B M D F FLOP each, with the paper's settings (B 4096, M 3, D 2048, F 16384) 4.1 TFLOP together. The aim is that they
take nearly all of the time; hence the gradients are written by hand:

- Autograd would keep several matrices [B, F]: the pre-activations, h, masks, f, copies in low precision. Here there are
  two, f and its gradient, 128 MiB each in bfloat16. All are preallocated (`Scratch`), which matters on a CPU.
- Elementwise passes over [B, F] are bound by memory, so there are few: bias and ReLU are applied in place; a rule
  selects features by a mask that is one kernel forwards and one backwards (`where_positive`).
- If few features are active, products with the whole of f waste work. Then sums over the active features alone replace
  the four products with f and its gradient (`SparseMatmuls`).
- Nothing waits for the device, except the count of active features where it decides on sparse products.

Products are in `matmul_dtype`; weights, errors, sums and the gradients of weights are float32. Adam's fused kernel also
clips the gradient, and skips steps whose gradient isn't finite (`clipped_adam`). tests/training/test_step.py compares
the gradients with autograd's for every rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rule import Activations, Scratch, TrainingProgress, count_active, total_norms
from crosstime.crosscoder.sparsity.topk import largest_per_token

MAX_SPARSE_SHARE = {"cpu": 0.04}
"""Share of active features up to which sparse products are faster, by type of device (benchmarks/RESULTS.md). On other
devices, where it wasn't measured, products are dense, and nothing waits for the number of active features."""

_MIN_NORM = 1e-12
"""Lower bound on the decoder norms by which a gradient is divided."""


@dataclass
class StepStats:
    """Measurements of a step, as tensors on the device, since reading them would wait for it."""

    squared_error: Float[Tensor, " M"]
    """Mean over tokens of ||xhat_m - x_m||^2, in scaled units."""
    variance: Float[Tensor, " M"]
    """Mean over tokens of ||x_m - batch mean||^2, in scaled units."""
    penalty: Float[Tensor, ""]
    """The sparsity penalty in the loss."""
    auxiliary: Float[Tensor, ""]
    """The AuxK loss."""
    l0: Float[Tensor, ""]
    """Mean over tokens of the number of active features."""
    taken: Float[Tensor, ""]
    """1; or 0 if the step was skipped because its gradient wasn't finite, and then everything else is 0 too."""

    def zero_unless(self, taken: Bool[Tensor, ""]) -> StepStats:
        """Return these measurements, or zeros if the step was skipped."""
        return StepStats(**{f.name: torch.where(taken, getattr(self, f.name), 0.0) for f in fields(self)})


@torch.no_grad()
def compute_gradients(
    crosscoder: Crosscoder,
    x: Float[Tensor, "B W"],
    progress: TrainingProgress,
    matmul_dtype: torch.dtype,
    tokens_since_fired: Int[Tensor, " F"],
    scratch: Scratch,
) -> StepStats:
    """Set the gradients of the loss (arXiv 2509.05291 for L1); see the module's docstring.

    Args:
        crosscoder: Its parameters' `.grad` are replaced. A threshold that its rule measures is updated.
        x: Scaled activations of all checkpoints side by side, W = M D.
        progress: Position in the training run.
        matmul_dtype: Precision of the matrix products.
        tokens_since_fired: Tokens since each feature last fired; updated.
        scratch: Working memory, reused from step to step.
    """
    rule, norms = crosscoder.config.sparsity, crosscoder.decoder_norms()
    batch, shape = x.shape, crosscoder.b_dec.shape
    x_low = scratch.empty("x", batch, x, matmul_dtype).copy_(x)
    w_enc = _cast(crosscoder.W_enc.flatten(0, 1), matmul_dtype, scratch, "W_enc")
    w_dec = _cast(crosscoder.W_dec.flatten(1), matmul_dtype, scratch, "W_dec")

    # Adding in place is cheaper than addmm, which first fills its output with the bias.
    h = _matmul(x_low, w_enc, scratch, "h").add_(crosscoder.b_enc.to(matmul_dtype)).relu_()
    activations = rule.activate(h, norms, crosscoder.threshold, progress, scratch)
    active = count_active(activations.f)
    matmuls = choose_matmuls(activations, active, w_dec, scratch)
    centred = torch.sub(x, crosscoder.b_dec.flatten(), out=scratch.empty("centred", batch, x))
    error = torch.sub(matmuls.decode(), centred, out=scratch.empty("error", batch, x))
    error_gradient = torch.mul(error, 2 / len(x), out=scratch.empty("error gradient", batch, x, matmul_dtype))

    gradients = matmuls.backward(x_low, error_gradient)
    _set_gradient(crosscoder.b_dec, error.sum(0) * (2 / len(x)))
    _set_gradient(crosscoder.b_enc, gradients.b_enc)
    _set_gradient(crosscoder.W_enc, gradients.W_enc)
    _set_gradient(crosscoder.W_dec, gradients.W_dec)
    if gradients.norms is not None and crosscoder.W_dec.grad is not None:
        # A penalty on norms acts along each decoder vector; a vector of norm 0 has no direction.
        per_norm = (gradients.norms / norms.clamp_min(_MIN_NORM)).T
        crosscoder.W_dec.grad.addcmul_(crosscoder.W_dec, per_norm[:, :, None])
    if isinstance(crosscoder.threshold, nn.Parameter):
        crosscoder.threshold.grad = gradients.threshold
    elif crosscoder.threshold is not None and activations.threshold is not None:
        crosscoder.threshold.copy_(activations.threshold)

    tokens_since_fired.add_(len(x)).masked_fill_(activations.feature_sums > 0, 0)
    auxiliary, auxk, seen = error.new_zeros(()), rule.auxk, (progress.step + 1) * len(x)
    if auxk is not None and seen >= auxk.dead_tokens:  # no feature can be dead before
        dead, k = tokens_since_fired >= auxk.dead_tokens, auxk.k or crosscoder.config.width // 2
        auxiliary = add_auxk_gradients(
            crosscoder, x, -error, h, dead, k=k, weight=auxk.weight, matmul_dtype=matmul_dtype
        )
    return StepStats(
        squared_error=_mean_square(error, shape),
        # About b_dec, which is near the mean, so that the difference loses no precision.
        variance=_mean_square(centred, shape) - centred.mean(0).unflatten(0, shape).square().sum(1),
        penalty=activations.penalty,
        auxiliary=auxiliary,
        l0=active / len(x),
        taken=torch.ones_like(activations.penalty),
    )


@torch.no_grad()
def add_auxk_gradients(
    crosscoder: Crosscoder,
    x: Float[Tensor, "B W"],
    residual: Float[Tensor, "B W"],
    h: Float[Tensor, "B F"],
    dead: Bool[Tensor, " F"],
    *,
    k: int,
    weight: float,
    matmul_dtype: torch.dtype,
) -> Float[Tensor, ""]:
    """Add the gradients of the AuxK loss, weight * ||r - rhat||^2 / ||r - mean r||^2 (Gao et al. 2024).

    r is the residual of the reconstruction; rhat is what the k largest dead features of each token decode to.

    Args:
        crosscoder: Its parameters' `.grad` are added to.
        x: Scaled activations of all checkpoints side by side, W = M D.
        residual: r = x - xhat. (The public code of arXiv 2509.05291 has xhat - x, so it trains towards the opposite.)
        h: Activations before the sparsity rule.
        dead: Which features are dead.
        k: Dead features that each token trains, at most.
        weight: Coefficient of the loss.
        matmul_dtype: Precision of the matrix products.

    Returns:
        The weighted loss; 0 if no feature is dead or the residual is constant.
    """
    index = dead.nonzero()[:, 0]
    if not len(index):
        return residual.new_zeros(())
    total = (residual - residual.mean(0)).square().sum()
    h, w_dec = h[:, index], crosscoder.W_dec.flatten(1)[index].to(matmul_dtype)
    f = h * largest_per_token(h * total_norms(crosscoder.decoder_norms())[index], min(k, len(index)))
    error = (f.to(matmul_dtype) @ w_dec).float() - residual
    coefficient = torch.where(total > 0, weight / total, 0.0)

    gradient = (error * (2 * coefficient)).to(matmul_dtype)
    f_gradient = (gradient @ w_dec.T) * (f > 0)
    shape = crosscoder.b_dec.shape
    assert crosscoder.W_dec.grad is not None
    assert crosscoder.W_enc.grad is not None
    assert crosscoder.b_enc.grad is not None
    crosscoder.W_dec.grad[index] += (f.to(matmul_dtype).T @ gradient).float().unflatten(1, shape)
    crosscoder.W_enc.grad[:, :, index] += (x.to(matmul_dtype).T @ f_gradient).float().unflatten(0, shape)
    crosscoder.b_enc.grad[index] += f_gradient.sum(0, dtype=torch.float32)
    return coefficient * error.square().sum()


class Gradients(NamedTuple):
    """Gradients of the loss, W = M D; None if there is none."""

    W_enc: Float[Tensor, "W F"]
    b_enc: Float[Tensor, " F"]
    W_dec: Float[Tensor, "F W"]
    norms: Float[Tensor, "M F"] | None
    threshold: Float[Tensor, " F"] | None


class Matmuls(ABC):
    """The matrix products with a batch's feature activations."""

    @abstractmethod
    def decode(self) -> Float[Tensor, "B W"]:
        """Return the reconstruction without bias."""

    @abstractmethod
    def backward(self, x: Float[Tensor, "B W"], error_gradient: Float[Tensor, "B W"]) -> Gradients:
        """Return all gradients except that of the decoder's bias.

        Args:
            x: The activations, in the precision of the products, like `error_gradient`.
            error_gradient: Gradient of the loss with respect to the reconstruction.
        """


def choose_matmuls(
    activations: Activations, active: Int[Tensor, ""], w_dec: Float[Tensor, "F W"], scratch: Scratch
) -> Matmuls:
    """Return the faster products for this number of active features."""
    share = MAX_SPARSE_SHARE.get(w_dec.device.type)
    if share and activations.only_masks and int(active) <= share * activations.f.numel():
        return SparseMatmuls(activations, w_dec)
    return DenseMatmuls(activations, w_dec, scratch)


class DenseMatmuls(Matmuls):
    """Products with whole matrices: one for all checkpoints, or one per checkpoint if the rule gates each."""

    def __init__(self, activations: Activations, w_dec: Float[Tensor, "F W"], scratch: Scratch) -> None:
        self.activations, self.scratch = activations, scratch
        self.inputs = [f.to(w_dec.dtype) for f in activations.decoder_inputs]
        self.w_dec = w_dec.chunk(len(self.inputs), dim=1)

    def decode(self) -> Float[Tensor, "B W"]:
        pairs = zip(self.inputs, self.w_dec, strict=True)
        return _side_by_side([_matmul(f, w, self.scratch, f"decoded {n}") for n, (f, w) in enumerate(pairs)])

    def backward(self, x: Float[Tensor, "B W"], error_gradient: Float[Tensor, "B W"]) -> Gradients:
        errors = error_gradient.chunk(len(self.inputs), dim=1)
        f_gradients = [
            _matmul(e, w.T, self.scratch, f"f gradient {n}")
            for n, (e, w) in enumerate(zip(errors, self.w_dec, strict=True))
        ]
        if self.activations.penalty_gradient is not None:
            penalty_gradient = self.activations.penalty_gradient.to(x.dtype)
            f_gradients = [gradient.add_(penalty_gradient) for gradient in f_gradients]
        through_rule = self.activations.backward(f_gradients)
        h_gradient = through_rule.h.to(x.dtype)
        w_dec_gradients = [
            _matmul(f.T, e, self.scratch, f"W_dec gradient {n}")
            for n, (f, e) in enumerate(zip(self.inputs, errors, strict=True))
        ]
        return Gradients(
            _matmul(x.T, h_gradient, self.scratch, "W_enc gradient"),
            h_gradient.sum(0),
            _side_by_side(w_dec_gradients),
            through_rule.norms,
            through_rule.threshold,
        )


class SparseMatmuls(Matmuls):
    """Sums of decoder vectors over each token's active features, and of activations over each feature's tokens."""

    def __init__(self, activations: Activations, w_dec: Float[Tensor, "F W"]) -> None:
        self.activations, self.w_dec = activations, w_dec
        f = activations.f
        batch, features = f.shape
        index = _positive_indices(f)
        self.tokens, self.features = index // features, index % features
        self.token_starts = torch.searchsorted(index, torch.arange(batch, device=f.device) * features)
        self.values = f.flatten()[index].to(w_dec.dtype).requires_grad_()

    @torch.enable_grad()
    def decode(self) -> Float[Tensor, "B W"]:
        # The graph is kept: the gradient of the values is one dot product per active feature.
        self._decoded = _weighted_sums(self.features, self.w_dec, self.token_starts, self.values)
        return self._decoded.detach()

    def backward(self, x: Float[Tensor, "B W"], error_gradient: Float[Tensor, "B W"]) -> Gradients:
        (gradient,) = torch.autograd.grad(self._decoded, self.values, error_gradient)
        if self.activations.penalty_gradient is not None:
            gradient += self.activations.penalty_gradient.to(x.dtype)[self.features]
        order = self.features.argsort(stable=True)
        tokens, features = self.tokens[order], self.features[order]
        starts = torch.searchsorted(features, torch.arange(len(self.w_dec), device=x.device))
        return Gradients(
            _weighted_sums(tokens, x, starts, gradient[order]).T.contiguous(),
            torch.zeros_like(self.activations.feature_sums).index_add_(0, self.features, gradient.float()),
            _weighted_sums(tokens, error_gradient, starts, self.values.detach()[order]),
            self.activations.norms_gradient,
            None,
        )


def _matmul(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], scratch: Scratch, name: str) -> Float[Tensor, "n m"]:
    return torch.mm(a, b, out=scratch.empty(name, (len(a), b.shape[1]), a))


def _weighted_sums(
    index: Int[Tensor, " n"], vectors: Float[Tensor, "V W"], starts: Int[Tensor, " N"], weights: Float[Tensor, " n"]
) -> Float[Tensor, "N W"]:
    """Sum weighted vectors in consecutive groups, which begin at `starts`."""
    return embedding_bag(index, vectors, starts, mode="sum", per_sample_weights=weights)


def _positive_indices(f: Float[Tensor, "B F"]) -> Int[Tensor, " n"]:
    """Return the indices of positive entries in the flattened matrix."""
    positive = (f > 0).flatten()
    if f.device.type != "cpu":
        return positive.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(positive.numpy()))  # several times as fast as torch's


def _side_by_side(matrices: list[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=1)


def _cast(weights: Tensor, dtype: torch.dtype, scratch: Scratch, name: str) -> Tensor:
    return weights if weights.dtype == dtype else scratch.empty(name, weights.shape, weights, dtype).copy_(weights)


def _mean_square(values: Float[Tensor, "B W"], shape: torch.Size) -> Float[Tensor, " M"]:
    """Return the mean over tokens of the squared norm at each checkpoint."""
    return values.unflatten(1, shape).norm(dim=-1).square().mean(0)


def _set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Copy into the existing gradient: on a CPU, allocating costs more than writing."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    parameter.grad.copy_(gradient.view_as(parameter))
