"""The command line: one thin function a command.

Exit codes: 0 done, 2 bad input (one line says what and where), 1 a fault of ours, 130 interrupted. What a command was
asked for goes to stdout; everything else goes to stderr.
"""

from __future__ import annotations

import dis
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from crosstime import artifact
from crosstime.lm.nearest import nearest

STDOUT = 1
DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

RunDir = tyro.conf.Positional[Path]

# What a user can put right: paths, permissions, space, network. Any other OSError is a fault of ours.
_USER_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_USER_ERRORS += (ConnectionError, TimeoutError)


def demo(out: Path = Path("runs/demo")) -> None:
    """The whole way on the embedded suite, from checkpoints to a report.

    Args:
        out: Folder of the run.
    """
    from crosstime.run import config

    if not (out / config.FILE).exists():
        _write_preset("demo", out)
    elif not config.load(out).suite.demo:
        raise ValueError(
            f"{out} holds a run on another suite: go on with `crosstime run {out}`, or choose another --out"
        )
    run(out)


def new(preset: tyro.conf.Positional[str], run_dir: RunDir) -> None:
    """Write a run.toml to edit.

    Args:
        preset: What to start from: demo.
        run_dir: A new folder for the run.
    """
    from crosstime.run import config

    if (run_dir / config.FILE).exists():
        raise ValueError(f"{run_dir / config.FILE} is already there: edit it, or choose another folder")
    _write_preset(preset, run_dir)
    print(f"{run_dir / config.FILE}: edit it, then `crosstime run {run_dir}`")


def run(run_dir: RunDir) -> None:
    """Do every stage that is out of date, in order.

    Args:
        run_dir: A folder with a run.toml.
    """
    from crosstime.run import summary

    _bring_up_to_date(run_dir, None)
    print(summary.table(summary.headline(run_dir, _folders(run_dir))))


def tokens(run_dir: RunDir) -> None:
    """Tokenise the text, or go on where that was interrupted. Needs no GPU.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "tokens")


def survey(run_dir: RunDir) -> None:
    """Every checkpoint on every task.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "survey")


def train(run_dir: RunDir) -> None:
    """Train the crosscoder, or go on where its training was interrupted.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "train")


def evaluate(run_dir: RunDir) -> None:
    """Measure the crosscoder on held-out text.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "evaluate")


def attribute(run_dir: RunDir) -> None:
    """Indirect effects of every feature on every task.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "attribute")


def ablate(run_dir: RunDir) -> None:
    """Check the effects: set the strongest features to zero.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "ablate")


def report(run_dir: RunDir) -> None:
    """Write the report.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "report")
    print((run_dir / "report" / "index.html").resolve())


def show(run_dir: RunDir, json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """What is there, what is stale, and the headline numbers.

    Args:
        run_dir: A folder with a run.toml.
        json: Print one JSON object.
    """
    import json as json_format

    from crosstime.run import config

    configuration = config.load(run_dir)
    from crosstime.run import summary
    from crosstime.run.stage import states
    from crosstime.run.stages import stages
    from crosstime.run.values import Run

    numbers = summary.headline(run_dir, _folders(run_dir))
    found = states(Run(run_dir, configuration), stages(configuration))
    if json:
        statuses = {name: state.status for name, state in found.items()}
        print(json_format.dumps({**numbers, "stages": statuses}, allow_nan=False, ensure_ascii=False))
        return
    width = max(map(len, found))
    for name, state in found.items():
        print(f"{name.ljust(width)}  {state.status}" + (f": {state.reason}" if state.reason else ""))
    print(f"\n{summary.table(numbers)}")


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (demo, new, run, tokens, survey, train, evaluate, attribute, ablate, report, show)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _signals(), warnings.catch_warnings():
            _quiet()
            _mend_terminal()
            _dispatch(arguments)
            if sys.stdout is not None:  # a shell may have closed it
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough of it; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return DONE
    except KeyboardInterrupt as interrupt:
        _say(" ".join(["interrupted", *map(str, interrupt.args)]))
        return INTERRUPTED
    except _Fault as fault:
        _say(f"fault: {fault}")
        return FAULT
    except Exception as error:
        line = _users_line(error)
        if line is None:
            traceback.print_exception(error)
            return FAULT
        _say(f"error: {line}")
        return BAD_INPUT
    return DONE


class _Fault(Exception):
    """A fault of ours, already on record."""


def _bring_up_to_date(run_dir: Path, last: str | None) -> None:
    """Does the stages up to one of them, or all, in a run folder that no one else is writing to."""
    from crosstime.run import config
    from crosstime.run.lock import locked

    configuration = config.load(run_dir)
    with locked(run_dir), _on_record(run_dir):
        from crosstime.run.stage import bring_up_to_date
        from crosstime.run.stages import stages
        from crosstime.run.values import Run

        _quiet_transformers()
        artifact.write_text(run_dir / "resolved.toml", config.resolved(configuration))
        bring_up_to_date(Run(run_dir, configuration), stages(configuration), _say, last=last)


@contextmanager
def _on_record(run_dir: Path) -> Iterator[None]:
    """Puts the traceback of a fault of ours into the run folder, and says how to go on after an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"- go on with `crosstime run {run_dir}`") from None
    except Exception as error:
        if _users_line(error) is not None:
            raise
        path = run_dir / "error.log"
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:
            raise error from None
        last = traceback.format_exception_only(error)[-1].splitlines()[0]
        raise _Fault(f"{last} (this should not happen; the traceback is in {path})") from error


def _folders(run_dir: Path) -> dict[str, str]:
    """The artifact folder of each stage."""
    from crosstime.run import config
    from crosstime.run.stages import stages

    return {stage.name: stage.folder for stage in stages(config.load(run_dir))}


def _write_preset(preset: str, run_dir: Path) -> None:
    from crosstime.run import config

    text = config.preset(preset)
    run_dir.mkdir(parents=True, exist_ok=True)
    artifact.write_text(run_dir / config.FILE, text)


def _dispatch(arguments: Sequence[str]) -> None:
    if arguments == ["--version"]:
        print(f"crosstime {version('crosstime')}")
        return
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ValueError(f"there is no command `{arguments[0]}`{nearest(arguments[0], COMMANDS)}")
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="crosstime",
        description="When did this model learn that, and which feature carries it?",
        args=arguments,
    )


def _users_line(error: Exception) -> str | None:
    """One line about an error that the user can put right; None for a fault of ours."""
    if artifact.disk_full(error):
        path = getattr(error, "filename", None)
        return f"the disk is full{f' (writing {path})' if path else ''}: make room, then run the same command again"
    if isinstance(error, _USER_ERRORS) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        where = f"{error.filename}: " if getattr(error, "filename", None) else ""
        return where + (error.strerror or str(error) or type(error).__name__)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return (
            "there is not enough memory: make crosscoder.features, training.ring_rows, training.batch_size or a "
            f"stage's batch_size smaller ({' '.join(str(error).split())[:200]})"
        )
    if isinstance(error, ValueError) and _is_raised_here(error):
        return " ".join(str(error).split())
    return None


def _is_raised_here(error: Exception) -> bool:
    """Whether a `raise` in this package made the error.

    Every ValueError about the user's input is ours. One of numpy's (shapes that do not fit), of a builtin (`zip` of
    different lengths) or of a library that got past us says nothing to a user: there the innermost frame is not in this
    package, or it stands at a call and not at a `raise`.
    """
    frame = error.__traceback__
    if frame is None:
        return False
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    ours = Path(code.co_filename).is_relative_to(Path(__file__).parent)
    return ours and code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _say(line: str) -> None:
    print(f"crosstime: {line}", file=sys.stderr, flush=True)


def _quiet() -> None:
    """Leaves stderr to our own lines: of all warnings only ours are shown, in one line each."""

    def show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent):
            _say(f"warning: {' '.join(str(message).split())}")

    warnings.simplefilter("default")
    warnings.showwarning = show_warning


def _mend_terminal() -> None:
    """Lets progress bars show on a terminal that does not know its size; there tqdm would write empty lines."""
    if sys.stderr is not None and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns == 0:
        os.environ.setdefault("TQDM_NCOLS", "80")


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when `datasets` is imported


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, once; the second of them ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        if seen:
            os._exit(INTERRUPTED)
        seen.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
