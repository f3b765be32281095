"""The training log: one line of numbers an interval, in log.jsonl and wherever else the user wants it."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from crosstime.base.artifact import write_text
from crosstime.base.errors import InputError

Record = dict[str, Any]
Sink = Callable[[Record], None]


@contextmanager
def open_log(
    path: Path | None, loggers: Sequence[str], *, from_step: int, names: Container[str] = ("",)
) -> Iterator[list[Sink]]:
    """The places that each record goes to, until the block ends; the services then know whether it ended well.

    Args:
        path: log.jsonl, or None for no file. Lines of steps after `from_step`, which an interrupted run wrote and
            the resumed one will write again, are dropped.
        loggers: "wandb", "tensorboard".
        from_step: the step that the run starts or resumes at.
        names: of the crosscoders that it trains; the lines of others, trained before, stay.

    Raises:
        InputError: a logger's package is not installed.
    """
    services = {"wandb": _wandb, "tensorboard": _tensorboard}
    file = [_jsonl(path, from_step, names)] if path is not None else []
    with ExitStack() as stack:
        yield file + [services[name](path, stack) for name in loggers]


def read_log(path: Path) -> list[Record]:
    """The records of a log.jsonl; a last line that was cut off by a kill is left out."""
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


def _numbers(record: Record) -> dict[str, int | float]:
    """A record as flat names and numbers, the form that both services take; of several crosscoders, under its name."""
    flat: dict[str, int | float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": number for key, number in value.items()}
        elif not isinstance(value, str):
            flat[name] = value
    of = record.get("crosscoder")
    return {f"{of}/{name}": number for name, number in flat.items()} if of else flat


def _wandb(path: Path | None, stack: ExitStack) -> Sink:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _not_installed("wandb") from None
    run = stack.enter_context(wandb.init(project="crosstime", dir=path.parent if path else None))
    return lambda record: run.log(_numbers(record), step=record["step"])


def _tensorboard(path: Path | None, stack: ExitStack) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _not_installed("tensorboard") from None
    writer = stack.enter_context(SummaryWriter(log_dir=str(path.parent / "tensorboard") if path else None))

    def write(record: Record) -> None:
        for name, value in _numbers(record).items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return write


def _not_installed(extra: str) -> InputError:
    return InputError(f"training.loggers names {extra}, which is not installed: pip install 'crosstime[{extra}]'")
