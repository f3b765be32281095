"""What a command's process says and hears: one line at a time on stderr, and signals."""

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
"""The exit code of a process that a signal ended."""


def say(line: str) -> None:
    """Writes a line of ours to stderr, above the progress bars that stand there."""
    tqdm.write(f"crosstime: {line}", file=sys.stderr)


def quiet() -> None:
    """Leaves stderr to our own lines: of all warnings only ours are shown, in one line each."""

    def show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parents[1]):
            say(f"warning: {' '.join(str(message).split())}")

    warnings.simplefilter("default")
    warnings.showwarning = show_warning


class _Say(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def say_progress() -> None:
    """Lets the library say how far it is where stderr is no terminal, and hence no progress bar is shown."""
    logger = logging.getLogger("crosstime")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Say()]


def mend_terminal() -> None:
    """Lets progress bars show on a terminal that does not know its size; there tqdm would write empty lines."""
    if sys.stderr is not None and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns == 0:
        os.environ.setdefault("TQDM_NCOLS", "80")


def quiet_libraries() -> None:
    """No progress bars and advice of libraries; what is an error in them is raised."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when `datasets` is imported
    hub_logging.set_verbosity_error()


@contextmanager
def signals() -> Iterator[None]:
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
