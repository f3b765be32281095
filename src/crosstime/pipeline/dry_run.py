"""A dry run: everything that can be found wrong with a run, and told about it, before weights are downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import wrap

import torch
from huggingface_hub import constants

from crosstime.base.memory import total_bytes
from crosstime.base.units import align_columns, format_bytes, format_duration, format_tokens
from crosstime.models.metadata import HUB_THREADS, CheckpointFiles
from crosstime.models.shape import ModelShape
from crosstime.pipeline.cost import H100, Cost, estimate, free_bytes
from crosstime.pipeline.engine import states
from crosstime.pipeline.imported import check_fit
from crosstime.pipeline.run import Run, Shared
from crosstime.pipeline.stages import stages
from crosstime.tasks.prompts import Prompts
from crosstime.text.tokenise import check_texts

WIDTH = 100
"""Characters of a line, beside its label."""


def dry_run(runs: Sequence[Run]) -> str:
    """What the crosscoders of a run would do, and what that would cost, for a terminal.

    Nothing is written into the run folder. Warns where the run needs more than this machine seems to have.

    Raises:
        InputError: something in run.toml, or what it names, is wrong.
    """
    run, shared = runs[0], runs[0].shared
    shared.check_inputs()
    check_texts(run.config.text, run.folder, shared.tokenizer, run.config.positions)
    shape = shared.shape
    if run.config.crosscoder.from_ and isinstance(run.foreign_place, Path):
        check_fit(run.foreign.config, run.config, shared.layer, shape.width)
    cost = estimate(run.config, shape, beside=[other.config for other in runs[1:]])
    download = _download(shared.metadata.checkpoints, shape)
    selection = run.config.selection
    facts = [
        ("checkpoints", _checkpoints(shared)),
        ("model", _model(shared, shape)),
        ("compared", ", ".join(selection.checkpoints) or f"{selection.number}, chosen by the survey"),
        *(("crosscoder", _crosscoder(each, estimate(each.config, shape))) for each in runs),
        ("training", _training(run, cost)),
        ("text", _text(shared)),
        *(("task", _task(shared, prompts)) for prompts in shared.prompts),
        ("stages to do", _undone(runs)),
        ("time", f"{format_duration(cost.seconds)} of training: an estimate for {H100}"),
        ("memory", f"about {format_bytes(cost.gpu_bytes)}; {_device(shared.device, cost.gpu_bytes)}"),
        ("download", _room(download, Path(constants.HF_HUB_CACHE), "of weights")),
        ("disk", _room(cost.run_bytes, run.folder, "at most")),
    ]
    rows = [
        (label if n == 0 else "", line)
        for label, fact in facts
        for n, line in enumerate(wrap(fact, WIDTH, break_on_hyphens=False))
    ]
    return align_columns(rows)


def _checkpoints(shared: Shared) -> str:
    names = (f"{files.name} ({format_tokens(files.tokens)})" for files in shared.metadata.checkpoints)
    return f"{', '.join(names)}, by tokens seen, of {shared.config.suite.source}"


def _model(shared: Shared, shape: ModelShape) -> str:
    return (
        f"{shared.metadata.config.model_type} of {format_tokens(shape.parameters)} parameters, {shape.layers} blocks "
        f"of width {shape.width}; a tokenizer of {len(shared.tokenizer):,} tokens"
    )


def _crosscoder(run: Run, cost: Cost) -> str:
    config, where = run.config, f"after block {run.shared.layer} of 0 to {run.shared.metadata.n_layers - 1}"
    if config.crosscoder.from_:
        place = run.foreign_place
        what = f"{run.foreign.config.features:,} features" if isinstance(place, Path) else "on the hub, not looked at"
        return f"that of {config.crosscoder.from_}, {what}; {where}"
    name = f"{run.name}: " if run.name else ""
    seed = "" if config.crosscoder.seed is None else f", start values of seed {config.crosscoder.seed}"
    return (
        f"{name}{config.crosscoder.features:,} features, {cost.weights / 1e6:,.1f}M weights, "
        f"{config.sparsity.rule}{seed}; {where}"
    )


def _training(run: Run, cost: Cost) -> str:
    training = run.config.training
    if not cost.rows:
        return "none"
    return (
        f"{cost.rows:,} tokens in {training.steps:,} steps, from {format_tokens(cost.tokens)} tokens of text in "
        f"blocks of {run.config.text.context}; seed {training.seed}"
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
    n_pairs = len(shared.tasks[prompts.task])
    why = ", ".join(f"{count:,} {reason}" for reason, count in prompts.skipped.items())
    return f"{prompts.task}: {len(prompts):,} prompts from {n_pairs:,} pairs" + (f" (left out: {why})" if why else "")


def _undone(runs: Sequence[Run]) -> str:
    """The stages that some crosscoder waits for."""
    found = [states(run, stages(run.config)) for run in runs]
    return ", ".join(name for name in found[0] if any(of_one[name].status != "done" for of_one in found)) or "none"


def _download(checkpoints: Sequence[CheckpointFiles], shape: ModelShape) -> int:
    """Bytes of weights that are not here yet; by the model's shape where the hub does not say."""
    with ThreadPoolExecutor(HUB_THREADS) as pool:
        sizes = list(pool.map(CheckpointFiles.bytes_to_download, checkpoints))
    if missing := [files.name for files, size in zip(checkpoints, sizes, strict=True) if size is None]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(f"{checkpoints[0].source} lists no weights of {', '.join(missing[:3])}{more}", stacklevel=1)
    return sum(2 * shape.parameters if size is None else size for size in sizes)


def _device(device: torch.device, needed: int) -> str:
    """What the device offers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine ({device.type})"
    there = total_bytes(device)
    if needed > there:
        warnings.warn(f"the run needs about {format_bytes(needed)}, {name} has {format_bytes(there)}", stacklevel=1)
    return f"{name} has {format_bytes(there)}"


def _room(needed: int, folder: Path, what: str) -> str:
    """What goes into a folder, and whether there is room for it."""
    free = free_bytes(folder)
    if needed > free:
        warnings.warn(
            f"{format_bytes(needed)} {what} are needed in {folder}, where {format_bytes(free)} are free", stacklevel=1
        )
    return f"{format_bytes(needed)} {what}, into {folder}, where {format_bytes(free)} are free"
