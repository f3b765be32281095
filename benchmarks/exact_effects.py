"""Exact effects per second, against a loop that runs the whole model for every feature. Prints one JSON line.

On the embedded suite, with the crosscoder that studies/attribution.py leaves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import crosstime as ct
from crosstime import demo
from crosstime.analysis.activations import encode, residuals

LAYER = 3


@torch.inference_mode()
def whole_model(
    crosscoder: ct.Crosscoder, models: Sequence[ct.SplitLM], prompts: ct.Prompts, features: Sequence[int]
) -> np.ndarray:
    """[K, M] exact effects by the plain way: for each feature every prompt through the whole of every checkpoint."""
    effects = np.zeros((len(features), len(models)))
    for index, tokens in prompts.by_length(64):
        answers = torch.stack([prompts.right[index], prompts.wrong[index]], dim=1)
        f = encode(crosscoder, residuals(crosscoder, models, tokens))[..., list(features)]
        for m, model in enumerate(models):
            decoder = crosscoder.raw_decoder(m)[list(features)]
            clean = model.logits(tokens)[:, -1].gather(1, answers)
            for k in range(len(features)):
                ablated = model.upper(model.lower(tokens) - f[..., [k]] @ decoder[[k]])[:, -1].gather(1, answers)
                right, wrong = (clean - ablated).unbind(1)
                effects[k, m] += (right - wrong).sum().item()
    return effects / len(prompts)


def main() -> None:
    """Measure both on one task and one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path("runs/studies/step256-step1000-step3786")
    parser.add_argument("--crosscoder", type=Path, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    crosscoder = ct.Crosscoder.from_pretrained(arguments.crosscoder)
    suite = ct.Suite.from_folder(demo.SUITE, list(crosscoder.config.checkpoints))
    models = [suite.load(name, layer=LAYER) for name in suite.names]
    prompts = demo.blimp("distractor_agreement_relational_noun").prompts(suite.tokenizer)
    effects = ct.attribute(crosscoder, models, prompts, bootstrap=0)

    begin = time.process_time()  # on one thread the wall time of an idle machine, and the same on a busy one
    exact = ct.exact_effects(crosscoder, models, prompts, effects, top=100)
    ours = time.process_time() - begin
    features = exact.features(prompts.task)
    some = features[:: len(features) // 10]
    begin = time.process_time()
    naive = whole_model(crosscoder, models, prompts, some.tolist())
    plain = time.process_time() - begin
    difference = np.abs(naive - exact.values(prompts.task, "exact")[np.isin(features, some)]).max()
    rates = len(features) * len(prompts) / ours, len(some) * len(prompts) / plain
    print(
        json.dumps(
            {
                "prompts": len(prompts),
                "features": len(features),
                "checkpoints": len(models),
                "prompts_x_features_per_second": round(rates[0]),
                "whole_model_per_feature": round(rates[1]),
                "ratio": round(rates[0] / rates[1], 1),
                "largest_difference": float(difference),
            }
        )
    )


if __name__ == "__main__":
    main()
