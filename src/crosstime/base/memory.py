"""Memory: budgets as people write them, what a device holds, and work on tokens in parts that fit."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from crosstime.base.errors import InputError, OutOfMemory, first_line, is_out_of_memory

T = TypeVar("T")

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_bytes(text: str, setting: str) -> int:
    """Bytes of an amount of memory such as "20GiB", "1.5 TB" or "500MB".

    Args:
        text: a number and a unit.
        setting: what the error calls it.

    Raises:
        InputError: it is no such amount, or none at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w+)", text.strip())
    count = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if not count:
        raise InputError(f'{setting} must be an amount like "20GiB", in one of {", ".join(UNITS)}; it is "{text}"')
    return count


def shown_bytes(count: int) -> str:
    """An amount of memory for people, in binary units: "3.1 GiB", "512 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def total_bytes(device: torch.device) -> int:
    """Memory of a device; of a CPU, or one that shares it, that of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def held_bytes(device: torch.device) -> int:
    """What tensors hold on a device now; of a CPU, the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _resident_bytes()


def most_held_bytes(device: torch.device) -> int:
    """What tensors held on a device at most since the last call; elsewhere than on CUDA, what they hold now."""
    if device.type != "cuda":
        return held_bytes(device)
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    # Without /proc only the highest there was is known, in bytes on a Mac and in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_bytes(device: torch.device, most: int) -> None:
    """Let torch take no more than so much of a CUDA device; beyond that, memory runs out. Elsewhere nothing happens."""
    if device.type == "cuda":
        # By number: this function of torch takes no device without one, which elsewhere means the present one.
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total_bytes(device)), device.index)


def release() -> None:
    """Give back to devices and to the system what was freed, which torch and the C library would keep."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)


class MemoryWarning(UserWarning):
    """Memory ran out, and the work goes on in smaller parts."""


def warn(note: str) -> None:
    """The usual way to tell that work goes on in smaller parts."""
    warnings.warn(note, MemoryWarning, stacklevel=1)


class Parts:
    """Work on rows of tokens in parts of at most so many positions; of half as many, from then on, when memory ran out.

    Args:
        doing: what the work is, for notes and errors: "harvest".
        row: what one row is: "block".
        positions: tokens of a part at most, over all its rows; None for no limit.
        lower: the settings that help where not even one row fits.
        note: is told when the parts become smaller.
    """

    def __init__(
        self, doing: str, row: str, positions: int | None, *, lower: str, note: Callable[[str], None] = warn
    ) -> None:
        self.doing, self.row, self.positions, self.lower, self.note = doing, row, positions, lower, note

    def of(self, rows: Tensor, work: Callable[[Tensor], T], *, length: int) -> Iterator[T]:
        """What the work gives for each part of the rows, in order.

        Args:
            rows: tokens [B, S], or the numbers of rows [B].
            work: is called once for each part, and again for the half of it where memory ran out: so it must change
                nothing but by what it returns.
            length: S, the positions of a row.

        Raises:
            OutOfMemory: there is not enough memory for one row.
        """
        start = 0
        while start < len(rows):
            most = len(rows) if self.positions is None else max(1, self.positions // length)
            part = rows[start : start + most]
            try:
                done = work(part)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                why = first_line(error)
            else:
                start += len(part)
                yield done
                del done  # or it would be held beside the next
                continue
            # Not within `except`: the error holds the frames, and they the tensors, of what did not fit.
            self._halve(len(part), length, why)

    def _halve(self, rows: int, length: int, why: str) -> None:
        if rows == 1:
            raise OutOfMemory(
                f"{self.doing}: there is not enough memory for one {self.row} of {length} tokens: lower {self.lower} "
                f"({why})"
            )
        gc.collect()
        release()
        self.positions = rows // 2 * length
        self.note(
            f"{self.doing}: memory ran out with {rows} {self.row}s of {length} tokens at once; going on with "
            f"{rows // 2} ({why})"
        )
