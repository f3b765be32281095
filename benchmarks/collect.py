"""Tokens a second through all checkpoints up to the layer, against the bare forward pass of the blocks needed."""

from __future__ import annotations

import argparse

import torch
from measure import report, seconds
from transformers import GPTNeoXModel

import models
from crosstime.text.positions import Positions
from crosstime.training.collect import ActivationCollector


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_flags(parser)
    parser.add_argument("--model-batch-blocks", type=int, default=16)
    sizes = parser.parse_args()
    lower = [model.without_upper() for model in models.checkpoints(sizes, torch.bfloat16)]
    collector = ActivationCollector(lower, models.text(sizes, 4 * sizes.model_batch_blocks), Positions(), seed=0)
    bare = [
        GPTNeoXModel(models.config(sizes, sizes.layer + 1)).eval().to(sizes.device, torch.bfloat16)
        for _ in range(sizes.checkpoints)
    ]
    tokens = torch.randint(sizes.vocabulary, (sizes.model_batch_blocks, sizes.context), device=sizes.device)

    @torch.no_grad()
    def roofline() -> None:
        for model in bare:
            model(tokens, use_cache=False)

    cases = {"ours": lambda: list(collector.collect(sizes.model_batch_blocks)), "roofline": roofline}
    taken = seconds(cases, repeats=sizes.repeats, device=sizes.device)
    case = {
        "benchmark": "collect",
        **{key: getattr(sizes, key) for key in ("checkpoints", "width", "layer", "context")},
    }
    report(case, "tokens", tokens.numel(), taken, sizes.device)


if __name__ == "__main__":
    main()
