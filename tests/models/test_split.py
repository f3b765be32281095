"""A cut model computes what the whole model computes, in every family of architectures."""

import pytest
import torch
import transformers
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import tiny
from crosstime.models.split import SplitLM

VOCAB, WIDTH, LAYERS, LENGTH = 97, 32, 4, 9

_SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_LLAMA_LIKE = _SIZE | {"intermediate_size": 64, "num_key_value_heads": 2}
_WINDOW = {"head_dim": 8, "sliding_window": 4}

CONFIGS = {
    "gpt_neox": transformers.GPTNeoXConfig(**_SIZE, intermediate_size=64),
    "olmo": transformers.OlmoConfig(**_LLAMA_LIKE, clip_qkv=4.0),
    "olmo2": transformers.Olmo2Config(**_LLAMA_LIKE),
    "bloom": transformers.BloomConfig(**_SIZE),
    "llama": transformers.LlamaConfig(**_LLAMA_LIKE),
    "qwen2": transformers.Qwen2Config(**_LLAMA_LIKE),
    "qwen3": transformers.Qwen3Config(**_LLAMA_LIKE, head_dim=8),
    "gpt2": transformers.GPT2Config(**_SIZE, n_positions=64),
    "gemma": transformers.GemmaConfig(**_LLAMA_LIKE, head_dim=8),
    # Sliding windows shorter than the text in every other block; soft-capped logits.
    "gemma2": transformers.Gemma2Config(**_LLAMA_LIKE, **_WINDOW, final_logit_softcapping=3.0),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return tiny.make_model(CONFIGS[request.param])


@pytest.fixture(params=["no padding", "left padding"])
def batch(request):
    """Tokens [3, S] and their mask, which is None, or says that two of the rows are shorter."""
    tokens = torch.randint(1, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    if request.param == "no padding":
        return tokens, None
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[0, :4], mask[1, :1] = 0, 0
    return tokens, mask


def real_tokens(tokens, mask):
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()


def whole(model, tokens, mask):
    """Every row alone and without padding: what the model says when nothing of ours is in the way.

    Returns:
        Rows of `hidden_states` (one tuple a row) and logits, at real tokens only.
    """
    real = real_tokens(tokens, mask)
    with torch.no_grad():
        rows = [model(tokens[row, real[row]][None], output_hidden_states=True) for row in range(len(tokens))]
    return [[h[0] for h in row.hidden_states] for row in rows], [row.logits[0] for row in rows]


@pytest.mark.parametrize("layer", [0, 2])
def test_residual_and_logits_are_the_whole_models(model, batch, layer):
    tokens, mask = batch
    split = SplitLM(model, layer)
    hidden, logits = whole(model, tokens, mask)
    residual = split.lower(tokens, mask)
    joined = split.logits(tokens, mask)
    for row in range(3):
        real = real_tokens(tokens, mask)[row]
        torch.testing.assert_close(residual[row, real], hidden[row][layer + 1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(joined[row, real], logits[row], rtol=1e-4, atol=1e-4)


def test_positions_are_rows_of_all_the_logits(model, batch):
    tokens, mask = batch
    split = SplitLM(model, 1)
    residual = split.lower(tokens, mask)
    positions = torch.tensor([LENGTH - 1, 5, 7])
    chosen = split.upper(residual, mask, positions)
    assert chosen.shape == (3, VOCAB)
    torch.testing.assert_close(chosen, split.upper(residual, mask)[torch.arange(3), positions])


def test_tokens_are_columns_of_all_the_logits(model, batch):
    tokens, mask = batch
    split = SplitLM(model, 1)
    residual = split.lower(tokens, mask)
    positions, wanted = torch.tensor([LENGTH - 1, 5, 7]), torch.tensor([[3, 9], [0, VOCAB - 1], [4, 4]])
    logits = split.upper(residual, mask)
    everywhere = split.upper(residual, mask, tokens=wanted)
    torch.testing.assert_close(everywhere, logits.gather(2, wanted[:, None].expand(-1, LENGTH, -1)))
    chosen = split.upper(residual, mask, positions, wanted)
    torch.testing.assert_close(chosen, everywhere[torch.arange(3), positions])
    torch.testing.assert_close(split.upper(residual, mask), logits)  # the next call makes them all again


def test_tokens_of_an_unembedding_of_another_kind(model, batch):
    class Quantised(nn.Linear):
        """Whose weights nobody else can read."""

    tokens, mask = batch
    plain = SplitLM(model, 1)
    residual, wanted = plain.lower(tokens, mask), torch.tensor([[3, 9], [0, VOCAB - 1], [4, 4]])
    other = tiny.make_model(model.config)
    other.load_state_dict(model.state_dict())
    other.get_output_embeddings().__class__ = Quantised
    found = SplitLM(other, 1).upper(residual, mask, tokens=wanted)
    torch.testing.assert_close(found, plain.upper(residual, mask, tokens=wanted))


def test_gradient_is_the_whole_models(model, batch):
    """The gradient of a loss with respect to a block's output, which a hook on the whole model replaces."""
    tokens, mask = batch
    layer, last, label = 1, torch.full((3,), LENGTH - 1), torch.tensor([3, 5, 7])
    split = SplitLM(model, layer)
    residual = split.lower(tokens, mask).requires_grad_()
    ours = split.upper(residual, mask, last)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(ours, label), residual)

    expected = torch.zeros_like(gradient)
    block = list(model.base_model.modules())
    block = next(m for m in block if isinstance(m, nn.ModuleList) and len(m) == LAYERS)[layer]
    for row in range(3):
        real = real_tokens(tokens, mask)[row]
        leaf = residual.detach()[row, real][None].requires_grad_()
        form = lambda output, leaf=leaf: (leaf, *output[1:]) if isinstance(output, tuple) else leaf  # noqa: E731
        handle = block.register_forward_hook(lambda _m, _a, output, form=form: form(output))
        theirs = model(tokens[row, real][None]).logits[:, -1]
        handle.remove()
        (expected[row, real],) = torch.autograd.grad(
            nn.functional.cross_entropy(theirs, label[row : row + 1]) / 3, leaf
        )
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_head_is_final_norm_and_unembedding(model):
    split = SplitLM(model, LAYERS - 1)
    tokens = torch.randint(1, VOCAB, (2, LENGTH))
    last = split.lower(tokens)
    torch.testing.assert_close(split.head(last), model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert split.head(last[0, 3]).shape == (VOCAB,)


def test_bf16_is_finite_and_close(model, batch):
    tokens, mask = batch
    half = tiny.make_model(model.config).to(torch.bfloat16)
    split = SplitLM(half, 2)
    _, logits = whole(half, tokens, mask)
    residual = split.lower(tokens, mask).requires_grad_()
    joined = split.upper(residual, mask)
    assert residual.dtype == joined.dtype == torch.bfloat16
    for row in range(3):
        ours, theirs = joined[row, real_tokens(tokens, mask)[row]].float(), logits[row].float()
        assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
    (gradient,) = torch.autograd.grad(joined[:, -1].float().logsumexp(-1).sum(), residual)
    assert gradient.isfinite().all()


def test_model_is_left_as_it_was(model, batch):
    tokens, mask = batch
    model = tiny.make_model(model.config).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    split = SplitLM(model, 1)
    residual = split.lower(tokens, mask).requires_grad_()
    split.upper(residual, mask).sum().backward()
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.fixture
def neox():
    return tiny.make_model(CONFIGS["gpt_neox"])


def test_parameters_are_shared_and_frozen(neox):
    split = SplitLM(neox, 1)
    tokens = torch.randint(1, VOCAB, (1, LENGTH))
    before = split.logits(tokens)
    assert not before.requires_grad
    with torch.no_grad():
        neox.lm_head.weight.mul_(2)
    torch.testing.assert_close(split.logits(tokens), 2 * before)


def test_facts(neox):
    split = SplitLM(neox, 2, name="step10")
    assert (split.layer, split.width, split.n_layers, split.vocab_size) == (2, WIDTH, LAYERS, VOCAB)
    assert (split.name, split.dtype, split.device) == ("step10", torch.float32, torch.device("cpu"))


def test_residual_of_another_dtype_is_taken(neox):
    split = SplitLM(neox.to(torch.bfloat16), 1)
    residual = split.lower(torch.randint(1, VOCAB, (1, LENGTH))).float().requires_grad_()
    (gradient,) = torch.autograd.grad(split.upper(residual).float().sum(), residual)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_layer_out_of_range(neox, layer):
    with pytest.raises(ValueError, match=rf"layer {layer} is out of range: model step10 has blocks 0 to {LAYERS - 1}"):
        SplitLM(neox, layer, name="step10")


def test_without_upper_frees_the_upper_blocks():
    model = tiny.make_model(CONFIGS["gpt_neox"])
    weights = [block.mlp.dense_h_to_4h.weight for block in model.gpt_neox.layers[1:3]]
    lower, upper = (StorageWeakRef(weight.untyped_storage()) for weight in weights)
    split = SplitLM(model, 1)
    tokens = torch.randint(1, VOCAB, (1, LENGTH))
    residual = split.lower(tokens)
    split = split.without_upper()
    del model, weights
    assert upper.expired()
    assert not lower.expired()
    torch.testing.assert_close(split.lower(tokens), residual)
    for call in (lambda: split.upper(residual), lambda: split.head(residual), lambda: split.logits(tokens)):
        with pytest.raises(ValueError, match="freed by without_upper"):
            call()


def test_broken_checkpoint_can_be_cut(neox):
    """A survey has to load a checkpoint of NaN to say that it is broken."""
    with torch.no_grad():
        neox.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.fill_(torch.nan)
    assert SplitLM(neox, 1).lower(torch.ones(1, 3, dtype=torch.long)).isnan().all()


def test_model_that_the_cut_does_not_reproduce_is_refused(neox):
    class Counting(type(neox.gpt_neox.layers[3])):  # what it returns depends on how often it was called
        def forward(self, hidden_states, **kwargs):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(hidden_states, **kwargs) + self.calls * torch.arange(WIDTH)

    neox.gpt_neox.layers[3].__class__ = Counting
    with pytest.raises(ValueError, match="cannot be split at layer 1: without padding, the logits of the split model"):
        SplitLM(neox, 1)


def test_no_list_of_blocks(neox):
    neox.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="expected one list of 5 blocks in its base model, found none"):
        SplitLM(neox, 1)


def test_bare_base_model_is_refused(neox):
    with pytest.raises(ValueError, match="not a causal language model"):
        SplitLM(neox.gpt_neox, 1)


def test_rows_longer_than_the_model_has_positions_are_refused():
    model = tiny.make_model(tiny.neox_config())
    lm = SplitLM(model, layer=1)
    assert lm.lower(torch.zeros(1, 128, dtype=torch.long)).shape == (1, 128, 32)
    with pytest.raises(ValueError, match="has 128 positions, but the text has 129 tokens"):
        lm.lower(torch.zeros(1, 129, dtype=torch.long))
