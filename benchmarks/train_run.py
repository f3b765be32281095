"""Rows a second of a whole training run, and the share of its time that neither harvest nor step explains.

The roofline is a run that does nothing but harvest and step, at the speed that they had within the run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import models
import torch
from measure import GIB, peak, report

from crosstime.lm.split import SplitLM
from crosstime.training.config import TrainConfig
from crosstime.training.learner import Learner
from crosstime.training.train import Trainer


@dataclass(frozen=True)
class Run:
    """Seconds of a run, and of what it consists of."""

    whole: float
    harvest: float
    step: float


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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The sizes of models, crosscoder and run."""
    models.add_flags(parser)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ring-rows", type=int, default=16_384)
    parser.add_argument("--harvest-blocks", type=int, default=16)


def run(sizes: argparse.Namespace, lower: Sequence[SplitLM], crosscoders: int) -> Run:
    """Train so many crosscoders on one harvest; what is timed begins with a full ring, after a first step."""
    config = TrainConfig(
        rows=sizes.batch * (1 + sizes.steps),
        batch_size=sizes.batch,
        ring_rows=sizes.ring_rows,
        harvest_blocks=sizes.harvest_blocks,
        calibration_blocks=sizes.harvest_blocks,
        log_steps=4,
    )
    learners = {str(seed): Learner(models.crosscoder(sizes), config, seed) for seed in range(crosscoders)}
    trainer = Trainer(learners, config, lower, models.text(sizes, 1024))
    trainer._learn(trainer.next_batch())
    harvest, step = Clock(sizes.device), Clock(sizes.device)
    trainer._refill = harvest.around(trainer._refill)
    for learner in learners.values():
        learner.learn = step.around(learner.learn)
    begin = time.perf_counter()
    trainer.run([lambda _: None])
    return Run(time.perf_counter() - begin, harvest.seconds, step.seconds)


def case(name: str, sizes: argparse.Namespace) -> dict[str, object]:
    """The benchmark's name, with all sizes that decide its figures."""
    keys = ("checkpoints", "width", "features", "batch", "layer", "ring_rows", "steps")
    return {"benchmark": name, **{key: getattr(sizes, key) for key in keys}}


def main() -> None:
    """Measure one run, from after its first step to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser)
    parser.add_argument("--project-rows", type=int, help="say how many hours a run of so many rows would take")
    sizes = parser.parse_args()
    lower = [model.without_upper() for model in models.checkpoints(sizes, torch.bfloat16)]
    taken, rows = run(sizes, lower, 1), sizes.batch * sizes.steps
    explained = taken.harvest + taken.step
    hours = taken.whole / 3600 / rows
    report(
        case("train_run", sizes),
        "rows",
        rows,
        {"ours": taken.whole, "roofline": explained},
        sizes.device,
        harvest_share=round(taken.harvest / taken.whole, 3),
        step_share=round(taken.step / taken.whole, 3),
        unexplained_share=round(1 - explained / taken.whole, 3),
        peak_memory_gib=round(peak(sizes.device) / GIB, 2),
        **({"projected_hours": round(hours * sizes.project_rows, 2)} if sizes.project_rows else {}),
    )


if __name__ == "__main__":
    main()
