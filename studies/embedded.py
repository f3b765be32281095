"""What the studies share: crosscoders over the bundled checkpoints, trained once and kept, and its tasks set by set."""

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
    """The crosscoder over some checkpoints, from `folder`, where it is left for the next study."""
    place = folder / f"{'-'.join(checkpoints)}-{sparsity.rule}-{config.seed}"
    if not (place / "model.safetensors").is_file():
        suite = ct.Suite.from_folder(demo.SUITE, checkpoints)
        corpus = ct.Corpus.from_text(demo.TRAIN_TEXT, suite.tokenizer, context=128)
        ct.train(suite, corpus, layer=LAYER, features=4096, sparsity=sparsity, config=config).save_pretrained(place)
    return ct.Crosscoder.from_pretrained(place)


def models(crosscoder: ct.Crosscoder) -> list[ct.SplitLM]:
    """The checkpoints that a crosscoder reads."""
    suite = ct.Suite.from_folder(demo.SUITE, list(crosscoder.config.checkpoints))
    return [suite.load(name, layer=LAYER) for name in suite.names]


def prompts(group: str, most: int | None = None) -> list[ct.Prompts]:
    """The prompts of each set of an embedded group; sets whose pairs share no prefix have none.

    Args:
        group: see `ct.BlimpPairs`.
        most: take the first so many of each set.
    """
    tokenizer = ct.Suite.from_folder(demo.SUITE).tokenizer
    sets = ct.BlimpPairs(group).load().by_set()
    found = [(one.take(most) if most else one).find_prompts(tokenizer) for one in sets]
    return [one for one in found if len(one)]
