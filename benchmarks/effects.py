"""Examples a second of indirect effects, against autograd through the codes of every feature.

Both integrate by ten points with the left rule. The peer does what the definition says: at each point it decodes the
codes, runs the model from the bottom, and takes the gradient with respect to every code.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import models
import numpy as np
import torch
from measure import report, seconds

from crosstime.analysis.activations import residuals
from crosstime.analysis.effects import CompletenessWarning, attribute
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.data.task import Prompts
from crosstime.lm.split import SplitLM

POINTS = 10


def by_definition(crosscoder: Crosscoder, lms: Sequence[SplitLM], prompts: Prompts, batch: int = 4) -> np.ndarray:
    """[M, F] indirect effects."""
    total, first = torch.zeros(len(lms), crosscoder.config.features), crosscoder.config.positions.first_encoded
    for index, tokens in prompts.by_length(batch):
        right, wrong = prompts.right[index, None], prompts.wrong[index, None]
        with torch.no_grad():
            x = residuals(crosscoder, lms, tokens)
            codes = crosscoder.encode(x)
            codes[:, :first] = 0  # what the crosscoder does not encode stays as it is
            error = x - crosscoder.decode(codes)
        for m, lm in enumerate(lms):
            gradient = torch.zeros_like(codes)
            for point in range(POINTS):
                left = torch.ones(tokens.shape[1], 1, device=x.device)
                left[first:] -= point / POINTS
                leaf = (left * codes).requires_grad_()
                lm.lower(tokens)
                x_m = crosscoder.decode(leaf)[..., m, :] + left * error[..., m, :]
                logits = lm.upper(x_m)[:, -1]
                metric = (logits.gather(1, wrong) - logits.gather(1, right)).sum()
                gradient += torch.autograd.grad(metric, leaf)[0] / POINTS
            total[m] -= (gradient * codes).sum((0, 1))
    return (total / len(prompts)).numpy()


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_flags(parser)
    parser.add_argument("--prompts", type=int, default=32)
    parser.set_defaults(repeats=3)
    sizes = parser.parse_args()
    lms, crosscoder = models.checkpoints(sizes, torch.float32), models.crosscoder(sizes)
    for parameter in crosscoder.parameters():
        parameter.requires_grad_(False)
    random = np.random.default_rng(0)
    tokens = [random.integers(sizes.vocabulary, size=8 + i % 4).tolist() for i in range(sizes.prompts)]
    right, wrong = (torch.from_numpy(random.integers(sizes.vocabulary, size=sizes.prompts)) for _ in range(2))
    prompts = Prompts("random", tokens, right, wrong, torch.arange(sizes.prompts))
    warnings.simplefilter("ignore", CompletenessWarning)
    found = {}

    def ours() -> None:
        found["ours"] = attribute(
            crosscoder, lms, prompts, method="integrated", rule="left", steps=POINTS, bootstrap=0
        ).ie

    def peer() -> None:
        found["peer"] = by_definition(crosscoder, lms, prompts)

    taken = seconds({"ours": ours, "autograd_per_code": peer}, repeats=sizes.repeats, device=sizes.device)
    case = {"benchmark": "effects", **{key: getattr(sizes, key) for key in ("checkpoints", "width", "blocks", "layer")}}
    difference = float(np.abs(found["ours"] - found["peer"]).max())
    report(
        case | {"features": sizes.features, "prompts": sizes.prompts},
        "examples",
        sizes.prompts,
        taken,
        sizes.device,
        largest_difference=difference,
        largest_effect=float(np.abs(found["peer"]).max()),
    )


if __name__ == "__main__":
    main()
