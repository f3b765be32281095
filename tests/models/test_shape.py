"""The sizes of models, by the real code of each architecture."""

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, OlmoConfig

import tiny
from crosstime.models.shape import ModelShape

WIDTH, LAYERS, VOCABULARY = 32, 4, 320
ALL = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}

CONFIGS = {
    "neox": tiny.neox_config(VOCABULARY, WIDTH, LAYERS),
    "llama": LlamaConfig(**ALL, num_attention_heads=4, intermediate_size=64, tie_word_embeddings=True),
    "olmo": OlmoConfig(**ALL, num_attention_heads=4, intermediate_size=64),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=4),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    shape, model = ModelShape.from_config(CONFIGS[name]), tiny.make_model(CONFIGS[name])
    assert (shape.layers, shape.width, shape.vocabulary) == (LAYERS, WIDTH, VOCABULARY)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    blocks = max((m for m in model.modules() if hasattr(m, "__len__") and len(m) == LAYERS), key=lambda m: len(str(m)))
    assert shape.block == sum(parameter.numel() for parameter in blocks[0].parameters())


def test_a_cut_holds_the_embedding_and_the_blocks_up_to_it():
    shape = ModelShape(layers=4, width=10, vocabulary=7, block=100, parameters=1000)
    assert [shape.parameters_up_to(layer) for layer in (0, 3)] == [170, 470]


def test_what_cannot_be_made_is_refused_in_one_line():
    config = tiny.neox_config(VOCABULARY, WIDTH, LAYERS)
    config.num_attention_heads = 5
    config.hidden_act = "no such function"
    with pytest.raises(ValueError, match=r"no gpt_neox model can be made from config\.json"):
        ModelShape.from_config(config)
