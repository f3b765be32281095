"""Many steps: they train like a plain trainer in any precision, and skip batches that aren't finite."""

import math

import pytest
import torch
from torch import nn

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rule import TrainingProgress
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK
from crosstime.training.config import TrainConfig
from crosstime.training.state import TrainState
from crosstime.training.step import MAX_SPARSE_SHARE

M, D, F, B, STEPS = 3, 16, 64, 128, 500
RULES = [L1(0.3), BatchTopK(8, k_start=16, k_steps=100)]


def _config(matmul_dtype="bfloat16"):
    return TrainConfig(
        tokens=B * STEPS, batch_size=B, buffer_tokens=B, lr=1e-3, matmul_dtype=matmul_dtype, model_dtype="float32"
    )


def _crosscoder(rule):
    made = Crosscoder(CrosscoderConfig(("a", "b", "c"), 0, D, F, sparsity=rule))
    generator = torch.Generator().manual_seed(0)
    norm = rule.initial_decoder_norm
    made.initialise(torch.zeros(M, D), torch.ones(M), decoder_norm=norm, tied=True, generator=generator)
    return made


@pytest.fixture(scope="module")
def batches():
    """Sparse combinations of twice as many directions as there are dimensions, and noise."""
    generator = torch.Generator().manual_seed(1)
    directions = nn.functional.normalize(torch.randn(2 * D, M, D, generator=generator), dim=-1)
    codes = torch.rand(STEPS, B, 2 * D, generator=generator)
    codes *= torch.rand(codes.shape, generator=generator) < 0.1
    x = torch.einsum("sbf,fmd->sbmd", codes, directions)
    x = x * D**0.5 / x.norm(dim=-1).mean() + 0.3 * torch.randn(x.shape, generator=generator)
    return x.flatten(2)


def _plain_steps(crosscoder, batches):
    """Autograd in float32, clipping, unfused Adam: the loss and the explained variance of every step."""
    config, rule = _config("float32"), crosscoder.config.sparsity
    optimiser = torch.optim.Adam(crosscoder.parameters(), lr=config.lr)
    for step, x in enumerate(batches):
        progress = TrainingProgress(step, config.steps)
        norms = crosscoder.decoder_norms()
        h = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc)
        f = rule.select_in_training(h, norms, crosscoder.threshold, progress)
        error = (f @ crosscoder.W_dec.flatten(1) + crosscoder.b_dec.flatten() - x).square().sum(1).mean()
        loss = error + rule.penalty_coefficient(progress) * (f @ norms.sum(0)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(crosscoder.parameters(), config.clip)
        for group in optimiser.param_groups:
            group["lr"] = config.lr_at(step)
        optimiser.step()
        yield loss.item(), (1 - error / x.var(0, correction=0).sum()).item()


@pytest.mark.parametrize("sparse_up_to", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_low_precision_trains_like_a_plain_trainer(rule, sparse_up_to, batches, monkeypatch):
    monkeypatch.setitem(MAX_SPARSE_SHARE, "cpu", sparse_up_to)
    state = TrainState(_crosscoder(rule), _config())
    ours = []
    for x in batches:
        stats = state.train_step(x)
        loss = stats.squared_error.sum() + stats.penalty
        ours.append((float(loss), float(1 - stats.squared_error.sum() / stats.variance.sum())))
    loss, explained = torch.tensor(ours).T
    plain_loss, plain_explained = torch.tensor(list(_plain_steps(_crosscoder(rule), batches))).T
    assert explained[-50:].mean() > explained[:50].mean() + 0.1, "nothing was learnt"
    # Twenty steps a point: where a choice of features falls otherwise, a single batch may differ more.
    curve, plain_curve = (values.view(-1, 20).mean(1) for values in (loss, plain_loss))
    torch.testing.assert_close(curve, plain_curve, rtol=0.01, atol=0)
    assert abs(explained[-50:].mean() - plain_explained[-50:].mean()) < 0.002


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_a_batch_that_is_not_finite_leaves_the_crosscoder_as_it_is(rule, batches):
    state = TrainState(_crosscoder(rule), _config())
    assert state.train_step(batches[0]).taken == 1
    before = {name: tensor.clone() for name, tensor in state.tensors().items() if name != "tokens_since_fired"}
    bad = batches[1].clone()
    bad[3, 5] = math.nan
    stats = state.train_step(bad)
    assert state.step == 2
    for value in vars(stats).values():
        assert (value == 0).all()
    for name, tensor in before.items():
        assert torch.equal(state.tensors()[name], tensor), name
    assert state.train_step(batches[2]).taken == 1
