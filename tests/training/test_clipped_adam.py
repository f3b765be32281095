"""The clipping within the optimiser's step is the clipping before it; steps that are not finite are passed over."""

import pytest
import torch
from torch import nn

from crosstime.training.clipped_adam import ClippedAdam


def _parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (3,))]


def _give_gradients(parameters, step, size):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


def _groups(parameters):
    return [{"params": parameters[:1], "lr": 0.01}, {"params": parameters[1:], "lr": 0.1}]


@pytest.mark.parametrize("size", [0.01, 10.0], ids=["within the clip", "beyond it"])
def test_it_is_clip_then_step(size):
    ours, theirs = _parameters(), _parameters()
    optimiser = ClippedAdam(_groups(ours), lr=0.01, clip=1.0)
    plain = torch.optim.Adam(_groups(theirs), lr=0.01)
    for step in range(5):
        _give_gradients(ours, step, size * (step + 1))
        _give_gradients(theirs, step, size * (step + 1))
        assert optimiser.clipped_step()
        nn.utils.clip_grad_norm_(theirs, 1.0)
        plain.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    ours, undisturbed = _parameters(), _parameters()
    optimiser, other = (ClippedAdam(_groups(p), lr=0.01, clip=1.0) for p in (ours, undisturbed))
    for step in range(3):
        _give_gradients(ours, step, 1.0)
        assert optimiser.clipped_step()
        _give_gradients(ours, step, 1.0)
        ours[1].grad[2] = bad
        assert not optimiser.clipped_step()
        _give_gradients(undisturbed, step, 1.0)
        other.clipped_step()
    for one, peace in zip(ours, undisturbed, strict=True):
        assert torch.equal(one, peace)
        for key, value in optimiser.state[one].items():
            assert torch.equal(value, other.state[peace][key]), key
