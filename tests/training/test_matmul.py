"""Products with codes: the sparse ones against the dense ones, and which are taken."""

import pytest
import torch

from crosstime.crosscoder.sparsity.rule import MaskedCodes, count_active
from crosstime.crosscoder.sparsity.scratch import Scratch
from crosstime.training.matmul import DenseProducts, Products, SparseProducts

B, F, M, D = 7, 9, 2, 4


def _random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _codes(share, weight=0.3, dtype=torch.float32):
    """Codes of which a share is active; no feature fires in row 2, and feature 3 fires nowhere."""
    f = _random(B, F).abs() * (torch.rand(B, F, generator=torch.Generator().manual_seed(1)) < share)
    f[2], f[:, 3] = 0, 0
    return MaskedCodes(f.to(dtype), _random(F, M, seed=2).abs(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_sparse_products_are_the_dense_ones(share, weight, dtype):
    w_dec, x, e = (_random(*shape, dtype=dtype) for shape in ((F, M * D), (B, M * D), (B, M * D)))
    dense, sparse = (
        DenseProducts(_codes(share, weight, dtype), w_dec, Scratch()),
        SparseProducts(_codes(share, weight, dtype), w_dec),
    )
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(sparse.decode(), dense.decode(), **close)
    ours, theirs = sparse.backward(x, e), dense.backward(x, e)
    for name, value in ours._asdict().items():
        expected = getattr(theirs, name)
        assert (value is None) == (expected is None), name
        if value is not None:
            torch.testing.assert_close(value, expected, **close, check_dtype=False)


def test_sparse_products_are_taken_where_few_codes_are_active():
    w_dec = _random(F, M * D)
    for share, kind in ((0.0, SparseProducts), (1.0, DenseProducts)):
        codes = _codes(share)
        assert type(Products.of(codes, count_active(codes.shared), w_dec, Scratch())) is kind
