"""Predict what a run takes: check it without weights, estimate its cost, and time its stages on this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from huggingface_hub import constants

from crosstime.base.errors import OutOfMemory
from crosstime.base.memory import total_bytes
from crosstime.base.units import align_columns, format_bytes, format_duration, format_tokens
from crosstime.models.metadata import HUB_THREADS, CheckpointFiles
from crosstime.models.shape import ModelShape
from crosstime.pipeline.engine import Stage, states
from crosstime.pipeline.estimate import H100, Estimate, Memory, estimate, free_bytes
from crosstime.pipeline.imported import check_fit
from crosstime.pipeline.measure import Timing, compared_checkpoints, measure
from crosstime.pipeline.run import Run, Shared
from crosstime.pipeline.stages import stages
from crosstime.tasks.prompts import Prompts
from crosstime.text.tokenise import check_texts

_WIDTH = 100
"""Characters of a line, without its label."""


@dataclass(frozen=True)
class StagePlan:
    """Prediction for one stage."""

    name: str
    status: str
    """"up to date", "measured", "not measured", or "not predicted" for a stage without a workload."""
    work: str = ""
    """How much work it is, for people."""
    seconds: float | None = None
    """Wall time on this machine."""
    cpu_seconds: float | None = None
    """CPU time on this machine, all threads together."""
    memory: int | None = None
    """Peak bytes on the device."""


@dataclass(frozen=True)
class Plan:
    """Prediction for a run."""

    facts: dict[str, str | list[str]]
    """What the run does and needs, for people: a sentence or several by label."""
    estimate: Estimate
    """Cost from the settings alone; its time is that on `reference`."""
    reference: str
    """A device, and the speeds assumed of it."""
    stages: list[StagePlan]
    device: str
    memory: int
    """Peak bytes on this machine's device."""
    memory_limit: int
    """compute.memory, or what the device has."""
    disk_free: int
    download: int
    """Bytes of weights that aren't on this machine yet."""
    advice: str
    """What limits the run and which setting would help most; empty if nothing was measured and all fits."""

    @property
    def seconds(self) -> float | None:
        """Wall time of the stages that were measured; None if none was."""
        times = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(times) if times else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        return {**asdict(self), "seconds": self.seconds}

    def screen(self) -> str:
        """Return everything as text for a terminal."""
        sentences = [
            (label, sentence)
            for label, fact in self.facts.items()
            for sentence in ([fact] if isinstance(fact, str) else fact)
        ]
        facts = [
            (label if n == 0 else "", line)
            for label, sentence in sentences
            for n, line in enumerate(wrap(sentence, _WIDTH, break_on_hyphens=False))
        ]
        table = [self._table()] if self.seconds is not None else []
        advice = [f"Limited by {self.advice}."] if self.advice else []
        return "\n\n".join([align_columns(facts), *table, *advice])

    def _table(self) -> str:
        cpu = sum(stage.cpu_seconds or 0.0 for stage in self.stages)
        total = StagePlan("all measured", "measured", "", self.seconds, cpu, self.memory)
        rows = [["stage", "work", "time", "CPU time", "memory"]]
        for stage in [*self.stages, total]:
            work = stage.work if stage.status == "measured" else stage.status
            times = ["" if value is None else format_duration(value) for value in (stage.seconds, stage.cpu_seconds)]
            rows.append([stage.name, work, *times, "" if stage.memory is None else format_bytes(stage.memory)])
        return align_columns(rows, right=(2, 3, 4))


def plan(runs: Sequence[Run], *, timed: bool = True) -> Plan:
    """Check a run as far as possible without weights, and predict its cost.

    Only configurations and tokenizers are downloaded, and nothing is written into the run folder. Warns if the run
    needs more than this machine has.

    Args:
        runs: Each crosscoder of the run.
        timed: If the checkpoints are on this machine, also run the stages on little work, for about half a minute, to
            predict their time.

    Raises:
        InputError: Something in run.toml, or what it names, is wrong.
    """
    run, shared = runs[0], runs[0].shared
    shared.check_inputs()
    check_texts(run.config.text, run.folder, shared.tokenizer, run.config.positions)
    if run.config.crosscoder.from_ and isinstance(run.foreign_place, Path):
        check_fit(run.foreign.config, run.config, shared.layer, shared.shape.width)
    configs, todo = [run.config for run in runs], stages(run.config)
    status = [states(run, todo) for run in runs]
    done = [stage.name for stage in todo if all(state[stage.name].status == "done" for state in status)]
    held = {
        stage.name: stage.workload.memory(configs, shared.shape)
        for stage in todo
        if stage.workload and stage.workload.memory and stage.name not in done
    }
    peaks = {
        name: shared.budget.in_use + memory.peak(shared.device.type, shared.budget.fit(memory))
        for name, memory in held.items()
    }
    peak, limit = max(peaks.values(), default=0), run.config.compute.memory_bytes or total_bytes(shared.device)
    estimated = estimate(configs, shared.shape)
    download = _bytes_to_download(shared.metadata.checkpoints, shared.shape)
    facts = {
        **_facts(runs, estimated),
        "stages to do": ", ".join(stage.name for stage in todo if stage.name not in done) or "none",
        "time": f"{format_duration(estimated.seconds)} to train on {H100}",
        "memory": f"{format_bytes(peak)} at most; {_device(shared.device, peak)}",
        "download": _space(download, Path(constants.HF_HUB_CACHE), "of weights"),
        "disk": _space(estimated.disk, run.folder, "at most"),
    }
    timings: dict[str, Timing] = {}
    if timed:
        timings, facts["time here"] = _timings(runs, todo, done)
    return Plan(
        facts=facts,
        estimate=estimated,
        reference=str(H100),
        stages=[_stage_plan(runs, stage, done, timings.get(stage.name), peaks.get(stage.name)) for stage in todo],
        device=str(shared.device),
        memory=peak,
        memory_limit=limit,
        disk_free=free_bytes(run.folder),
        download=download,
        advice=_advice(shared, held, peaks, limit, estimated.disk, timings),
    )


def _timings(runs: Sequence[Run], todo: Sequence[Stage[Run]], done: Sequence[str]) -> tuple[dict[str, Timing], str]:
    """Time the stages if that's possible; and tell how, or why not."""
    if not any(stage.workload for stage in todo if stage.name not in done):
        return {}, "nothing to measure"
    if any(files.bytes_to_download() != 0 for files in compared_checkpoints(runs[0].shared)):
        return {}, "not measured: the checkpoints aren't on this machine yet"
    try:
        timings = measure(runs, todo, done)
    except OutOfMemory as error:
        return {}, f"not measured: {error}"
    load, count = os.getloadavg()[0], os.cpu_count() or 1
    busy = "; it is busy, and an idle one may be much faster" if load > 1.5 * count else ""
    return timings, f"measured on little work, under a load of {load:.1f} on {count} CPUs{busy}"


def _stage_plan(
    runs: Sequence[Run], stage: Stage[Run], done: Sequence[str], timing: Timing | None, memory: int | None
) -> StagePlan:
    if stage.name in done:
        return StagePlan(stage.name, "up to date")
    if stage.workload is None:
        return StagePlan(stage.name, "not predicted")
    own = len({run.folder_of(stage.folder) for run in runs}) > 1 and not stage.together
    each = f" for each of {len(runs)} crosscoders" if own else ""
    work = f"{format_tokens(round(stage.workload.units(runs[0])))} {stage.workload.unit}{each}"
    if timing is None:
        return StagePlan(stage.name, "not measured", work, memory=memory)
    return StagePlan(stage.name, "measured", work, timing.seconds, timing.cpu_seconds, memory)


def _advice(
    shared: Shared,
    held: Mapping[str, Memory],
    peaks: Mapping[str, int],
    limit: int,
    disk: int,
    timings: Mapping[str, Timing],
) -> str:
    """What limits the run, and which setting would help most."""
    name = max(peaks, key=peaks.__getitem__, default="")
    if name and peaks[name] > limit:
        parts = held[name].held(shared.device.type)
        most = max(parts, key=parts.__getitem__)
        return f"memory: {name} takes {format_bytes(peaks[name])} of {format_bytes(limit)}, most of it for the {most}"
    if disk > free_bytes(shared.folder):
        return "disk: lower training.buffer_tokens or crosscoder.features, which make up the saved state of training"
    if not timings:
        return ""
    name = max(timings, key=lambda name: timings[name].seconds)
    share = timings[name].seconds / sum(timing.seconds for timing in timings.values())
    return f"the stage {name}, {share:.0%} of the time; it gets shorter with {timings[name].advice}"


# -------------------------------------------------------------------------------------------------------------- facts


def _facts(runs: Sequence[Run], estimated: Estimate) -> dict[str, str | list[str]]:
    """What the run does."""
    shared, selection = runs[0].shared, runs[0].config.selection
    metadata, shape = shared.metadata, shared.shape
    names = ", ".join(f"{files.name} ({format_tokens(files.tokens)})" for files in metadata.checkpoints)
    return {
        "checkpoints": f"{names}, by tokens seen, of {shared.config.suite.source}",
        "model": f"{metadata.config.model_type} of {format_tokens(shape.parameters)} parameters, {shape.layers} blocks "
        f"of width {shape.width}; a tokenizer of {len(shared.tokenizer):,} tokens",
        "selected": ", ".join(selection.checkpoints) or f"{selection.number}, chosen by the survey",
        "crosscoder": [_crosscoder(run) for run in runs],
        "training": _training(runs[0], estimated),
        "text": _text(shared),
        "task": [_task(shared, prompts) for prompts in shared.prompts],
    }


def _crosscoder(run: Run) -> str:
    config, shared = run.config, run.shared
    where = f"after block {shared.layer} of 0 to {shared.metadata.n_layers - 1}"
    if config.crosscoder.from_:
        place = run.foreign_place
        what = f"{run.foreign.config.features:,} features" if isinstance(place, Path) else "on the hub, not looked at"
        return f"that of {config.crosscoder.from_}, {what}; {where}"
    name = f"{run.name}: " if run.name else ""
    seed = "" if config.crosscoder.seed is None else f", initialised with seed {config.crosscoder.seed}"
    weights = estimate([config], shared.shape).weights
    return (
        f"{name}{config.crosscoder.features:,} features, {weights / 1e6:,.1f}M weights, {config.sparsity.rule}{seed}; "
        f"{where}"
    )


def _training(run: Run, estimated: Estimate) -> str:
    training = run.config.training
    if not estimated.tokens:
        return "none"
    return (
        f"{estimated.tokens:,} tokens in {training.steps:,} steps, out of {format_tokens(estimated.tokens_read)} read "
        f"in blocks of {run.config.text.context}; seed {training.seed}"
    )


def _text(shared: Shared) -> str:
    config = shared.config.text
    names = [path.name for path in config.train_files(shared.folder)]
    for text in config.hub:
        share = f"{text.share:.0%}" if text.share else None
        names.append(" ".join(filter(None, (share, text.repo, text.config))))
    limit = f"; at most {format_tokens(config.limit_tokens)} tokens" if config.limit_tokens else ""
    return f"{', '.join(names)}; {config.packing}{limit}"


def _task(shared: Shared, prompts: Prompts) -> str:
    pairs = len(shared.tasks[prompts.task])
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in prompts.skipped.items())
    left_out = f" (skipped: {skipped})" if skipped else ""
    return f"{prompts.task}: {len(prompts):,} prompts from {pairs:,} pairs{left_out}"


def _bytes_to_download(checkpoints: Sequence[CheckpointFiles], shape: ModelShape) -> int:
    """Bytes of weights that aren't here yet; from the model's shape if the hub doesn't list them."""
    with ThreadPoolExecutor(HUB_THREADS) as pool:
        sizes = list(pool.map(CheckpointFiles.bytes_to_download, checkpoints))
    if missing := [files.name for files, size in zip(checkpoints, sizes, strict=True) if size is None]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(f"{checkpoints[0].source} lists no weights of {', '.join(missing[:3])}{more}", stacklevel=1)
    return sum(2 * shape.parameters if size is None else size for size in sizes)


def _device(device: torch.device, needed: int) -> str:
    """What the device has; warns if that isn't enough."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine ({device.type})"
    total = total_bytes(device)
    if needed > total:
        warnings.warn(f"the run needs about {format_bytes(needed)}, {name} has {format_bytes(total)}", stacklevel=1)
    return f"{name} has {format_bytes(total)}"


def _space(needed: int, folder: Path, what: str) -> str:
    """What goes into a folder, and the space there; warns if that isn't enough."""
    free = free_bytes(folder)
    if needed > free:
        warnings.warn(
            f"{format_bytes(needed)} {what} are needed in {folder}, where {format_bytes(free)} are free", stacklevel=1
        )
    return f"{format_bytes(needed)} {what}, into {folder}, where {format_bytes(free)} are free"
