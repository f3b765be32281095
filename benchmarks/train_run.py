"""Rows a second of a whole training run, and the share of its time that neither harvest nor step explains.

The roofline is a run that does nothing but harvest and step, at the speed that they had within the run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import models
import torch
from measure import report

from crosstime.training.config import TrainConfig
from crosstime.training.learner import Learner
from crosstime.training.train import Trainer


class Clock:
    """Adds up the time that a function takes."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self.device = 0.0, device

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds += time.perf_counter() - begin
            return result

        return timed


def main() -> None:
    """Measure one run, from after its calibration to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_flags(parser)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ring-rows", type=int, default=16_384)
    sizes = parser.parse_args()
    config = TrainConfig(
        rows=sizes.batch * sizes.steps,
        batch_size=sizes.batch,
        ring_rows=sizes.ring_rows,
        harvest_blocks=16,
        calibration_blocks=16,
        log_steps=4,
    )
    lower = [model.without_upper() for model in models.checkpoints(sizes, torch.bfloat16)]
    learner = Learner(models.crosscoder(sizes), config)
    trainer = Trainer({"": learner}, config, lower, models.text(sizes, 1024))
    harvest, step = Clock(sizes.device), Clock(sizes.device)
    trainer._refill = harvest.around(trainer._refill)
    learner.learn = step.around(learner.learn)
    begin = time.perf_counter()
    trainer.run([lambda _: None])
    whole = time.perf_counter() - begin
    case = {"benchmark": "train_run", **{key: getattr(sizes, key) for key in ("checkpoints", "width", "features")}}
    report(
        case | {"batch": sizes.batch, "layer": sizes.layer, "ring_rows": sizes.ring_rows, "steps": sizes.steps},
        "rows",
        config.rows,
        {"ours": whole, "roofline": harvest.seconds + step.seconds},
        sizes.device,
        harvest_share=round(harvest.seconds / whole, 3),
        step_share=round(step.seconds / whole, 3),
        unexplained_share=round(1 - (harvest.seconds + step.seconds) / whole, 3),
    )


if __name__ == "__main__":
    main()
