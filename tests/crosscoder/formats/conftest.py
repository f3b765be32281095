"""What the tests of every format share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import foreign

from crosstime.crosscoder.crosscoder import Crosscoder


@pytest.fixture
def computes(tmp_path):
    """Checks that a crosscoder computes given codes and reconstructions, folded and after our own files too."""

    def check(crosscoder, forward):
        x = foreign.activations()
        codes, x_hat = forward(x)
        assert 0.02 < float((codes > 0).float().mean()) < 0.98  # the gate gates
        crosscoder.save_pretrained(tmp_path / "ours")
        for made in (crosscoder, crosscoder.fold(), Crosscoder.from_pretrained(tmp_path / "ours")):
            with torch.no_grad():
                f = made.encode(x)
                for m in range(codes.shape[1]):
                    _close(made.gate(f, m), codes[:, m])
                _close(made.decode(f), x_hat)

    return check


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
