"""Schedules, against the numbers of the paper's settings, and settings that make no sense."""

import pytest
import torch

from crosstime.training.config import TrainConfig


def test_the_papers_schedules():
    config = TrainConfig()
    assert config.steps == 97_656
    assert config.lr_at(78_124) == 5e-5
    assert config.lr_at(78_125) < 5e-5
    assert config.lr_at(97_655) == pytest.approx(5e-5 / 19_531, rel=1e-4)


def test_schedules_may_be_left_out():
    config = TrainConfig(lr_decay=0.0)
    assert config.lr_at(97_655) == 5e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"lr_decay": 1.5}, "lr_decay must be a share"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"buffer_tokens": 10}, r"buffer_tokens \(10\) must be at least batch_size \(4096\)"),
        ({"tokens": 100}, r"^tokens \(100\) must be at least batch_size"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_a_device_that_is_slow_in_bfloat16_gets_float32(monkeypatch):
    cpu = torch.device("cpu")
    for fast, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda fast=fast: fast)
        chosen = TrainConfig().on(cpu)
        assert (chosen.matmul_dtype, chosen.model_dtype) == (dtype, dtype)
        assert TrainConfig(matmul_dtype="bfloat16").on(cpu).matmul_dtype == "bfloat16"
