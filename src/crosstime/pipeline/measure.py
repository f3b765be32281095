"""Measure on this machine how long the stages of a run will take: the real stages, on little work.

Each stage that has a `Workload` runs in a temporary folder at two sizes, several times, and the difference between
them is the time per unit. The checkpoints are the run's own and loaded once, so the stages that follow each other
here don't pay for loading; it is measured apart. The text is the run's if it is tokenised already and random tokens
if not, and the crosscoders are trained for a few steps, then made about as sparse as trained ones.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from crosstime.attribution.activations import encode, residuals
from crosstime.base.device import synchronise
from crosstime.base.memory import release
from crosstime.models.metadata import CheckpointFiles, SuiteMetadata
from crosstime.models.split import SplitLM
from crosstime.models.suite import Suite
from crosstime.pipeline.config import RunConfig
from crosstime.pipeline.engine import Stage, Workload
from crosstime.pipeline.run import Run, Shared
from crosstime.tasks.prompts import Prompts
from crosstime.tasks.task import Task

SECONDS = 30.0
"""What all measurements take, about, unless the least work of some stage takes longer."""
FIRING = 0.015
"""Share of the features that fire at a token of a trained crosscoder: 0.8 to 1.6 % in the demo."""
_REPEATS = 3
_BLOCKS = 1024
"""Blocks of random text."""


@dataclass(frozen=True)
class Sample:
    """One timed call."""

    units: float
    wall: float
    """Seconds."""
    cpu: float
    """CPU seconds of this process, all threads together."""


@dataclass(frozen=True)
class Timing:
    """Predicted time of a stage."""

    seconds: float
    cpu_seconds: float
    advice: str
    """What makes the stage shorter."""


def extrapolate(sample: Callable[[int], Sample], units: float, seconds: float) -> tuple[float, float]:
    """Time work of two sizes and return the wall and CPU seconds of the whole work.

    The first call doesn't count: it compiles and fills caches. Sizes then double until a call takes a quarter of the
    time there is, and twice as long as the smallest, most of which may be overhead. The largest size and half of it
    are timed in turn, two or three times; the difference of their medians is the time per unit.

    Args:
        sample: Does work of some size, from 1 up, and times it.
        units: Units of the whole work.
        seconds: How long to measure, about.
    """
    begin, size = time.perf_counter(), 1
    sample(size)
    first = latest = sample(size)
    target = max(seconds / 4, 2 * first.wall)
    while latest.units < units and latest.wall < 0.7 * target:
        grown = latest.wall - first.wall if latest is not first else latest.wall
        size *= 2 ** min(3, max(1, round(math.log2(target / max(grown, 1e-9)))))
        latest = sample(size)
    small, large = [], [latest]
    while len(small) < 2 or (len(small) < _REPEATS and time.perf_counter() - begin < seconds):
        small.append(sample(max(1, size // 2)))
        large.append(sample(size))
    return _line(small, large, "wall", units), _line(small, large, "cpu", units)


def _line(small: Sequence[Sample], large: Sequence[Sample], name: str, units: float) -> float:
    """Extrapolate the line through the medians of samples of two sizes; of two samples the faster one counts."""
    low, high = (median_low(getattr(sample, name) for sample in samples) for samples in (small, large))
    more = large[0].units - small[0].units
    if more <= 0 or high <= low:
        return high * units / large[0].units
    slope = (high - low) / more
    return max(0.0, low - slope * small[0].units) + slope * units


def measure(
    runs: Sequence[Run], stages: Sequence[Stage[Run]], done: Sequence[str], seconds: float | None = None
) -> dict[str, Timing]:
    """Time the stages of a run whose checkpoints are on this machine; its folder isn't written to.

    Args:
        runs: Each crosscoder of the run.
        stages: All stages, in order.
        done: Names of those that are up to date: they aren't measured.
        seconds: How long to measure, about; `SECONDS` by default.

    Returns:
        The timing of each stage that has a workload and isn't done, by name.

    Raises:
        OutOfMemory: A stage doesn't fit this machine.
    """
    todo = [stage for stage in stages if stage.name not in done]
    each = (SECONDS if seconds is None else seconds) / max(1, sum(stage.workload is not None for stage in todo))
    timings: dict[str, Timing] = {}
    with TemporaryDirectory(prefix="crosstime-") as folder, _quiet():
        rehearsal = _Rehearsal(runs, Path(folder), stages, done)
        for stage in todo:
            if stage.workload is not None:
                timings[stage.name] = rehearsal.time(stage, stage.workload, each)
            elif stage.folder == "crosscoder":
                rehearsal.imitate(stage)
    return timings


class _Rehearsal:
    """A temporary run folder whose stages do little work.

    Args:
        runs: The real run.
        folder: The temporary folder.
        stages: All stages; what those that are done have made is read where it is.
        done: Their names.
    """

    def __init__(self, runs: Sequence[Run], folder: Path, stages: Sequence[Stage[Run]], done: Sequence[str]) -> None:
        self.runs, self.folder = runs, folder
        shared = runs[0].shared
        metadata = replace(shared.metadata, checkpoints=compared_checkpoints(shared))
        self.suite = _CachedSuite(**vars(Suite.from_metadata(metadata, allow_duplicates=True)))
        for small, run in zip(self._shrunk(runs, [run.config for run in runs]), runs, strict=True):
            small.own_folder.mkdir(exist_ok=True)
            for stage in stages:
                if stage.name in done and not small.folder_of(stage.folder).exists():
                    small.folder_of(stage.folder).symlink_to(run.folder_of(stage.folder).resolve())
        if not (folder / "tokens").exists():
            self._write_random_text(shared)

    def time(self, stage: Stage[Run], workload: Workload[Run], seconds: float) -> Timing:
        """Time a stage, and add up what all crosscoders take."""
        groups = [self.runs] if stage.together else [[run] for run in self.runs]
        by_folder = {group[0].folder_of(stage.folder): group for group in groups[::-1]}
        wall = cpu = 0.0
        known: dict[Any, tuple[float, float]] = {}
        for group in by_folder.values():
            alike = (group[0].config.crosscoder.features, group[0].config.sparsity)
            if alike in known:
                self._sample(stage, workload, group, 1)  # later stages read what it makes
            else:
                sample = partial(self._sample, stage, workload, group)
                known[alike] = extrapolate(sample, float(workload.units(group[0])), seconds)
            wall, cpu = wall + known[alike][0], cpu + known[alike][1]
        small = self._shrunk(self.runs, [run.config for run in self.runs])
        if stage.folder == "crosscoder":
            for run in small:
                _make_sparse(run)
        self.suite.loaded.clear()
        release()
        load = workload.loads(self.runs[0]) * self.suite.seconds
        return Timing(wall + load, cpu + load, workload.advice(small[0]))

    def imitate(self, stage: Stage[Run]) -> None:
        """Run a stage that isn't timed because later ones read what it makes: the import of a crosscoder."""
        for small, run in zip(self._shrunk(self.runs, [run.config for run in self.runs]), self.runs, strict=True):
            small.folder_of(stage.folder).mkdir()
            stage.work(run, small.folder_of(stage.folder))

    def _sample(self, stage: Stage[Run], workload: Workload[Run], runs: Sequence[Run], size: int) -> Sample:
        """Run a stage once on little work; what it made stays for later stages."""
        small = self._shrunk(runs, [workload.shrink(run, size) for run in runs])
        drafts = [self.folder / f"draft-{n}" for n in range(len(small))]
        for draft in drafts:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        units = float(workload.units(small[0]))
        wall, cpu = time.perf_counter(), time.process_time()
        if stage.together and len(small) > 1:
            stage.together(small, drafts)
        else:
            stage.work(small[0], drafts[0])
        synchronise(small[0].shared.device)
        sample = Sample(units, time.perf_counter() - wall, time.process_time() - cpu)
        for run, draft in zip(small, drafts, strict=True):
            shutil.rmtree(run.folder_of(stage.folder), ignore_errors=True)
            draft.rename(run.folder_of(stage.folder))
        return sample

    def _shrunk(self, runs: Sequence[Run], configs: Sequence[RunConfig]) -> list[Run]:
        """The runs in the temporary folder, with other settings."""
        shared = _SmallShared(self.folder, configs[0], tuple(configs[1:]), real=runs[0].shared, cached=self.suite)
        return [Run(self.folder, config, shared) for config in configs]

    def _write_random_text(self, shared: Shared) -> None:
        (self.folder / "tokens").mkdir()
        positions, tokenizer = shared.config.positions, shared.tokenizer
        random = np.random.default_rng(0)
        for name in ("train", "heldout"):
            blocks = random.integers(0, len(tokenizer), (_BLOCKS, shared.config.text.context), dtype=np.uint32)
            blocks[:, : int(positions.bos)] = positions.bos_ids(tokenizer)
            np.save(self.folder / "tokens" / f"{name}.npy", blocks)


def compared_checkpoints(shared: Shared) -> tuple[CheckpointFiles, ...]:
    """Return the checkpoints that the crosscoders read; before they are selected, as many of the first ones."""
    checkpoints, selection = shared.metadata.checkpoints, shared.config.selection
    selected = shared.folder / "selection" / "checkpoints.json"
    names = [row["name"] for row in json.loads(selected.read_bytes())] if selected.exists() else selection.checkpoints
    return tuple(files for files in checkpoints if files.name in names) or checkpoints[: selection.size]


@torch.no_grad()
def _make_sparse(run: Run) -> None:
    """Lower the encoder's bias of a crosscoder that has hardly been trained until few features fire."""
    crosscoder = run.crosscoder
    tokens = torch.from_numpy(run.shared.heldout_text.blocks[:1].astype(np.int64))
    f = encode(crosscoder, residuals(crosscoder, run.shared.models, tokens)).flatten()
    level = f.topk(max(1, int(FIRING * len(f)))).values[-1]
    crosscoder.b_enc.sub_(level)
    crosscoder.save_pretrained(run.folder_of("crosscoder"))


@dataclass(frozen=True)
class _CachedSuite(Suite):
    """Some checkpoints, each loaded once."""

    loaded: dict[Any, SplitLM] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds to load a checkpoint; the first one loaded doesn't count if there are others."""
        return median_low(self.times[1:] or self.times or [0.0])

    def load(
        self, name: str | int, *, layer: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> SplitLM:
        key = (name, dtype)
        if key not in self.loaded:
            begin = time.perf_counter()
            self.loaded[key] = super().load(name, layer=layer, dtype=dtype, device=device)
            self.times.append(time.perf_counter() - begin)
        return self.loaded[key]


@dataclass(frozen=True)
class _SmallShared(Shared):
    """The shared values of a run in the temporary folder: the real ones, but for what its stages make."""

    real: Shared = field(kw_only=True)
    cached: _CachedSuite = field(kw_only=True)

    @cached_property
    def metadata(self) -> SuiteMetadata:
        return self.cached

    @cached_property
    def suite(self) -> Suite:
        return self.cached

    @cached_property
    def compared(self) -> Suite:
        return self.cached

    def batch_size(self, stage: str) -> int:
        return self.real.batch_size(stage)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        if self.config.task == self.real.config.task:
            return self.real.tasks
        prompts = {prompts.task: prompts for prompts in self.real.prompts}
        limits = {task.name: task.max_pairs for task in self.config.task}
        return {
            name: _alike(task, prompts[name], limits[name]) if name in prompts else task
            for name, task in self.real.tasks.items()
        }


def _alike(task: Task, prompts: Prompts, count: Any) -> Task:
    """Choose pairs whose prompts have the most frequent length, so that few fill batches as all would."""
    lengths = [len(tokens) for tokens in prompts.tokens]
    often = Counter(lengths)
    order = sorted(range(len(prompts)), key=lambda i: (-often[lengths[i]], lengths[i]))
    return task.select([int(prompts.pair_index[i]) for i in order[:count]])


@contextmanager
def _quiet() -> Iterator[None]:
    """Show neither warnings nor progress: they'd be about work that nobody asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
