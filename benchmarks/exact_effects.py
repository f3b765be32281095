"""Exact effects a second, of a feature on a prompt, against a loop that runs the whole model for every feature.

On some of the bundled checkpoints and a bundled task, with random features.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from measure import report, seconds

import crosstime as ct
import models
from crosstime import demo
from crosstime.attribution.activations import encode, residuals
from crosstime.attribution.effects import CompletenessWarning

CHECKPOINTS, LAYER = ["step256", "step1000", "step3786"], 3


@torch.inference_mode()
def whole_model(
    crosscoder: ct.Crosscoder, lms: Sequence[ct.SplitLM], prompts: ct.Prompts, features: Sequence[int]
) -> np.ndarray:
    """[K, M] exact effects by the plain way: for each feature every prompt through the whole of every checkpoint."""
    effects = np.zeros((len(features), len(lms)))
    for index, tokens in prompts.by_length(64):
        tokens = tokens.to(lms[0].device)
        answers = torch.stack([prompts.right[index], prompts.wrong[index]], dim=1).to(tokens.device)
        f = encode(crosscoder, residuals(crosscoder, lms, tokens))[..., list(features)]
        for m, lm in enumerate(lms):
            decoder = crosscoder.raw_decoder(m)[list(features)]
            clean = lm.logits(tokens)[:, -1].gather(1, answers)
            for k in range(len(features)):
                ablated = lm.upper(lm.lower(tokens) - f[..., [k]] @ decoder[[k]])[:, -1].gather(1, answers)
                right, wrong = (clean - ablated).unbind(1)
                effects[k, m] += (right - wrong).sum().item()
    return effects / len(prompts)


def main() -> None:
    """Measure both on one task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500, help="of the task; some give no prompt")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--active", type=int, default=64, help="features that fire on a token")
    parser.add_argument("--top", type=int, default=100, help="features that are ablated, of each checkpoint")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default="cpu")
    sizes = parser.parse_args()
    warnings.simplefilter("ignore", CompletenessWarning)
    suite = ct.Suite.from_folder(demo.SUITE, CHECKPOINTS)
    lms = [suite.load(name, layer=LAYER, device=sizes.device) for name in suite.names]
    prompts = ct.BlimpPairs("distractor_agreement_relational_noun").load().take(sizes.pairs).prompts(suite.tokenizer)
    config = ct.CrosscoderConfig(tuple(suite.names), LAYER, lms[0].width, sizes.features)
    crosscoder = models.sparse_crosscoder(config, lms, prompts, sizes.active, seed=0)
    effects = ct.attribute(crosscoder, lms, prompts, ct.AttributionConfig(bootstrap=0))
    found = {"exact": ct.exact_effects(crosscoder, lms, prompts, effects, ct.AblationConfig(exact=sizes.top))}
    features = found["exact"].features(prompts.task)
    some = features[:: max(1, len(features) // 10)]

    def ours() -> None:
        ct.exact_effects(crosscoder, lms, prompts, effects, ct.AblationConfig(exact=sizes.top))

    def plain() -> None:
        found["plain"] = whole_model(crosscoder, lms, prompts, some.tolist())

    taken = seconds({"ours": ours, "whole model": plain}, repeats=sizes.repeats, device=sizes.device)
    taken["whole model"] *= len(features) / len(some)
    exact = found["exact"].array(prompts.task, "exact").T[np.isin(features, some)]
    report(
        {"benchmark": "exact_effects", "checkpoints": len(lms), "prompts": len(prompts), "features": len(features)},
        "effects",
        len(prompts) * len(features) * len(lms),
        taken,
        sizes.device,
        difference=float(np.abs(exact - found["plain"]).max() / np.abs(exact).max()),
    )


if __name__ == "__main__":
    main()
