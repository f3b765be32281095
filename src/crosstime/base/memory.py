"""Memory of devices, and batches that shrink when it runs out."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from crosstime.base.errors import OutOfMemory, first_line, is_out_of_memory

T = TypeVar("T")


def total_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device; for any other, that of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def used_bytes(device: torch.device) -> int:
    """Return what tensors occupy on a device; for a CPU, the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _resident_bytes()


def peak_bytes(device: torch.device) -> int:
    """Return the most that was used on a CUDA device since the last call; for any other, what is used now."""
    if device.type != "cuda":
        return used_bytes(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    # Without /proc only the peak is known, in bytes on a Mac and in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_bytes(device: torch.device, limit: int) -> None:
    """Make torch run out of memory on a CUDA device beyond a limit; do nothing for other devices."""
    if device.type == "cuda":
        # By index: for a device without one, torch would take the current device here.
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total_bytes(device)), device.index)


def release() -> None:
    """Return freed memory, which torch and the C library keep, to devices and the system."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc only
        trim(0)


class MemoryWarning(UserWarning):
    """Memory ran out, and work continues in smaller batches."""


def warn(message: str) -> None:
    """Issue a `MemoryWarning`."""
    warnings.warn(message, MemoryWarning, stacklevel=1)


class AdaptiveBatches:
    """Run work in batches of limited size, halved for good whenever memory runs out.

    Args:
        doing: What the work is, for messages: "survey".
        item: What one row of a batch is, for messages: "block".
        max_tokens: Limit on the tokens of a batch, over all its rows; None for no limit.
        lower: Settings to lower if not even one row fits, for the error.
        notify: Called with a message each time the batches shrink.

    Example:
        >>> import torch
        >>> blocks = torch.arange(12).reshape(3, 4)
        >>> batches = AdaptiveBatches("sum", "block", max_tokens=8, lower="text.context")
        >>> [total.tolist() for total in batches.run(blocks, lambda batch: batch.sum(1), length=4)]
        [[6, 22], [38]]
    """

    def __init__(
        self, doing: str, item: str, max_tokens: int | None, *, lower: str, notify: Callable[[str], None] = warn
    ) -> None:
        self.doing, self.item, self.max_tokens, self.lower, self.notify = doing, item, max_tokens, lower, notify

    def run(self, rows: Tensor, work: Callable[[Tensor], T], *, length: int) -> Iterator[T]:
        """Yield the result of the work on each batch of rows, in order.

        Args:
            rows: Token ids [B, S], or row indices [B].
            work: Called with each batch, and again with half of it if memory ran out, so it may have no side effects.
            length: S, the tokens per row.

        Raises:
            OutOfMemory: Not even one row fits into memory.
        """
        start = 0
        while start < len(rows):
            size = len(rows) if self.max_tokens is None else max(1, self.max_tokens // length)
            batch = rows[start : start + size]
            try:
                result = work(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            else:
                start += len(batch)
                yield result
                del result  # or it would be held while the next batch is computed
                continue
            # Outside `except`: the error holds the frames, and those hold the tensors that didn't fit.
            self._halve(len(batch), length, reason)

    def _halve(self, size: int, length: int, reason: str) -> None:
        if size == 1:
            raise OutOfMemory(
                f"{self.doing}: out of memory with a single {self.item} of {length} tokens: lower {self.lower} "
                f"({reason})"
            )
        gc.collect()
        release()
        self.max_tokens = size // 2 * length
        self.notify(
            f"{self.doing}: out of memory with {size} {self.item}s of {length} tokens per batch; continuing with "
            f"{size // 2} ({reason})"
        )
