"""Errors that a user can fix, each one line: what is wrong, where, and what to do about it.

    CrosstimeError(ValueError)   anything a user can fix; catch this one
    ├── InputError               a file, a name or a value that doesn't fit
    │   └── SettingError         a setting outside its limits
    ├── DamagedArtifact          a file of an artifact was changed after it was written
    ├── OutOfMemory              even the smallest unit of work doesn't fit into memory
    └── TrainingDiverged         the loss is no longer a number

Any other exception is a bug in crosstime. The command line prints a CrosstimeError as one line and exits with 2; for a
bug it prints a traceback and exits with 1.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Iterable


class CrosstimeError(ValueError):
    """Base of every error that a user can fix."""


class InputError(CrosstimeError):
    """A file, a name or a value that was passed in doesn't fit."""


class SettingError(InputError):
    """A setting outside its limits.

    Python calls a setting by its name; run.toml by its section and key. So the two parts of the message are kept apart:

        >>> error = SettingError("batch_size", "must be at least 1, not 0")
        >>> str(error)
        'batch_size must be at least 1, not 0'
        >>> str(error.under("training"))
        'training.batch_size must be at least 1, not 0'

    Args:
        name: The setting, as Python calls it.
        problem: The rest of the sentence.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def under(self, section: str) -> SettingError:
        """Return the same error for the setting's key in a section of run.toml."""
        return SettingError(f"{section}.{self.name}", self.problem)


class DamagedArtifact(CrosstimeError):
    """A file of an artifact is missing, truncated or altered."""


class OutOfMemory(CrosstimeError):
    """Even the smallest unit of work doesn't fit into memory."""


class TrainingDiverged(CrosstimeError):
    """The training loss is no longer a finite number."""


# System errors that a user can fix: paths, permissions, network. Any other OSError is a bug.
_USER_ERRORS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    ConnectionError,
    TimeoutError,
)

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts in torch's RuntimeErrors, from the CPU's allocator, from CUDA and MPS, and from cuBLAS."""


def describe(error: Exception) -> str | None:
    """Describe an error that a user can fix in one line; return None for a bug."""
    if is_disk_full(error):
        path = getattr(error, "filename", None)
        return (
            f"the disk is full{f' (writing {path})' if path else ''}: free some space, then run the same command again"
        )
    if isinstance(error, _USER_ERRORS) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        where = f"{error.filename}: " if getattr(error, "filename", None) else ""
        return where + (error.strerror or str(error) or type(error).__name__)
    if is_out_of_memory(error):
        return (
            "out of memory: lower crosscoder.features, training.buffer_tokens, training.batch_size or a stage's "
            f"batch_size ({' '.join(str(error).split())[:200]})"
        )
    return " ".join(str(error).split()) if isinstance(error, CrosstimeError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a device or on the CPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")  # a process that hasn't imported torch can't raise its errors
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that the disk (or the user's quota) is full.

    Libraries that write from C++ or Rust wrap the system's error in their own, so the text is checked too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type if the text is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a clause that ends a message with the existing name closest to `name`; empty if there are no names.

    >>> nearest("trian", ["train", "evaluate"])
    "; the nearest is 'train'"
    """
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"; the nearest is {matches[0]!r}" if matches else ""
