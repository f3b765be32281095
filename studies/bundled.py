"""Shared by the studies: crosscoders over the bundled checkpoints, trained once and cached, and the bundled tasks."""

from __future__ import annotations

from pathlib import Path

import crosstime as ct
from crosstime import demo

LAYER = 3
CONFIG = ct.TrainConfig(tokens=600_000, batch_size=1024, lr=2e-3, buffer_tokens=65_536)
"""The demo's settings, on fewer tokens."""
SPARSITY = ct.L1(1.2)


def crosscoder(
    checkpoints: list[str], folder: Path, sparsity: ct.Sparsity = SPARSITY, config: ct.TrainConfig = CONFIG
) -> ct.Crosscoder:
    """Load the crosscoder over some checkpoints from `folder`; train and save it there if it is missing."""
    path = folder / f"{'-'.join(checkpoints)}-{sparsity.rule}-{config.seed}"
    if not (path / "model.safetensors").is_file():
        suite = ct.Suite.from_folder(demo.SUITE, checkpoints)
        corpus = ct.Corpus.from_text(demo.TRAIN_TEXT, suite.tokenizer, context=128)
        ct.train(suite, corpus, layer=LAYER, features=4096, sparsity=sparsity, config=config).save_pretrained(path)
    return ct.Crosscoder.from_pretrained(path)


def models(crosscoder: ct.Crosscoder) -> list[ct.SplitLM]:
    """Load the checkpoints that a crosscoder reads."""
    suite = ct.Suite.from_folder(demo.SUITE, list(crosscoder.config.checkpoints))
    return [suite.load(name, layer=LAYER) for name in suite.names]


def prompts(group: str, most: int | None = None) -> list[ct.Prompts]:
    """Return the prompts of each set of a bundled group, without the sets whose pairs share no prefix.

    Args:
        group: See `ct.BlimpPairs`.
        most: Maximum number of pairs per set.
    """
    tokenizer = ct.Suite.from_folder(demo.SUITE).tokenizer
    sets = ct.BlimpPairs(group).load().by_set()
    prompts = [(task.take(most) if most else task).find_prompts(tokenizer) for task in sets]
    return [some for some in prompts if len(some)]
