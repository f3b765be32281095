"""Models and crosscoders that the tests of the analyses share."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.models.split import SplitLM
from planted import World, plant

WIDTH, LAYER, VOCABULARY, FEATURES = 16, 1, 96, 40
NAMES = ("early", "late")


@pytest.fixture(scope="session")
def world() -> World:
    return plant()


@pytest.fixture(scope="session")
def transformers_models() -> list[GPTNeoXForCausalLM]:
    """Two real transformers of random weights, large enough for their logits to differ."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    models = []
    for seed in range(len(NAMES)):
        torch.manual_seed(seed)
        models.append(GPTNeoXForCausalLM(config).eval())
    return models


@pytest.fixture(scope="session")
def models(transformers_models: list[GPTNeoXForCausalLM]) -> list[SplitLM]:
    return [SplitLM(model, LAYER, name) for model, name in zip(transformers_models, NAMES, strict=True)]


@pytest.fixture
def crosscoder() -> Crosscoder:
    """Random features for `models`, with scale factors that differ, of which about a third fire on a token."""
    crosscoder = Crosscoder(CrosscoderConfig(NAMES, LAYER, WIDTH, FEATURES))
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(len(NAMES), WIDTH, generator=generator)
    crosscoder.initialise(mean, torch.tensor([0.5, 2.0]), decoder_norm=0.3, tied=False, generator=generator)
    with torch.no_grad():
        crosscoder.b_enc -= 0.3
    return crosscoder
