"""The gradients of a step, against autograd on the paper's loss."""

import pytest
import torch

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.training.step import gradients

M, D, F, B = 3, 6, 11, 16


@pytest.fixture
def crosscoder():
    made = Crosscoder(CrosscoderConfig(("a", "b", "c"), 0, D, F))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        made.W_dec[4, 1] = 0  # a decoder vector that the penalty has shrunk away
    return made


@pytest.fixture
def x():
    return torch.randn(B, M * D, generator=torch.Generator().manual_seed(1))


def _loss(crosscoder, x, l1):
    f = torch.relu(x @ crosscoder.W_enc.flatten(0, 1) + crosscoder.b_enc)
    error = f @ crosscoder.W_dec.flatten(1) + crosscoder.b_dec.flatten() - x
    return error.square().sum(1).mean() + l1 * (f @ crosscoder.W_dec.norm(dim=-1).sum(1)).mean(), f, error


@pytest.mark.parametrize("l1", [0.0, 0.7])
def test_gradients_are_those_of_the_loss(crosscoder, x, l1):
    loss, _, _ = _loss(crosscoder, x, l1)
    expected = dict(
        zip(dict(crosscoder.named_parameters()), torch.autograd.grad(loss, crosscoder.parameters()), strict=True)
    )
    gradients(crosscoder, x, l1, torch.float32)
    for name, parameter in crosscoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_what_a_step_reports(crosscoder, x):
    loss, f, error = _loss(crosscoder, x, 0.7)
    stats = gradients(crosscoder, x, 0.7, torch.float32)
    torch.testing.assert_close(stats.squared_error.sum() + 0.7 * stats.penalty, loss)
    torch.testing.assert_close(stats.squared_error, error.square().unflatten(1, (M, D)).sum(2).mean(0))
    torch.testing.assert_close(stats.l0, (f > 0).sum(1).float().mean())
    centred = (x - x.mean(0)).unflatten(1, (M, D))
    torch.testing.assert_close(stats.variance, centred.square().sum(2).mean(0))


def test_low_precision_products_point_the_same_way(crosscoder, x):
    gradients(crosscoder, x, 0.7, torch.float32)
    exact = [parameter.grad.clone() for parameter in crosscoder.parameters()]
    gradients(crosscoder, x, 0.7, torch.bfloat16)
    for parameter, expected in zip(crosscoder.parameters(), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert torch.cosine_similarity(parameter.grad.flatten(), expected.flatten(), dim=0) > 0.999
