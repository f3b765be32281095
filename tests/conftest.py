"""Fixtures that every part of the tests shares."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.utils import logging

# Builders that several tests share (`tiny`, `planted`, ...) are plain modules in this folder.
sys.path.insert(0, str(Path(__file__).parent))

import tiny

torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_suite(tmp_path_factory):
    """A folder of three related checkpoints: GPT-NeoX, 4 blocks, width 32, byte-level BPE. Do not write into it."""
    return tiny.write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="session")
def users_suite(tmp_path_factory):
    """A folder of three checkpoints of a model that the demo does not know: Llama, and another tokenizer."""
    tokenizer = tiny.make_tokenizer(vocab_size=400)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=5, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return tiny.write_suite(tmp_path_factory.mktemp("users suite"), config=config, tokenizer=tokenizer)
