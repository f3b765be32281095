"""Devices: found by name or automatically, and their speed measured quickly and without side effects."""

import pytest
import torch

from crosstime.base.device import ComputeConfig, available_device, peak_matmul_flops
from crosstime.base.errors import SettingError

CPU = torch.device("cpu")


def test_devices_are_found_by_name():
    assert available_device("cpu") == CPU
    with pytest.raises(ValueError, match="there is no device called 'gpu': use cpu, cuda or mps"):
        available_device("gpu")
    with pytest.raises(ValueError, match=r"device cpu:1 is not available: this machine has 1 of type cpu"):
        available_device("cpu:1")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_an_automatic_device_is_the_fastest(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert ComputeConfig().torch_device == torch.device(expected)


def test_a_limit_that_is_no_amount_is_refused():
    with pytest.raises(SettingError, match=r"^memory must be an amount"):
        ComputeConfig(memory="20 gigs")


def test_it_is_measured_without_touching_the_random_state():
    state = torch.get_rng_state()
    assert peak_matmul_flops(50, 24, 16, torch.float32, CPU) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("rows", "columns", "features"), [(64, 96, 128), (4096, 96, 10**6)])
def test_flop_are_those_of_five_products(monkeypatch, rows, columns, features):
    """Of a dictionary that is too large for a moment, a part is multiplied."""
    sizes = []

    def fastest(products, *_):
        sizes.append([tuple(result.shape) for result in products()])
        return 2.0

    monkeypatch.setattr("crosstime.base.device._CPU_FLOP", 1e7)
    monkeypatch.setattr("crosstime.base.device.best_seconds", fastest)
    flop = 2 * peak_matmul_flops(rows, columns, features, torch.bfloat16, CPU)
    (b, f), decoded, _, (w, _), _ = sizes[0]
    assert decoded == (b, w) == (min(rows, 1024), columns)
    assert flop == 5 * 2 * b * w * f <= 1e7
    assert f == min(features, int(1e7 / (10 * b * w)))
