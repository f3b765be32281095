"""Checkpoints of random weights, and random text: the sizes decide the speed, and the values do not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from crosstime.attribution.activations import residuals
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The sizes, by default those of three checkpoints of Pythia-70M."""
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default="cpu")


def config(sizes: argparse.Namespace, blocks: int) -> GPTNeoXConfig:
    """A GPT-NeoX of so many blocks."""
    return GPTNeoXConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=blocks,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        max_position_embeddings=max(2048, sizes.context),
    )


def whole(sizes: argparse.Namespace, seed: int, dtype: torch.dtype) -> GPTNeoXForCausalLM:
    """A model as transformers has it."""
    torch.manual_seed(seed)
    with sizes.device:  # where random numbers are drawn many times faster, if it is a GPU
        return GPTNeoXForCausalLM(config(sizes, sizes.blocks)).eval().to(dtype)


def checkpoints(sizes: argparse.Namespace, dtype: torch.dtype) -> list[SplitLM]:
    """Models cut after the layer."""
    return [SplitLM(whole(sizes, seed, dtype), sizes.layer, f"step{seed}") for seed in range(sizes.checkpoints)]


def text(sizes: argparse.Namespace, blocks: int) -> Corpus:
    """Random tokens."""
    tokens = np.random.default_rng(0).integers(sizes.vocabulary, size=(blocks, sizes.context), dtype=np.uint16)
    return Corpus(tokens, "random")


def crosscoder_config(sizes: argparse.Namespace) -> CrosscoderConfig:
    """L1, with the paper's settings."""
    return CrosscoderConfig(
        tuple(f"step{m}" for m in range(sizes.checkpoints)), sizes.layer, sizes.width, sizes.features
    )


@torch.no_grad()
def sparse_crosscoder(
    config: CrosscoderConfig, models: Sequence[SplitLM], prompts: Prompts, active: int, seed: int
) -> Crosscoder:
    """Random features, each of which fires so rarely on the first prompts that `active` of all fire on a token."""
    made = Crosscoder(config).requires_grad_(False)
    mean = torch.zeros(len(models), config.width)
    generator = torch.Generator().manual_seed(seed)
    made.initialise(mean, torch.ones(len(models)), decoder_norm=0.08, tied=True, generator=generator)
    made = made.to(models[0].device)
    tokens = [torch.tensor([prompt]) for prompt in prompts.tokens[:64]]
    x = torch.cat([residuals(made, models, prompt)[0, config.positions.first_encoded :] for prompt in tokens])
    before = (x * made.scale[:, None]).flatten(1) @ made.W_enc.flatten(0, 1)
    made.b_enc -= before.quantile(1 - active / config.features, dim=0)
    return made


def crosscoder(sizes: argparse.Namespace) -> Crosscoder:
    """One at its start values."""
    made = Crosscoder(crosscoder_config(sizes))
    made.initialise(
        torch.zeros(sizes.checkpoints, sizes.width),
        torch.ones(sizes.checkpoints),
        decoder_norm=0.08,
        tied=True,
        generator=torch.Generator().manual_seed(0),
    )
    return made.to(sizes.device)
