"""Codes, reconstructions and thresholds, against the paper's public code."""

import pytest
import torch

from crosstime.crosscoder.sparsity.rule import Scratch, TrainingProgress
from crosstime.crosscoder.sparsity.rules import BatchTopK
from golden_numbers import assert_golden, crosscoder, read_json, tensors


@pytest.fixture(scope="module")
def rows():
    return tensors("fixed_activations")


@pytest.fixture(scope="module")
def weights():
    return tensors("crosscoder_unfolded")


def test_codes_and_reconstructions(rows, weights):
    golden = tensors("encode_decode")
    ours = crosscoder(weights, scale=rows["c"])
    f = ours.encode(rows["x_raw"])
    assert_golden(f, golden["unfolded.f"])
    # Theirs is in scaled units unfolded, in raw ones folded; ours is raw.
    assert_golden(ours.decode(f) * rows["c"][:, None], golden["unfolded.x_hat"])
    assert_golden(ours.decode(f), golden["folded.x_hat"])
    no_bias = ours.decode(f) - ours.raw_bias()
    assert_golden(no_bias * rows["c"][:, None], golden["unfolded.x_hat_nobias"])


def test_folding(rows, weights):
    golden = tensors("encode_decode")
    folded = crosscoder(weights, scale=rows["c"]).fold()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert_golden(getattr(folded, name), golden[f"folded_param.{name}"])
    assert_golden(folded.encode(rows["x_raw"]), golden["folded.f"])
    assert_golden(folded(rows["x_raw"]), golden["folded.x_hat"])


@pytest.mark.parametrize(("stored", "k"), [("train_k8", 8), ("train_k60", 60)])
def test_batch_topk_in_training(rows, weights, stored, k):
    ours = crosscoder(weights, BatchTopK(k), scale=rows["c"])
    golden = tensors("batchtopk_encode")
    f = ours.encode(rows["x_raw"], mode="training")
    assert_golden(f, golden[f"{stored}.f"])
    assert (f > 0).sum() == (golden[f"{stored}.f"] > 0).sum()


@pytest.mark.parametrize(
    ("stored", "threshold"), [("eval_thrmin", "threshold_min"), ("eval_thr1.5min", "threshold_1p5")]
)
def test_batch_topk_at_inference_also_folded(rows, weights, stored, threshold):
    """Folding moves the public code's norms and not its threshold, so folded it gates otherwise (`folded_raw`)."""
    ours, golden = crosscoder(weights, BatchTopK(8), scale=rows["c"]), tensors("batchtopk_encode")
    ours.threshold.fill_(read_json("batchtopk_encode")[threshold])
    for one in (ours, ours.fold()):
        f = one.encode(rows["x_raw"])
        # The smallest kept value is the threshold itself: in another order of summation it falls on either side.
        sure = (golden[f"{stored}.post_relu_f_scaled"] - ours.threshold).abs() > 1e-4
        assert_golden(f * sure, golden[f"{stored}.f"] * sure)
        assert (~sure).sum() <= 1
    assert not torch.equal(golden[f"{stored}.folded_raw.f"] > 0, golden[f"{stored}.f"] > 0)


@torch.no_grad()
@pytest.mark.parametrize("decay", [0.999, 0.9])
def test_the_threshold_of_batch_topk(rows, weights, decay):
    golden = read_json("batchtopk_threshold")["ema"][str(decay)]
    rule = BatchTopK(8, threshold_start=0, threshold_decay=decay)
    ours = crosscoder(weights, rule)
    for batch, expected in zip(rows["train_batches_scaled"], golden, strict=True):
        kept, progress = ours.encode(batch, mode="training"), TrainingProgress(expected["step"] + 1, 100)
        activations = rule.activate(kept, ours.decoder_norms(), ours.threshold, progress, Scratch())
        ours.threshold.copy_(activations.threshold)
        assert float(ours.threshold) == pytest.approx(expected["threshold"], rel=1e-5)


def test_the_schedule_of_k():
    for step, k in read_json("batchtopk_k_schedule")["k_schedule"]:
        assert BatchTopK(200).scheduled_k(TrainingProgress(step, 97_656)) == k
