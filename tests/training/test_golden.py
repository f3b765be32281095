"""Losses, schedules, optimisation steps and the auxiliary loss, against the paper's public code."""

import pytest
import torch

import crosstime.training.step as step_module
from crosstime.crosscoder.sparsity.rule import FINISHED, Scratch, TrainingProgress
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK
from crosstime.training.config import TrainConfig
from crosstime.training.state import TrainState
from crosstime.training.step import add_auxk_gradients, compute_gradients
from golden_numbers import FEATURES, WIDTH, assert_golden, crosscoder, part, read_json, tensors

CONFIG = TrainConfig(
    tokens=640, batch_size=64, buffer_tokens=64, lr=1e-3, matmul_dtype="float32", model_dtype="float32"
)
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


@pytest.fixture(scope="module")
def rows():
    return tensors("fixed_activations")


def test_losses(rows):
    golden = tensors("l1_losses")
    x = (rows["x_raw"] * rows["c"][:, None]).flatten(1)
    ours = crosscoder(tensors("crosscoder_unfolded"), L1(1.0))
    stats = compute_gradients(ours, x, FINISHED, torch.float32, torch.zeros(FEATURES, dtype=torch.long), Scratch())
    assert_golden(stats.squared_error.sum(), golden["tiny_cc.l2_loss"])
    assert_golden(stats.squared_error, golden["tiny_cc.l2_loss_model_specific"].mean(1))
    assert_golden(stats.penalty, golden["tiny_cc.l1_loss"])
    assert_golden(stats.l0, golden["tiny_cc.l0_loss"])


def test_schedules():
    config, rule = TrainConfig(), L1()
    golden = read_json("schedules")
    assert config.steps == golden["total_steps"]
    for row in golden["table"]:
        step = row["step"]
        assert config.lr_at(step) / config.lr == pytest.approx(row["lr_factor"], rel=1e-5)
        assert rule.penalty_coefficient(TrainingProgress(step, config.steps)) == pytest.approx(
            row["l1_coeff"], rel=1e-5
        )


def _train(state, rows, golden, log):
    """Takes the ten stored steps, comparing parameters and log as it goes."""
    for i, (batch, record) in enumerate(zip(rows["train_batches_scaled"], log["steps"], strict=True), 1):
        stats = state.train_step(batch.flatten(1))
        yield stats, record
        if i in (5, 10):
            for name in WEIGHTS:
                assert_golden(getattr(state.crosscoder, name), golden[f"step{i}.{name}"])


def test_ten_steps_of_l1(rows):
    golden, log = tensors("l1_train"), read_json("l1_train")
    state = TrainState(crosscoder(part(golden, "init."), L1(2.0, warmup=0.4)), CONFIG)
    for stats, record in _train(state, rows, golden, log):
        assert float(stats.squared_error.sum()) == pytest.approx(record["train/l2_loss"], rel=1e-5)
        assert float(stats.squared_error.sum() + stats.penalty) == pytest.approx(record["train/loss"], rel=1e-5)
        assert state.scheduled_values()["penalty_coefficient"] == pytest.approx(record["train/l1_coeff"])


def test_ten_steps_of_batch_topk_with_the_sign_that_the_public_code_gives_its_auxiliary_loss(rows, monkeypatch):
    golden, log = tensors("batchtopk_train"), read_json("batchtopk_train")
    rule = BatchTopK(2, k_start=8, k_steps=4, threshold_start=2, threshold_decay=0.9, dead_tokens=128)

    def wrong_sign(crosscoder, x, residual, *arguments, **settings):
        return add_auxk_gradients(crosscoder, x, -residual, *arguments, **settings)

    monkeypatch.setattr(step_module, "add_auxk_gradients", wrong_sign)
    state = TrainState(crosscoder(part(golden, "init."), rule), CONFIG)
    felt = 0.0
    for i, (stats, record) in enumerate(_train(state, rows, golden, log), 1):
        assert float(stats.squared_error.sum()) == pytest.approx(record["train/l2_loss"], rel=1e-5)
        assert float(stats.auxiliary) * 32 == pytest.approx(record["train/auxk_loss"], rel=1e-5)
        felt += float(stats.auxiliary)
        assert state.scheduled_values()["k"] == record["train/k"]
        assert float(state.crosscoder.threshold) == pytest.approx(record["train/threshold"], rel=1e-5)
        if i in (5, 10):
            assert torch.equal(state.tokens_since_fired, golden[f"step{i}.num_tokens_since_fired"].long())
    assert felt > 0, "no feature died, so the auxiliary loss was never tried"


@pytest.mark.parametrize(("sign", "stored"), [(1, "aux_correct_sign"), (-1, "aux_as_released")])
def test_the_auxiliary_loss(rows, sign, stored):
    golden = read_json("batchtopk_aux")
    x = rows["x_raw"] * rows["c"][:, None]
    ours = crosscoder(tensors("crosscoder_unfolded"), BatchTopK(golden["k"]))
    dead = torch.arange(FEATURES) % 3 == 0
    h = torch.relu(x.flatten(1) @ ours.W_enc.flatten(0, 1) + ours.b_enc)
    residual = sign * (x - ours.decode(ours.encode(x, mode="training"))).flatten(1)
    compute_gradients(ours, x.flatten(1), FINISHED, torch.float32, torch.zeros(FEATURES, dtype=torch.long), Scratch())
    loss = add_auxk_gradients(
        ours, x.flatten(1), residual.detach(), h.detach(), dead, k=WIDTH // 2, weight=1.0, matmul_dtype=torch.float32
    )
    assert float(loss) == pytest.approx(golden[stored], rel=1e-5)
