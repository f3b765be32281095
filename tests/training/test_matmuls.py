"""Matrix products with feature activations: sparse against dense ones, and the choice between them."""

import pytest
import torch

from crosstime.crosscoder.sparsity.rule import MaskedActivations, Scratch, count_active
from crosstime.training.step import DenseMatmuls, SparseMatmuls, choose_matmuls

B, F, M, D = 7, 9, 2, 4


def _random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _activations(share, weight=0.3, dtype=torch.float32):
    """Return activations of which a share is positive; none at token 2, and none of feature 3."""
    f = _random(B, F).abs() * (torch.rand(B, F, generator=torch.Generator().manual_seed(1)) < share)
    f[2], f[:, 3] = 0, 0
    return MaskedActivations(f.to(dtype), _random(M, F, seed=2).abs(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_sparse_products_are_the_dense_ones(share, weight, dtype):
    w_dec, x, e = (_random(*shape, dtype=dtype) for shape in ((F, M * D), (B, M * D), (B, M * D)))
    dense, sparse = (
        DenseMatmuls(_activations(share, weight, dtype), w_dec, Scratch()),
        SparseMatmuls(_activations(share, weight, dtype), w_dec),
    )
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(sparse.decode(), dense.decode(), **close)
    ours, theirs = sparse.backward(x, e), dense.backward(x, e)
    for name, value in ours._asdict().items():
        expected = getattr(theirs, name)
        assert (value is None) == (expected is None), name
        if value is not None:
            torch.testing.assert_close(value, expected, **close, check_dtype=False)


def test_sparse_products_are_taken_if_few_features_are_active():
    w_dec = _random(F, M * D)
    for share, kind in ((0.0, SparseMatmuls), (1.0, DenseMatmuls)):
        activations = _activations(share)
        assert type(choose_matmuls(activations, count_active(activations.f), w_dec, Scratch())) is kind
