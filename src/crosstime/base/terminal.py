"""Standard error and signals of the command line's process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

INTERRUPTED = 130
"""Exit code of a process that a signal ended."""


def echo(line: str) -> None:
    """Write a line to stderr, above any progress bars."""
    tqdm.write(f"crosstime: {line}", file=sys.stderr)


@contextmanager
def own_stderr() -> Iterator[None]:
    """Show crosstime's own warnings and progress on stderr, one line each, and nothing else."""
    logger = logging.getLogger("crosstime")  # logs progress if stderr is no terminal and shows no progress bars
    logger.setLevel(logging.INFO)
    logger.handlers = [_EchoHandler()]
    _fix_bar_width()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _echo_warning
        yield


class _EchoHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        echo(record.getMessage())


def _echo_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parents[1]):
        echo(f"warning: {' '.join(str(message).split())}")


def _fix_bar_width() -> None:
    # On a terminal that doesn't know its size, tqdm would write empty lines.
    if sys.stderr is not None and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns == 0:
        os.environ.setdefault("TQDM_NCOLS", "80")


def silence_libraries() -> None:
    """Hide progress bars and advice of libraries; they raise what is an error."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when `datasets` is imported
    hub_logging.set_verbosity_error()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first Ctrl-C or SIGTERM; exit at once at the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        if signals:
            os._exit(INTERRUPTED)
        signals.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
