"""Compute devices: look one up by name, wait for it, measure its speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch

from crosstime.base.errors import InputError
from crosstime.base.settings import ASIDE
from crosstime.base.units import parse_bytes

_TRIES = 5
_CPU_ROWS = 1024
"""Batch rows multiplied on a CPU at most: more of them make nothing faster there."""
_CPU_FLOP, _GPU_FLOP = 2e10, 1e12
"""FLOP of one measurement at most: a fifth of a second on two CPU cores, milliseconds on a GPU."""


def available_device(device: str | torch.device) -> torch.device:
    """Return a device of this machine: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: This machine has no such device.
    """
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise InputError(f"there is no device called {device!r}: use cpu, cuda or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = counts.get(asked.type, 0)
    if (asked.index or 0) >= count:
        raise InputError(f"device {asked} is not available: this machine has {count} of type {asked.type}; use cpu")
    return asked


@dataclass(frozen=True)
class ComputeConfig:
    """[compute]: device, precision and memory.

    Example:
        >>> config = ComputeConfig(device="cpu", memory="20GiB")
        >>> config.torch_device, config.torch_dtype, config.memory_bytes
        (device(type='cpu'), torch.float32, 21474836480)
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = field(default="auto", metadata=ASIDE)
    """`auto` takes the first available of cuda, mps and cpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the checkpoints in every stage but training, which has `training.model_dtype`."""
    memory: str | None = field(default=None, metadata=ASIDE)
    """Limit on the device's memory, for example "20GiB"; on a CPU, on that of the whole process."""

    def __post_init__(self) -> None:
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else parse_bytes(self.memory, "memory")

    @property
    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            InputError: This machine doesn't have it.
        """
        if self.device != "auto":
            return available_device(self.device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


def fast_dtype(device: torch.device) -> Literal["bfloat16", "float32"]:
    """Name the precision in which a device multiplies matrices fastest: bfloat16, unless it has no instructions for it.

    Most laptops' CPUs have none: torch's bfloat16 products then take a hundred times as long as float32 ones (0.5
    against 62 GFLOP/s on one core of an AMD EPYC with AVX2).
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "float32"
    return "bfloat16"


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished all work queued so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_seconds(work: Callable[[], object], device: torch.device, limit: float) -> float:
    """Time a piece of work; return the best of up to five tries after a warm-up.

    Args:
        work: The work.
        device: Where it runs.
        limit: Seconds after which no further try starts.
    """
    best, begin = float("inf"), time.perf_counter()
    for n in range(1 + _TRIES):
        start = time.perf_counter()
        work()
        synchronise(device)
        end = time.perf_counter()
        best = min(best, end - start) if n else best
        if end - begin > limit and best < float("inf"):
            break
    return best


@cache
@torch.no_grad()
def peak_matmul_flops(
    rows: int, inputs: int, features: int, dtype: torch.dtype, device: torch.device, limit: float = 0.5
) -> float:
    """Measure the FLOP/s that a device reaches in the five matrix products of an autoencoder's training step.

    Each set of arguments is measured once per process.

    Args:
        rows: Rows of a batch, B.
        inputs: Width of the input; for a crosscoder M D.
        features: Width of the hidden layer, F; if it is large, the products are measured on part of it.
        dtype: Precision of the products.
        device: The device.
        limit: Seconds after which no further try starts.
    """
    rows, flop = (min(rows, _CPU_ROWS), _CPU_FLOP) if device.type == "cpu" else (rows, _GPU_FLOP)
    features = max(1, min(features, int(flop / (10 * rows * inputs))))
    generator = torch.Generator(device).manual_seed(0)  # leaves the global random state alone
    x, f, encoder, decoder = (
        torch.randn(shape, generator=generator, device=device).to(dtype)
        for shape in ((rows, inputs), (rows, features), (inputs, features), (features, inputs))
    )

    def products() -> object:
        return x @ encoder, f @ decoder, x @ decoder.T, x.T @ f, f.T @ x

    return 10 * rows * inputs * features / best_seconds(products, device, limit)
