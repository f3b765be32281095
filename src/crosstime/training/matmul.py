"""The products of a step with its codes: with the whole matrix, or, where few codes are active, with these alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from crosstime.crosscoder.sparsity.rule import Codes, MaskedCodes
from crosstime.crosscoder.sparsity.scratch import Scratch

SPARSE_UP_TO = {"cpu": 0.04}
"""Share of active codes up to which sparse products are the faster ones, by kind of device (benchmarks/RESULTS.md).
Where it was not measured, products are dense, and nothing waits for the number of active codes."""


class Gradients(NamedTuple):
    """Of the loss, W = M D; None where there is none."""

    W_enc: Float[Tensor, "W F"]
    b_enc: Float[Tensor, " F"]
    W_dec: Float[Tensor, "F W"]
    norms: Float[Tensor, "F M"] | None
    threshold: Float[Tensor, " F"] | None


class Products(ABC):
    """What the decoder makes of a batch's codes, and the way back."""

    @classmethod
    def of(cls, codes: Codes, active: Int[Tensor, ""], w_dec: Float[Tensor, "F W"], scratch: Scratch) -> Products:
        """Those that are faster, for so many active codes."""
        share = SPARSE_UP_TO.get(w_dec.device.type)
        if share and isinstance(codes, MaskedCodes) and int(active) <= share * codes.shared.numel():
            return SparseProducts(codes, w_dec)
        return DenseProducts(codes, w_dec, scratch)

    @abstractmethod
    def decode(self) -> Float[Tensor, "B W"]:
        """The reconstruction, less the bias."""

    @abstractmethod
    def backward(self, x: Float[Tensor, "B W"], error_gradient: Float[Tensor, "B W"]) -> Gradients:
        """All gradients but that of the decoder's bias, from that of the reconstruction.

        Args:
            x: the activations, in the precision of the products, as `error_gradient`.
            error_gradient: gradient of the loss with respect to the reconstruction.
        """


class DenseProducts(Products):
    """With one group of columns of the decoder a matrix of codes: all checkpoints together, or each by itself."""

    def __init__(self, codes: Codes, w_dec: Float[Tensor, "F W"], scratch: Scratch) -> None:
        self.codes, self.scratch = codes, scratch
        self.written = [f.to(w_dec.dtype) for f in codes.written]
        self.columns = w_dec.chunk(len(self.written), dim=1)

    def decode(self) -> Float[Tensor, "B W"]:
        pairs = zip(self.written, self.columns, strict=True)
        return _side_by_side([product(f, w, self.scratch, f"decoded {n}") for n, (f, w) in enumerate(pairs)])

    def backward(self, x: Float[Tensor, "B W"], error_gradient: Float[Tensor, "B W"]) -> Gradients:
        errors = error_gradient.chunk(len(self.written), dim=1)
        code_gradients = [
            product(e, w.T, self.scratch, f"code gradient {n}")
            for n, (e, w) in enumerate(zip(errors, self.columns, strict=True))
        ]
        if self.codes.slope is not None:
            slope = self.codes.slope.to(x.dtype)
            code_gradients = [gradient.add_(slope) for gradient in code_gradients]
        h_gradient, norms, threshold = self.codes.backward(code_gradients)
        h_gradient = h_gradient.to(x.dtype)
        w_dec_gradients = [
            product(f.T, e, self.scratch, f"W_dec gradient {n}")
            for n, (f, e) in enumerate(zip(self.written, errors, strict=True))
        ]
        return Gradients(
            product(x.T, h_gradient, self.scratch, "W_enc gradient"),
            h_gradient.sum(0),
            _side_by_side(w_dec_gradients),
            norms,
            threshold,
        )


class SparseProducts(Products):
    """Sums of decoder vectors over the active codes of each row, and of activations over the rows of each feature."""

    def __init__(self, codes: MaskedCodes, w_dec: Float[Tensor, "F W"]) -> None:
        self.codes, self.w_dec = codes, w_dec
        f = codes.shared
        batch, features = f.shape
        at = _where_positive(f)
        self.rows, self.columns = at // features, at % features
        self.row_starts = torch.searchsorted(at, torch.arange(batch, device=f.device) * features)
        self.values = f.flatten()[at].to(w_dec.dtype).requires_grad_()

    @torch.enable_grad()
    def decode(self) -> Float[Tensor, "B W"]:
        # Kept with its graph: the gradient of the values is one product of two vectors for each active code.
        self._decoded = _sums(self.columns, self.w_dec, self.row_starts, self.values)
        return self._decoded.detach()

    def backward(self, x: Float[Tensor, "B W"], error_gradient: Float[Tensor, "B W"]) -> Gradients:
        (gradient,) = torch.autograd.grad(self._decoded, self.values, error_gradient)
        if self.codes.slope is not None:
            gradient += self.codes.slope.to(x.dtype)[self.columns]
        order = self.columns.argsort(stable=True)
        rows, columns = self.rows[order], self.columns[order]
        starts = torch.searchsorted(columns, torch.arange(len(self.w_dec), device=x.device))
        return Gradients(
            _sums(rows, x, starts, gradient[order]).T.contiguous(),
            torch.zeros_like(self.codes.sums).index_add_(0, self.columns, gradient.float()),
            _sums(rows, error_gradient, starts, self.values.detach()[order]),
            self.codes.norms_gradient,
            None,
        )


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], scratch: Scratch, name: str) -> Float[Tensor, "n m"]:
    """a @ b, in memory that is used again."""
    return torch.mm(a, b, out=scratch.empty(name, (len(a), b.shape[1]), a))


def _sums(
    index: Int[Tensor, " n"], vectors: Float[Tensor, "V W"], starts: Int[Tensor, " N"], weights: Float[Tensor, " n"]
) -> Float[Tensor, "N W"]:
    """Sums of weighted vectors; the next one begins at each start."""
    return embedding_bag(index, vectors, starts, mode="sum", per_sample_weights=weights)


def _where_positive(f: Float[Tensor, "B F"]) -> Int[Tensor, " n"]:
    """Where in the flattened matrix."""
    positive = (f > 0).flatten()
    if f.device.type != "cpu":
        return positive.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(positive.numpy()))  # several times as fast as torch's


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
