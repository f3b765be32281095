"""Contexts against planted worlds, and token texts against real tokenizers."""

import dataclasses

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rules import JumpReLU
from crosstime.evaluation.contexts import (
    ContextsConfig,
    contexts,
    load_contexts,
    save_contexts,
    token_text,
    token_texts,
)
from crosstime.text.corpus import Corpus
from planted import plant
from tiny import make_tokenizer

MULTIBYTE = "“Naïve” — said the ☃ in 日本語, señor. "


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def rare_world(tokenizer):
    """A world whose features are rare, so that windows differ."""
    return plant(n_rows=len(tokenizer), density=0.05, seed=3)


@pytest.fixture(scope="module")
def text(tokenizer) -> Corpus:
    """Random words, without tokens that are part of a character."""
    whole = [i for i in range(1, len(tokenizer)) if tokenizer.decode([i]).isascii()]
    blocks = np.random.default_rng(5).choice(np.array(whole, dtype=np.uint16), (40, 30))
    blocks[:, 0] = 0  # BOS
    return Corpus(blocks, "random")


def test_the_strongest_windows_of_a_planted_world_are_found(rare_world, tokenizer, text):
    found = contexts(
        rare_world.crosscoder(),
        rare_world.models(),
        text,
        tokenizer,
        range(10),
        ContextsConfig(per_feature=6, window=8),
    )
    assert list(found) == list(range(10))
    codes = rare_world.codes[text.blocks.astype(np.int64)].numpy()
    codes[:, 0] = 0
    for i, feature in found.items():
        peaks = np.sort(codes[:, :, i].max(1))[::-1][:6]
        assert feature.max_activation == pytest.approx(peaks[0], abs=1e-3)
        assert len(feature.contexts) == 6
        for context, peak in zip(feature.contexts, peaks, strict=True):
            assert len(context.tokens) == len(context.activations) == 8
            assert context.activations[context.peak] == max(context.activations) == pytest.approx(peak, abs=1e-3)
            assert not any("endoftext" in token for token in context.tokens)
            # The window stands somewhere in the text, with just these activations.
            where = [
                (b, start)
                for b in range(len(text))
                for start in range(1, 23)
                if np.allclose(codes[b, start : start + 8, i], context.activations, atol=1e-3)
            ]
            assert any(
                tokenizer.decode(text.blocks[b, start : start + 8].tolist()) == "".join(context.tokens)
                for b, start in where
            )


def test_the_same_text_is_shown_once(rare_world, tokenizer, text):
    repeated = Corpus(np.concatenate([text.blocks, text.blocks[::-1]]), "twice")
    arguments, config = (rare_world.crosscoder(), rare_world.models()), ContextsConfig(per_feature=60)
    once, twice = (contexts(*arguments, corpus, tokenizer, [2, 4], config) for corpus in (text, repeated))
    for i in (2, 4):
        assert len(once[i].contexts) > 20
        assert sorted(c.tokens for c in once[i].contexts) == sorted(c.tokens for c in twice[i].contexts)


def test_blocks_shorter_than_the_window_are_shown_whole(rare_world, tokenizer, text):
    short = Corpus(text.blocks[:, :7], "short")
    found = contexts(rare_world.crosscoder(), rare_world.models(), short, tokenizer, [2], ContextsConfig(window=24))
    assert {len(context.tokens) for context in found[2].contexts} == {6}


def test_promoted_tokens_are_those_of_the_logit_lens(transformers_models, models, crosscoder, tokenizer):
    blocks = np.random.default_rng(5).integers(1, 96, (8, 20), dtype=np.uint16)
    text = Corpus(blocks, "random")
    found = contexts(crosscoder, models, text, tokenizer, [3, 17])
    tokens = torch.from_numpy(blocks.astype(np.int64))
    with torch.no_grad():
        f = crosscoder.encode(torch.stack([model.lower(tokens) for model in models], dim=2))[:, 1:]
        for i in (3, 17):
            mean = f[..., i][f[..., i] > 0].mean()
            for m, (name, model) in enumerate(zip(("early", "late"), transformers_models, strict=True)):
                bias = crosscoder.raw_bias()[m]
                ends = torch.stack([bias, bias + mean * crosscoder.raw_decoder(m)[i]])
                low, high = model.lm_head(model.gpt_neox.final_layer_norm(ends))
                for ours, expected in (
                    (found[i].promoted[name], (high - low).sort(descending=True)),
                    (found[i].suppressed[name], (high - low).sort()),
                ):
                    values, ids = (column[:10].tolist() for column in expected)
                    assert [token for token, _ in ours] == [token_text(tokenizer, token) for token in ids]
                    np.testing.assert_allclose([value for _, value in ours], values, atol=1e-5)


def test_a_checkpoint_whose_gate_is_closed_promotes_nothing(rare_world, tokenizer, text):
    """JumpReLU: at a checkpoint of small decoder norm the feature is not written, so it moves no logit there."""
    plain = rare_world.crosscoder()
    gated = Crosscoder(dataclasses.replace(plain.config, sparsity=JumpReLU(threshold=1e-3)))
    gated.load_state_dict({**gated.state_dict(), **plain.state_dict()})
    early, late = rare_world.names[0], rare_world.names[-1]
    (i, *_) = (plain.decoder_norms() > 0.1).all(0).nonzero()[:, 0].tolist()
    with torch.no_grad():
        gated.W_dec[i, 0] *= 1e-6
    feature = contexts(gated, rare_world.models(), text, tokenizer, [i])[i]
    assert feature.max_activation > 0
    assert feature.promoted[early] == feature.suppressed[early] == []
    assert len(feature.promoted[late]) == len(feature.suppressed[late]) > 0


def test_a_feature_that_never_fires_has_no_contexts_and_promotes_nothing(rare_world, tokenizer, text):
    crosscoder = rare_world.crosscoder()
    with torch.no_grad():
        crosscoder.b_enc[1] = -1000
    silent = contexts(crosscoder, rare_world.models(), text, tokenizer, [1])[1]
    assert silent.contexts == []
    assert silent.max_activation == 0
    assert set(silent.promoted) == set(silent.suppressed) == set(rare_world.names)
    assert not any([*silent.promoted.values(), *silent.suppressed.values()])


def test_contexts_survive_the_disk(rare_world, tokenizer, text, tmp_path):
    found = contexts(rare_world.crosscoder(), rare_world.models(), text, tokenizer, [8, 2])
    save_contexts(tmp_path / "contexts.json", found)
    assert load_contexts(tmp_path / "contexts.json") == found


def test_blocks_and_no_features(rare_world, tokenizer, text):
    arguments = rare_world.crosscoder(), rare_world.models()
    assert contexts(*arguments, text, tokenizer, [2], ContextsConfig(blocks=10)) == contexts(
        *arguments, text.take(10), tokenizer, [2]
    )
    assert contexts(*arguments, text, tokenizer, []) == {}


def test_bad_input_is_refused(rare_world, tokenizer, text):
    arguments = rare_world.crosscoder(), rare_world.models()
    with pytest.raises(ValueError, match=r"features 0 to 9; got \[3, 10\]"):
        contexts(*arguments, text, tokenizer, [10, 3])
    with pytest.raises(ValueError, match="give more text"):
        contexts(*arguments, text.take(0), tokenizer, [3])
    with pytest.raises(ValueError, match="per_feature must be at least 1, not 0"):
        ContextsConfig(per_feature=0)
    with pytest.raises(ValueError, match="reads 3 checkpoints"):
        contexts(arguments[0], arguments[1][:2], text, tokenizer, [3])


def test_characters_split_over_tokens_come_out_whole():
    tokenizer = make_tokenizer([MULTIBYTE], vocab_size=60)
    ids = tokenizer.encode(MULTIBYTE)
    assert len(ids) > len(MULTIBYTE)  # some characters take several tokens
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == MULTIBYTE
    # Cut within a character, the text before it stands.
    cut = next(i for i, piece in enumerate(pieces) if piece == "☃")
    assert "".join(token_texts(tokenizer, ids[:cut])) == MULTIBYTE.split("☃")[0]


def test_a_window_that_starts_within_a_character_shows_it_whole():
    tokenizer = make_tokenizer([MULTIBYTE], vocab_size=60)
    ids = tokenizer.encode(MULTIBYTE * 2)
    pieces = token_texts(tokenizer, ids)
    world = plant(n_rows=len(tokenizer), density=0.2)
    blocks = np.array([[0, *ids]], dtype=np.uint16)
    for window in (5, 6, 7, 11):
        found = contexts(
            world.crosscoder(),
            world.models(),
            Corpus(blocks, "text"),
            tokenizer,
            range(10),
            ContextsConfig(window=window),
        )
        shown = [context.tokens for feature in found.values() for context in feature.contexts]
        assert shown
        slices = [pieces[start : start + window] for start in range(len(ids))]
        assert all(tokens in slices for tokens in shown)


def test_tokens_keep_their_leading_space_where_the_tokenizer_takes_it_off_a_text():
    pieces = ["<s>", "▁", ".", "▁the", "re", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    the, re = pieces.index("▁the"), pieces.index("re")
    snowman = [pieces.index(f"<0x{byte:02X}>") for byte in "☃".encode()]
    assert token_text(tokenizer, the) == " the"
    assert token_text(tokenizer, re) == "re"
    assert token_text(tokenizer, snowman[0]) == "<0xE2>"
    assert token_texts(tokenizer, [re, the, *snowman, re]) == ["re", " the", "", "", "☃", "re"]
