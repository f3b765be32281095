"""Tokens per second of a whole training run, and the share of its time that neither collection nor steps explain.

The roofline is a run that does nothing but collect and step, at the speed that they had within the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measure import GIB, peak, report

import models
from crosstime.base.device import synchronise
from crosstime.models.split import SplitLM
from crosstime.training.config import TrainConfig
from crosstime.training.state import TrainState
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
            synchronise(self.device)
            self.seconds += time.perf_counter() - begin
            return result

        return timed


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of some steps of a run, and of what they consist of."""

    whole: float
    collection: float
    step: float


class Run:
    """A run of some crosscoders on the same activations, after its first step: the buffer is full."""

    def __init__(self, sizes: argparse.Namespace, lower: Sequence[SplitLM], crosscoders: int) -> None:
        config = TrainConfig(
            tokens=sizes.batch * 10_000,
            batch_size=sizes.batch,
            buffer_tokens=sizes.buffer_tokens,
            model_batch_blocks=sizes.model_batch_blocks,
            calibration_blocks=sizes.model_batch_blocks,
            log_steps=4,
        )
        states = {str(seed): TrainState(models.crosscoder(sizes), config, seed) for seed in range(crosscoders)}
        self.trainer = Trainer(states, config, lower, models.text(sizes, 1024))
        self.collection, self.step = Clock(sizes.device), Clock(sizes.device)
        self.memory: list[int] = []
        """Bytes held at most, between two records of the log: on CUDA each begins to count anew."""
        self.trainer._refill = self.collection.around(self.trainer._refill)
        for state in states.values():
            state.train_step = self.step.around(state.train_step)
        self.go_on(1)

    def go_on(self, steps: int) -> Seconds:
        """Take so many steps more."""
        trainer = self.trainer
        trainer.config = dataclasses.replace(trainer.config, tokens=(trainer.step + steps) * trainer.config.batch_size)
        self.collection.seconds = self.step.seconds = 0.0
        begin = time.perf_counter()
        trainer.run([lambda record: self.memory.append(record["memory"])])
        return Seconds(time.perf_counter() - begin, self.collection.seconds, self.step.seconds)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The sizes of models, crosscoder and run."""
    models.add_flags(parser)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--buffer-tokens", type=int, default=16_384)
    parser.add_argument("--model-batch-blocks", type=int, default=16)


def case(name: str, sizes: argparse.Namespace) -> dict[str, object]:
    """The benchmark's name, with the sizes that decide its figures."""
    keys = ("checkpoints", "width", "features", "batch", "layer", "buffer_tokens", "steps")
    return {"benchmark": name, **{key: getattr(sizes, key) for key in keys}}


def main() -> None:
    """Measure one run, from after its first step to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser)
    parser.add_argument("--project-tokens", type=int, help="say how many hours a run of so many tokens would take")
    sizes = parser.parse_args()
    lower = [model.without_upper() for model in models.checkpoints(sizes, torch.bfloat16)]
    run, tokens = Run(sizes, lower, 1), sizes.batch * sizes.steps
    taken = run.go_on(sizes.steps)
    explained = taken.collection + taken.step
    also = {"peak_memory_gib": round(max(peak(sizes.device), *run.memory) / GIB, 2)}
    if sizes.project_tokens:
        also["projected_hours"] = round(taken.whole / tokens * sizes.project_tokens / 3600, 2)
    report(
        case("train_run", sizes),
        "tokens",
        tokens,
        {"ours": taken.whole, "roofline": explained},
        sizes.device,
        collection_share=round(taken.collection / taken.whole, 3),
        step_share=round(taken.step / taken.whole, 3),
        unexplained_share=round(1 - explained / taken.whole, 3),
        **also,
    )


if __name__ == "__main__":
    main()
