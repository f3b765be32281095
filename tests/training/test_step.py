"""The gradients of a step, against autograd on the loss of each sparsity rule."""

import pytest
import torch

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity import jumprelu
from crosstime.crosscoder.sparsity.rule import FINISHED, Scratch, TrainingProgress
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU, TopK
from crosstime.training.step import MAX_SPARSE_SHARE, compute_gradients

M, D, F, B = 3, 6, 11, 16
RULES = [L1(0.0), L1(0.7), L1(30.0), TopK(3), BatchTopK(3), JumpReLU(0.2, threshold=0.3, window=0.5)]


def _crosscoder(rule):
    made = Crosscoder(CrosscoderConfig(("a", "b", "c"), 0, D, F, sparsity=rule))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in (made.W_enc, made.b_enc, made.W_dec, made.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        made.W_dec[4, 1] = 0  # a decoder vector that a penalty has shrunk away
    return made


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"], autouse=True)
def _products(request, monkeypatch):
    monkeypatch.setitem(MAX_SPARSE_SHARE, "cpu", request.param)


@pytest.fixture
def x():
    return torch.randn(B, M * D, generator=torch.Generator().manual_seed(1))


def _none_fired():
    return torch.zeros(F, dtype=torch.long)


def _loss(crosscoder, x):
    """The loss by its definition; autograd does not see into the choice of features, nor the jump of a gate."""
    rule, norms = crosscoder.config.sparsity, crosscoder.W_dec.norm(dim=-1).T
    h = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc)
    f = h * (rule.select_in_training(h, norms, crosscoder.threshold, FINISHED) > 0)
    at = [rule.gate(f, norms[m], crosscoder.threshold) for m in range(M)]
    x_hat = torch.stack([f_m @ crosscoder.W_dec[:, m] for m, f_m in enumerate(at)], 1) + crosscoder.b_dec
    error = x_hat.flatten(1) - x
    loss = error.square().sum(1).mean()
    if isinstance(rule, L1):
        loss = loss + rule.weight * (f @ norms.sum(0)).mean()
    if isinstance(rule, JumpReLU):
        q = torch.stack([torch.tanh(rule.stretch * f_m * norms[m]) for m, f_m in enumerate(at)]).mean((0, 1))
        loss = loss + rule.weight * (q + q.square() / rule.frequency).sum()
    return loss, f, error


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_are_those_of_the_loss(rule, x):
    crosscoder = _crosscoder(rule)
    weights = {name: p for name, p in crosscoder.named_parameters() if name != "threshold"}
    loss, _, _ = _loss(crosscoder, x)
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    compute_gradients(crosscoder, x, FINISHED, torch.float32, _none_fired(), Scratch())
    for name, parameter in weights.items():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_gates_are_computed_in_chunks_of_tokens(x, monkeypatch):
    found = []
    for values in (jumprelu.CACHED_VALUES, 5 * F):  # the last chunk of 16 tokens then holds one
        monkeypatch.setattr(jumprelu, "CACHED_VALUES", values)
        crosscoder = _crosscoder(JumpReLU(0.2, threshold=0.3, window=0.5))
        stats = compute_gradients(crosscoder, x, FINISHED, torch.float32, _none_fired(), Scratch())
        found.append([stats.penalty, *(parameter.grad for parameter in crosscoder.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_the_gradient_of_a_threshold_is_the_straight_through_estimate(x):
    """Within the window: -theta / (window ||d||) times the gradient of the activations; there is no other gradient."""
    rule = JumpReLU(0.0, threshold=0.3, window=0.5)
    crosscoder = _crosscoder(rule)
    compute_gradients(crosscoder, x, FINISHED, torch.float32, _none_fired(), Scratch())
    with torch.no_grad():
        norms, (_, _, error) = crosscoder.decoder_norms(), _loss(crosscoder, x)
        h = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc)
        expected = torch.zeros(F)
        for m in range(M):
            size = h * norms[m]
            near = ((size - 0.3).abs() < 0.25) & (size > 0)
            gradient = (2 / B) * error[:, m * D : (m + 1) * D] @ crosscoder.W_dec[:, m].T
            per_unit = torch.where(norms[m] > 0, -0.3 / (0.5 * norms[m]), 0.0)
            expected += (gradient * near).sum(0) * per_unit * 0.3  # d theta / d log theta = theta
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(crosscoder.threshold.grad, expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_measurements_of_a_step(rule, x):
    crosscoder = _crosscoder(rule)
    loss, f, error = _loss(crosscoder, x)
    stats = compute_gradients(crosscoder, x, FINISHED, torch.float32, _none_fired(), Scratch())
    torch.testing.assert_close(stats.squared_error.sum() + stats.penalty, loss)
    torch.testing.assert_close(stats.squared_error, error.square().unflatten(1, (M, D)).sum(2).mean(0))
    torch.testing.assert_close(stats.l0, (f > 0).sum(1).float().mean())
    centred = (x - x.mean(0)).unflatten(1, (M, D))
    torch.testing.assert_close(stats.variance, centred.square().sum(2).mean(0))


def test_tokens_are_counted_since_a_feature_last_fired(x):
    crosscoder, tokens_since_fired = _crosscoder(L1(0.5)), _none_fired()
    with torch.no_grad():
        crosscoder.b_enc[2] = -100
    for _ in range(3):
        compute_gradients(crosscoder, x, FINISHED, torch.float32, tokens_since_fired, Scratch())
    assert tokens_since_fired[2] == 3 * B
    assert (tokens_since_fired[torch.arange(F) != 2] == 0).all()


def test_the_threshold_is_measured_once_it_is_time(x):
    crosscoder = _crosscoder(BatchTopK(3, threshold_start=10, threshold_decay=0.5))
    compute_gradients(crosscoder, x, TrainingProgress(10, 100), torch.float32, _none_fired(), Scratch())
    assert crosscoder.threshold == -1
    _, f, _ = _loss(crosscoder, x)
    least = (f * crosscoder.decoder_norms().sum(0))[f > 0].min()
    for expected in (least, least):  # the average of equal measurements is the measurement
        compute_gradients(crosscoder, x, TrainingProgress(50, 100), torch.float32, _none_fired(), Scratch())
        torch.testing.assert_close(crosscoder.threshold, expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_low_precision_products_point_the_same_way(rule, x):
    found = []
    for matmul_dtype in (torch.float32, torch.bfloat16):
        crosscoder = _crosscoder(rule)
        compute_gradients(crosscoder, x, FINISHED, matmul_dtype, _none_fired(), Scratch())
        found.append([p.grad for p in (crosscoder.W_enc, crosscoder.b_enc, crosscoder.W_dec, crosscoder.b_dec)])
    for exact, low in zip(*found, strict=True):
        assert low.dtype == torch.float32
        assert torch.cosine_similarity(low.flatten(), exact.flatten(), dim=0) > 0.99
