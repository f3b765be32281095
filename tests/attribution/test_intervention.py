"""The measuring loop against the paper's code, and against hooks on plain transformers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from crosstime.attribution.ablation import intervene
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import JumpReLU
from crosstime.models.suite import Suite
from crosstime.tasks.prompts import Prompts
from crosstime.text.positions import Positions

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    rng = np.random.default_rng(3)
    tokens = [rng.integers(0, 96, length).tolist() for length in (4, 6, 4, 6, 2)]
    answers = torch.from_numpy(rng.permutation(96)[:10]).reshape(2, 5)
    return Prompts("random", tokens, answers[0], answers[1], torch.arange(5))


@pytest.fixture
def gated(crosscoder) -> Crosscoder:
    """A crosscoder that writes a code at a checkpoint only where it is strong there."""
    other = Crosscoder(dataclasses.replace(crosscoder.config, sparsity=JumpReLU(threshold=0.1)))
    other.load_state_dict(crosscoder.state_dict(), strict=False)
    with torch.no_grad():
        other.W_dec[::3, 0] /= 4  # so that some features are written at one checkpoint only
    return other


def hooked_answers(model, prompts, removed):
    """The answers of a plain transformers model, prompt by prompt, with something taken from block 1."""
    found = []
    for n, tokens in enumerate(prompts.tokens):
        handle = model.gpt_neox.layers[1].register_forward_hook(lambda _m, _i, out, n=n: out - removed[n])
        with torch.no_grad():
            log_p = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        handle.remove()
        found.append(log_p[prompts.right[n]] - log_p[prompts.wrong[n]])
    return torch.stack(found)


@torch.no_grad()
def codes(crosscoder, models, prompts):
    """The features of each prompt, position 0 included."""
    residuals = [torch.stack([model.lower(torch.tensor([t])) for model in models], dim=2) for t in prompts.tokens]
    return [crosscoder.encode(x)[0] for x in residuals]


def test_every_feature_ablated_alone_as_in_the_papers_code():
    states = load_file(GOLDEN / "attribution_states_sorted_fp32.safetensors")
    suite = Suite.from_folder(GOLDEN / "models")
    models = [suite.load(name, layer=1) for name in suite.names]
    positions = Positions(bos=False, encode_first=True)
    crosscoder = Crosscoder(CrosscoderConfig(tuple(suite.names), 1, 32, 96, positions=positions))
    scale = {"scale": torch.tensor([2.0, 1.2, 0.8])}
    crosscoder.load_state_dict(load_file(GOLDEN / "crosscoder_unfolded.safetensors") | scale, strict=False)
    for batch in ("b0", "b1"):
        right, wrong = states[f"{batch}.correct_id"], states[f"{batch}.wrong_id"]
        tokens = states[f"{batch}.input_ids"].tolist()
        prompts = Prompts("golden", tokens, right, wrong, torch.arange(len(tokens)), bos=False)
        found = intervene(crosscoder, models, prompts, range(96), batch_size=50)
        for m in range(3):
            clean, ablated = (states[f"{batch}.m{m}.{name}"] for name in ("clean_metric", "exact_ablation_metric"))
            close = {"rtol": 1e-5, "atol": 1e-5 * ablated.abs().max().item()}
            torch.testing.assert_close(-found.clean[m].float(), clean, **close)
            torch.testing.assert_close(-found.alone[m].float(), ablated, **close)
            assert (ablated - clean).abs().max() > 0.01 * ablated.abs().max()


def test_a_gated_code_is_taken_as_it_was_written(transformers_models, models, gated, prompts):
    found = intervene(gated, models, prompts, range(40), [[range(0, 40, 2)]] * 2, batch_size=16)
    f = codes(gated, models, prompts)
    closed = 0
    for m in range(2):
        decoder = gated.raw_decoder(m).detach()
        written = [gated.gate(code, m).detach() for code in f]
        for code in written:
            code[0] = 0
        for i in range(0, 40, 3):
            expected = hooked_answers(
                transformers_models[m], prompts, [code[:, [i]] @ decoder[[i]] for code in written]
            )
            torch.testing.assert_close(found.alone[m, i], expected, rtol=0, atol=1e-5)
            closed += sum(
                bool((c[1:, i] > 0).any() and not (w[:, i] > 0).any()) for c, w in zip(f, written, strict=True)
            )
        taken = [code[:, ::2] @ decoder[::2] for code in written]
        torch.testing.assert_close(
            found.together[m, 0], hooked_answers(transformers_models[m], prompts, taken), rtol=0, atol=1e-5
        )
    assert closed > 0


def test_with_a_baseline_every_feature_is_set_to_it_where_the_crosscoder_reads(
    transformers_models, models, crosscoder, prompts
):
    baseline = torch.rand(40, generator=torch.Generator().manual_seed(1))
    found = intervene(crosscoder, models, prompts, range(40), baseline=baseline, batch_size=16)
    f = codes(crosscoder, models, prompts)
    for m, i in ((0, 3), (1, 3), (1, 20)):
        decoder = crosscoder.raw_decoder(m).detach()
        taken = [(code[:, i] - baseline[i])[:, None] * decoder[i] for code in f]
        for removed in taken:
            removed[0] = 0  # BOS
        torch.testing.assert_close(
            found.alone[m, i], hooked_answers(transformers_models[m], prompts, taken), rtol=0, atol=1e-5
        )
    zero = intervene(crosscoder, models, prompts, range(40), baseline=torch.zeros(40), batch_size=16)
    assert torch.equal(zero.alone, intervene(crosscoder, models, prompts, range(40), batch_size=16).alone)


def test_the_batch_size_does_not_matter(models, crosscoder, prompts):
    one, other = (
        intervene(crosscoder, models, prompts, [0, 7, 30], [[[1, 2], [3]], [[], [39]]], batch_size=size)
        for size in (1, 500)
    )
    for name in ("clean", "alone", "together"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-5)
    assert torch.equal(one.together[1, 0], one.clean[1])  # a group of no features changes nothing


def test_a_group_of_one_is_that_feature_alone(models, crosscoder, prompts):
    found = intervene(crosscoder, models, prompts, [5, 9], [[[5], [9]]] * 2, batch_size=8)
    torch.testing.assert_close(found.together, found.alone, rtol=0, atol=1e-5)
    assert (found.alone != found.clean[:, None]).any()
