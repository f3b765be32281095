"""Errors that the user can put right, in one line; every other one is a fault of ours."""

from __future__ import annotations

import dis
import errno
from pathlib import Path

from crosstime import artifact

# What a user can put right: paths, permissions, space, network. Any other OSError is a fault of ours.
_USER_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_USER_ERRORS += (ConnectionError, TimeoutError)


def users_line(error: Exception) -> str | None:
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
