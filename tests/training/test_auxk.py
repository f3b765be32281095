"""The AuxK loss: its gradients against autograd, and its zeros."""

from dataclasses import dataclass, field

import pytest
import torch

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rule import AuxK, Scratch, Sparsity, TrainingProgress
from crosstime.crosscoder.sparsity.rules import TopK
from crosstime.training.step import add_auxk_gradients, compute_gradients

M, D, F, B = 2, 5, 9, 12


@pytest.fixture
def crosscoder():
    made = Crosscoder(CrosscoderConfig(("a", "b"), 0, D, F, sparsity=TopK(2)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return made


def _run(crosscoder, x, residual, dead, k=3, weight=0.5):
    h = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc).detach()
    return add_auxk_gradients(crosscoder, x, residual, h, dead, k=k, weight=weight, matmul_dtype=torch.float32)


def test_gradients_are_those_of_the_loss(crosscoder):
    generator = torch.Generator().manual_seed(1)
    x, e = torch.randn(B, M * D, generator=generator), torch.randn(B, M * D, generator=generator)
    dead = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    loss = _run(crosscoder, x, e, dead)

    h = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc)
    size = torch.where(dead, h * crosscoder.decoder_norms().sum(0), -1.0)
    f = torch.zeros_like(h).scatter(1, size.topk(3, dim=1).indices, 1.0) * h
    ratio = (e - f @ crosscoder.W_dec.flatten(1)).square().sum(1).mean() / (e - e.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(loss, (0.5 * ratio).detach())
    weights = (crosscoder.W_enc, crosscoder.b_enc, crosscoder.W_dec)
    for parameter, expected in zip(weights, torch.autograd.grad(0.5 * ratio, weights), strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    assert (crosscoder.b_dec.grad == 0).all(), "the AuxK loss doesn't train the bias"
    assert (crosscoder.W_dec.grad[~dead] == 0).all()


def test_it_is_zero_where_the_dead_features_reconstruct_the_residual(crosscoder):
    """The public code of arXiv 2509.05291 rewards the opposite."""
    x = torch.randn(B, M * D, generator=torch.Generator().manual_seed(2))
    dead = torch.ones(F, dtype=torch.bool)
    e = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc) @ crosscoder.W_dec.flatten(1)
    assert float(_run(crosscoder, x, e.detach(), dead, k=F)) == pytest.approx(0, abs=1e-6)
    assert float(_run(crosscoder, x, -e.detach(), dead, k=F)) > 1


@pytest.mark.parametrize("dead", [False, True])
def test_nothing_dead_or_a_zero_residual_is_no_loss(crosscoder, dead):
    x = torch.ones(B, M * D)
    residual = torch.zeros(B, M * D) if dead else torch.randn(B, M * D, generator=torch.Generator().manual_seed(3))
    loss = _run(crosscoder, x, residual, torch.full((F,), dead))
    assert float(loss) == 0
    assert all((parameter.grad == 0).all() for parameter in crosscoder.parameters())


@dataclass(frozen=True)
class FirstFour(Sparsity):
    """A rule of no known family: only the first four features may fire."""

    rule: str = field(default="first-four", init=False)
    revives: bool = False

    def select(self, h, norms, threshold):  # noqa: ARG002
        return h * (torch.arange(h.shape[-1]) < 4)

    @property
    def auxk(self):
        return AuxK(weight=0.5, k=2, dead_tokens=B) if self.revives else None


@pytest.mark.parametrize("revives", [False, True])
def test_a_rule_of_any_family_can_have_it(revives):
    rule, generator = FirstFour(revives=revives), torch.Generator().manual_seed(0)
    crosscoder = Crosscoder(CrosscoderConfig(("a", "b"), 0, D, F, sparsity=rule))
    crosscoder.initialise(torch.zeros(M, D), torch.ones(M), decoder_norm=1.0, tied=True, generator=generator)
    x, tokens_since_fired = torch.randn(B, M * D, generator=generator), torch.zeros(F, dtype=torch.long)
    for step in range(2):
        progress = TrainingProgress(step, 2)
        stats = compute_gradients(crosscoder, x, progress, torch.float32, tokens_since_fired, Scratch())
    assert (float(stats.auxiliary) > 0) == revives
    trained = (crosscoder.W_dec.grad != 0).any(2).any(1)
    assert trained[:4].all()
    assert trained[4:].any() == revives
