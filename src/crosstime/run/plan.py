"""What a run will take on this machine: time, memory and disk of each stage, and what limits it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crosstime.analysis.numbers import token_count
from crosstime.analysis.survey import SIMILARITY_TOKENS
from crosstime.analysis.task_scores import TaskReader
from crosstime.data.task import Task
from crosstime.lm.memory import held_bytes, shown_bytes, total_bytes
from crosstime.run import cost
from crosstime.run.config import RunConfig
from crosstime.run.screen import columns
from crosstime.run.speed import SECONDS, Speeds, measure
from crosstime.run.tokens import check_texts
from crosstime.run.values import Run

DISK = 1e9
"""Bytes a second that are read or written: assumed."""
DISTINCT, FIRING = 0.7, 0.35
"""Of the strongest features of all checkpoints, how many differ, and on which share of the prompts one fires. In the
demo 0.7 and 0.35; what ablation costs is proportional to both, and known only when the effects are."""
LARGE = 0.5
"""Share from which something is said to limit a run."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage is predicted to take."""

    name: str
    what: str
    """How much there is to do, for people."""
    seconds: float
    memory: int
    """Bytes that are held at most, on the device."""


@dataclass(frozen=True)
class Plan:
    """What a run is predicted to take."""

    device: str
    stages: list[StagePlan]
    harvest_seconds: float
    """Of training."""
    fixed_seconds: float
    """Of training, in Adam and clipping."""
    product_seconds: float
    """Of training, in what grows with the rows."""
    peak: float
    """FLOP/s of this machine in matrix products alone."""
    peak_share: float
    """Of it, that the steps of training reach."""
    memory: int
    """Bytes that are held at most, on the device."""
    memory_limit: int
    """compute.memory, or what the device has."""
    disk: int
    """Bytes that the run folder holds at most."""
    disk_free: int
    limit: str
    """What limits the run, and what would help most: a sentence."""

    @property
    def seconds(self) -> float:
        """Of all stages that are predicted."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**asdict(self), "seconds": self.seconds}

    def screen(self) -> str:
        """All of it, for a terminal."""
        head = ("stage", "", "time", "memory")
        rows = [(s.name, s.what, _time(s.seconds), shown_bytes(s.memory)) for s in self.stages]
        total = ("all of these", "", _time(self.seconds), shown_bytes(self.memory))
        facts = [
            ("memory", f"{shown_bytes(self.memory)} at most, of {shown_bytes(self.memory_limit)} on {self.device}"),
            ("disk", f"{shown_bytes(self.disk)} at most, of {shown_bytes(self.disk_free)} that are free"),
            ("products", f"{self.peak / 1e12:.3g} TFLOP/s alone; the steps reach {self.peak_share:.0%} of that"),
            ("limited by", self.limit),
        ]
        return f"{columns([head, *rows, total], right=(2, 3))}\n\n{columns(facts)}"


def plan(run: Run, configs: Sequence[RunConfig], seconds: float = SECONDS) -> Plan:
    """Predicts a run from measurements on this machine, in about ten seconds. Writes nothing into the run folder.

    Args:
        run: the run.
        configs: of each crosscoder.
        seconds: about how long to measure.

    Raises:
        ValueError: something in run.toml, or what it names, is wrong.
    """
    run.check_inputs()
    check_texts(run)
    begin = _now()
    reader = TaskReader(
        _sets(run),
        run.tokenizer,
        run.config.positions,
        max_tokens_per_batch=run.batches.survey,
        sample=SIMILARITY_TOKENS,
    )
    reading = _now() - begin
    before = held_bytes(run.device)
    return _Planner(run, configs, measure(run, configs, seconds), before).plan(reader, reading)
