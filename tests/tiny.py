"""Tiny random checkpoints, made on the spot: tokenizers, models of any architecture, and suites of them in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

BOS = "<|endoftext|>"

SENTENCES = (
    "The key to the cabinets is on the table.",
    "The keys to the cabinet are on the table.",
    "Some dogs that chase the cat were barking at night.",
    "A dog that chases the cats was barking at night.",
    "This woman hides these letters, and those women hide that letter.",
    "Every morning the old man walks to the river and reads a book.",
    "The children play in the garden while their mother writes.",
    "He has seen many ships; they have sailed across the sea.",
)


def make_tokenizer(sentences: Sequence[str] = SENTENCES, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows every byte and some words of the sentences; token 0 is its BOS and EOS."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=BOS)


def neox_config(vocab_size: int = 320, width: int = 32, layers: int = 4) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )


def make_model(config: PreTrainedConfig, seed: int = 0, scale: float = 0.3) -> PreTrainedModel:
    """A random model whose blocks matter: at the usual initialisation (0.02) a tiny one is all but linear."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config).float()
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=scale)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


def write_suite(
    folder: Path,
    steps: Sequence[int] = (0, 10, 100),
    config: PreTrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Checkpoints `step<N>` in a folder, related as those of a real run: each is further along one random direction."""
    tokenizer = tokenizer or make_tokenizer()
    config = config or neox_config(vocab_size=len(tokenizer))
    start, direction = make_model(config, seed=1), make_model(config, seed=2)
    for number, step in enumerate(steps):
        checkpoint = make_model(config, seed=1)
        for parameter, a, b in zip(checkpoint.parameters(), start.parameters(), direction.parameters(), strict=True):
            parameter.data = a.data + 0.2 * number * b.data
        checkpoint.save_pretrained(folder / f"step{step}")
        tokenizer.save_pretrained(folder / f"step{step}")
    return folder
