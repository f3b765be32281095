"""Which features each rule keeps, in training and at inference."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rule import FINISHED, Scratch, Sparsity, TrainingProgress
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU, TopK
from crosstime.crosscoder.sparsity.topk import keep_largest, largest_per_token

M, D, F = 3, 5, 12
RULES = [L1(0.5), TopK(3), BatchTopK(3), JumpReLU(threshold=0.5)]


def _crosscoder(rule, seed=0):
    made = Crosscoder(CrosscoderConfig(("a", "b", "c"), 0, D, F, sparsity=rule))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (made.W_enc, made.b_enc, made.W_dec, made.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        made.W_dec.mul_(torch.rand(F, M, 1, generator=generator) * 2)
        made.scale.copy_(torch.tensor([2.0, 1.2, 0.8]))
        if isinstance(rule, BatchTopK):
            made.threshold.fill_(4.0)
    return made


@pytest.fixture
def x():
    return torch.randn(20, M, D, generator=torch.Generator().manual_seed(1))


def _scaled(crosscoder, x):
    scaled = x * crosscoder.scale[:, None]
    h = torch.relu(torch.einsum("bmd,mdf->bf", scaled, crosscoder.W_enc) + crosscoder.b_enc)
    return h, h * crosscoder.decoder_norms().sum(0)


def test_topk_keeps_the_largest_of_each_row(x):
    crosscoder = _crosscoder(TopK(3))
    f, (h, g) = crosscoder.encode(x), _scaled(crosscoder, x)
    for row in range(len(x)):
        kept = set(f[row].nonzero()[:, 0].tolist())
        assert kept == {int(i) for i in g[row].argsort(descending=True)[:3] if h[row, i] > 0}
    torch.testing.assert_close(f[f > 0], h[f > 0])


def test_batch_topk_keeps_k_a_row_on_average_in_training(x):
    crosscoder = _crosscoder(BatchTopK(3))
    f, (h, g) = crosscoder.encode(x, mode="training"), _scaled(crosscoder, x)
    assert (f > 0).sum() == 3 * len(x)
    assert g[f > 0].min() > g[(f == 0) & (h > 0)].max()
    torch.testing.assert_close(f[f > 0], h[f > 0])
    assert (f > 0).sum(1).unique().numel() > 1


def test_batch_topk_at_inference_is_a_threshold_that_no_other_row_moves(x):
    crosscoder = _crosscoder(BatchTopK(3))
    f, (h, g) = crosscoder.encode(x), _scaled(crosscoder, x)
    torch.testing.assert_close(f, h * (g > 4.0))
    torch.testing.assert_close(torch.cat([crosscoder.encode(row[None]) for row in x]), f)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_row_may_stand_alone_in_either_mode(rule, x):
    crosscoder = _crosscoder(rule)
    for mode in ("inference", "training"):
        assert torch.equal(crosscoder.encode(x[0], mode), crosscoder.encode(x[:1], mode)[0])


def test_jumprelu_gates_each_checkpoint_by_itself(x):
    crosscoder = _crosscoder(JumpReLU(threshold=0.5))
    f, (h, _) = crosscoder.encode(x), _scaled(crosscoder, x)
    norms = crosscoder.decoder_norms().T
    open_at = h[:, :, None] * norms > 0.5
    torch.testing.assert_close(f, h * open_at.any(2))
    written = torch.stack([crosscoder.gate(f, m) for m in range(M)], 2)
    torch.testing.assert_close(written, h[:, :, None] * open_at)
    assert (open_at.any(2) & ~open_at.all(2)).any(), "some feature fires at one checkpoint and not at another"
    x_hat = torch.einsum("bfm,fmd->bmd", written, crosscoder.W_dec) + crosscoder.b_dec
    torch.testing.assert_close(crosscoder(x), x_hat / crosscoder.scale[:, None])


def test_jumprelu_without_a_threshold_is_relu(x):
    gated, plain = _crosscoder(JumpReLU(threshold=1e-30)), _crosscoder(L1())
    torch.testing.assert_close(gated.encode(x), plain.encode(x))
    torch.testing.assert_close(gated(x), plain(x))


def test_jumprelu_with_equal_norms_is_gated_as_one(x):
    crosscoder = _crosscoder(JumpReLU(threshold=0.5))
    with torch.no_grad():
        crosscoder.W_dec.div_(crosscoder.W_dec.norm(dim=-1, keepdim=True))
    f = crosscoder.encode(x)
    for m in range(M):
        assert torch.equal(crosscoder.gate(f, m), f)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_folding_changes_neither_codes_nor_reconstructions_nor_norms(rule, x):
    crosscoder = _crosscoder(rule)
    folded = crosscoder.fold()
    assert torch.equal(folded.scale, torch.ones(M))
    torch.testing.assert_close(folded.encode(x), crosscoder.encode(x))
    torch.testing.assert_close(folded(x), crosscoder(x))
    torch.testing.assert_close(folded.decoder_norms(), crosscoder.decoder_norms())
    assert torch.equal(folded.encode(x) > 0, crosscoder.encode(x) > 0)
    torch.testing.assert_close(folded.raw_decoder(1), crosscoder.raw_decoder(1))
    torch.testing.assert_close(folded.fold().W_dec, folded.W_dec)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rescaling_a_feature_changes_nothing(rule, x):
    crosscoder = _crosscoder(rule)
    before, f = crosscoder(x), crosscoder.encode(x)
    with torch.no_grad():
        crosscoder.W_enc[:, :, 2] *= 3
        crosscoder.b_enc[2] *= 3
        crosscoder.W_dec[2] /= 3
    torch.testing.assert_close(crosscoder(x), before)
    assert torch.equal(crosscoder.encode(x) > 0, f > 0)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_crosscoder_comes_back_from_its_files(rule, x, tmp_path):
    crosscoder = _crosscoder(rule)
    crosscoder.save_pretrained(tmp_path)
    again = Crosscoder.from_pretrained(tmp_path)
    assert again.config.sparsity == rule
    assert torch.equal(again.encode(x), crosscoder.encode(x))
    assert torch.equal(again(x), crosscoder(x))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=5), st.integers(1, 20))
def test_the_largest_of_a_batch_are_exactly_so_many_and_the_first_of_equals(rows, n):
    values = torch.tensor(rows, dtype=torch.float32)
    kept, least = keep_largest(values, values.clone(), n, Scratch())
    assert float(least) == min(kept[kept > 0].tolist(), default=math.inf)
    positive = int((values > 0).sum())
    assert (kept > 0).sum() == min(n, positive)
    order = sorted(range(values.numel()), key=lambda i: (-values.view(-1)[i].item(), i))
    expected = {i for i in order[:n] if values.view(-1)[i] > 0}
    assert set(kept.view(-1).nonzero()[:, 0].tolist()) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.integers(1, 6))
def test_the_largest_of_a_row_are_the_first_of_equals(row, k):
    kept = largest_per_token(torch.tensor([row], dtype=torch.float32), k)[0]
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    assert set(kept.nonzero()[:, 0].tolist()) == set(order[:k])


def test_schedules():
    rule = BatchTopK()
    long = 97_656
    assert [rule.scheduled_k(TrainingProgress(step, long)) for step in (0, 2500, 4999, 5000)] == [1000, 600, 200, 200]
    assert rule.scheduled_k(TrainingProgress(500, 1000)) == 200, "a short run arrives half-way"
    assert L1(2.0).penalty_coefficient(TrainingProgress(2441, long)) == pytest.approx(2 * 2441 / 4882.8)
    assert L1(2.0).penalty_coefficient(TrainingProgress(4883, long)) == 2
    assert L1(2.0, warmup=0.0).penalty_coefficient(TrainingProgress(0, long)) == 2
    assert JumpReLU(0.3).penalty_coefficient(FINISHED) == 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-1.0), "weight must not be negative"),
        (lambda: L1(warmup=1.5), "warmup must be a share"),
        (lambda: L1(float("nan")), "weight must not be negative"),
        (lambda: TopK(0), "k must be at least 1"),
        (lambda: BatchTopK(0), "k must be at least 1"),
        (lambda: BatchTopK(threshold_decay=1.0), "threshold_decay must be at least 0"),
        (lambda: BatchTopK(aux_weight=-1.0), "aux_weight must not be negative"),
        (lambda: BatchTopK(dead_tokens=0), "dead_tokens must be at least 1"),
        (lambda: JumpReLU(threshold=0.0), "threshold must be positive"),
        (
            lambda: CrosscoderConfig(("a", "b"), 0, 4, 8, sparsity=TopK(9)),
            "k \\(9\\) exceeds the number of features \\(8\\)",
        ),
        (
            lambda: CrosscoderConfig(("a", "b"), 0, 4, 8, sparsity=BatchTopK(9)),
            "k \\(9\\) exceeds the number of features \\(8\\)",
        ),
        (lambda: Sparsity.from_dict({"rule": "batchtop"}), "the nearest is 'batchtopk'"),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_survives_json(rule):
    assert Sparsity.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert dataclasses.replace(rule) == rule
