"""Several crosscoders on the same activations: their cost over one collection and a step each, and over separate runs.

A run of one crosscoder and a run of several take turns, some steps each. The roofline is one collection and a step per
crosscoder, at the speed that they have in the run of one.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import train_run
from measure import report

import models


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    train_run.add_flags(parser)
    parser.add_argument("--crosscoders", type=int, default=4)
    parser.set_defaults(steps=1)
    sizes = parser.parse_args()
    lower = [model.without_upper() for model in models.checkpoints(sizes, torch.bfloat16)]
    one, several = (train_run.Run(sizes, lower, number) for number in (1, sizes.crosscoders))
    turns = [(one.go_on(sizes.steps), several.go_on(sizes.steps)) for _ in range(sizes.repeats)]
    together = statistics.median(several.whole for _, several in turns)
    parts = statistics.median(one.collection + sizes.crosscoders * one.step for one, _ in turns)
    own = sizes.crosscoders * statistics.median(one.whole for one, _ in turns)
    report(
        train_run.case("several", sizes) | {"crosscoders": sizes.crosscoders},
        "tokens",
        sizes.batch * sizes.steps,
        {"ours": together, "roofline": parts, "own_runs": own},
        sizes.device,
        cost_over_parts=round(together / parts, 3),
    )


if __name__ == "__main__":
    main()
