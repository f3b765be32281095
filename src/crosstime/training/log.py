"""The training log: records of numbers, in log.jsonl, in logging services, and on the terminal."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crosstime.base.artifact import write_text
from crosstime.base.errors import InputError
from crosstime.base.units import format_bytes, format_duration, format_tokens
from crosstime.training.step import StepStats

LOGGER = logging.getLogger(__name__)
MESSAGE_SECONDS = 30.0
"""Least time between two progress messages where there is no terminal."""

Record = dict[str, Any]
Sink = Callable[[Record], None]


class Interval:
    """What the steps since the last record measured, summed on the device."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, StepStats] = {}
        self.collection_seconds = 0.0
        self.begin = time.perf_counter()

    def add(self, name: str, stats: StepStats) -> None:
        """Add the measurements of a step of one crosscoder."""
        total = self.sums.get(name)
        self.sums[name] = (
            StepStats(**{f.name: getattr(total, f.name) + getattr(stats, f.name) for f in fields(StepStats)})
            if total
            else stats
        )

    def means(self, name: str, checkpoints: Sequence[str]) -> Record:
        """Return means over the steps of one crosscoder that weren't skipped; NaN if all were."""
        total = self.sums[name]
        error, variance = total.squared_error.cpu(), total.variance.cpu()
        taken = int(total.taken)
        share = 1 / taken if taken else math.nan
        return {
            "loss": float(error.sum() + total.penalty.cpu() + total.auxiliary.cpu()) * share,
            "squared_error": float(error.sum()) * share,
            "penalty": float(total.penalty) * share,
            "auxiliary": float(total.auxiliary) * share,
            "l0": float(total.l0) * share,
            "skipped_steps": self.steps - taken,
            "explained_variance": float(1 - error.sum() / variance.sum()),
            "explained_variance_by_checkpoint": dict(zip(checkpoints, (1 - error / variance).tolist(), strict=True)),
        }

    def speed(self, batch_size: int, flop: float) -> tuple[float, float, float]:
        """Return tokens per second, the share of activation collection, and FLOP/s of matrix products outside it.

        Args:
            batch_size: Tokens per step.
            flop: FLOP of a step's matrix products.
        """
        seconds = time.perf_counter() - self.begin
        training = seconds - self.collection_seconds
        return self.steps * batch_size / seconds, self.collection_seconds / seconds, self.steps * flop / training


class ProgressBar:
    """Shows how far training is, with the newest records.

    On a terminal this is a bar. Where stderr isn't one, as in a job's log file, `LOGGER` issues messages.
    """

    def __init__(self, done: int, total: int) -> None:
        self.start, self.begin, self.last_message = done, time.monotonic(), time.monotonic()
        self.done, self.total = done, total
        self.bar = tqdm(
            total=total,
            initial=done,
            desc="train",
            unit_scale=True,
            disable=None,
            leave=False,
            # Without tqdm's own rate, so that the records fit into 120 columns.
            bar_format="{l_bar}{bar}| {total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()

    def advance(self, tokens: int) -> None:
        """Count more tokens as done."""
        self.done += tokens
        self.bar.update(tokens)

    def show(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Show the newest records, one per crosscoder."""
        text = ", ".join([_format_speed(records[0]), "; ".join(map(_format_losses, records))])
        self.bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self.bar.disable and now - self.last_message >= MESSAGE_SECONDS:
            self.last_message = now
            left = format_duration((now - self.begin) * (self.total - self.done) / (self.done - self.start))
            share, total = 100 * self.done / self.total, format_tokens(self.total)
            LOGGER.info("%.0f %% of %s tokens, %s left; %s", share, total, left, text)


def _format_speed(record: Mapping[str, Any]) -> str:
    """Format speed and memory: "41K tok/s, 78 % of peak, collection 46 %, 3.1 GiB"."""
    return (
        f"{format_tokens(round(record['tokens_per_second']))} tok/s, {100 * record['peak_share']:.0f} % of peak, "
        f"collection {100 * record['collection_share']:.0f} %, {format_bytes(record['memory'])}"
    )


def _format_losses(record: Mapping[str, Any]) -> str:
    """Format a crosscoder's loss: "loss 12.3, L0 45.6, EV 0.812"."""
    name = f"{record['crosscoder']}: " if "crosscoder" in record else ""
    return f"{name}loss {record['loss']:.1f}, L0 {record['l0']:.1f}, EV {record['explained_variance']:.3f}"


@contextmanager
def open_log(
    path: Path | None, loggers: Sequence[str], *, from_step: int, names: Container[str] = ("",)
) -> Iterator[list[Sink]]:
    """Open the log; every record goes to each sink. Services learn whether the block ended by an exception.

    Args:
        path: log.jsonl, or None for no file. Records of steps after `from_step`, which an interrupted run wrote and
            the resumed one will write again, are dropped.
        loggers: "wandb", "tensorboard".
        from_step: The step that the run starts or resumes at.
        names: The crosscoders being trained; the records of others, trained before, are kept.

    Raises:
        InputError: A logger's package isn't installed.
    """
    services = {"wandb": _wandb, "tensorboard": _tensorboard}
    file = [_jsonl(path, from_step, names)] if path is not None else []
    with ExitStack() as stack:
        yield file + [services[name](path, stack) for name in loggers]


def read_log(path: Path) -> list[Record]:
    """Read the records of a log.jsonl, without a last line that was cut off by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _jsonl(path: Path, from_step: int, names: Container[str]) -> Sink:
    kept = [
        record for record in read_log(path) if record["step"] <= from_step or record.get("crosscoder", "") not in names
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(record: Record) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    return write


def _flatten(record: Record) -> dict[str, int | float]:
    """Flatten a record's numbers for a service, prefixed by the crosscoder's name if it has one."""
    flat: dict[str, int | float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": number for key, number in value.items()}
        elif not isinstance(value, str):
            flat[name] = value
    crosscoder = record.get("crosscoder")
    return {f"{crosscoder}/{name}": number for name, number in flat.items()} if crosscoder else flat


def _wandb(path: Path | None, stack: ExitStack) -> Sink:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _not_installed("wandb") from None
    run = stack.enter_context(wandb.init(project="crosstime", dir=path.parent if path else None))
    return lambda record: run.log(_flatten(record), step=record["step"])


def _tensorboard(path: Path | None, stack: ExitStack) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _not_installed("tensorboard") from None
    writer = stack.enter_context(SummaryWriter(log_dir=str(path.parent / "tensorboard") if path else None))

    def write(record: Record) -> None:
        for name, value in _flatten(record).items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return write


def _not_installed(extra: str) -> InputError:
    return InputError(f"loggers includes {extra!r}, which isn't installed: pip install 'crosstime[{extra}]'")
