"""Several crosscoders on one harvest: what they cost over one harvest and a step each, and over runs of their own.

The roofline is that one harvest and those steps, at the speed that they have in a run of one crosscoder.
"""

from __future__ import annotations

import argparse
import statistics

import models
import torch
import train_run
from measure import GIB, peak, report


def main() -> None:
    """Measure one size: runs of one and of several take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    train_run.add_flags(parser)
    parser.add_argument("--crosscoders", type=int, default=4)
    parser.set_defaults(steps=6, repeats=3)
    sizes = parser.parse_args()
    lower = [model.without_upper() for model in models.checkpoints(sizes, torch.bfloat16)]
    turns = [
        (train_run.run(sizes, lower, 1), train_run.run(sizes, lower, sizes.crosscoders)) for _ in range(sizes.repeats)
    ]
    together = statistics.median(several.whole for _, several in turns)
    parts = statistics.median(one.harvest + sizes.crosscoders * one.step for one, _ in turns)
    own = sizes.crosscoders * statistics.median(one.whole for one, _ in turns)
    report(
        train_run.case("several", sizes) | {"crosscoders": sizes.crosscoders},
        "rows",
        sizes.batch * sizes.steps,
        {"ours": together, "roofline": parts, "own_runs": own},
        sizes.device,
        cost_over_parts=round(together / parts, 3),
        peak_memory_gib=round(peak(sizes.device) / GIB, 2),
    )


if __name__ == "__main__":
    main()
