"""How fast this machine multiplies matrices: what the speed of training is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SECONDS = 0.5
"""For measuring, where there is much to multiply."""
REPEATS = 5
ROWS = 1024
"""Of a batch, that are multiplied on a CPU: more of them make nothing faster there."""
CPU_FLOP, FLOP = 2e10, 1e12
"""Of the products that are measured, at most: a fifth of a second on two CPU cores, and milliseconds on a GPU."""


@torch.no_grad()
def peak_products(
    rows: int, columns: int, features: int, dtype: torch.dtype, device: torch.device, seconds: float = SECONDS
) -> float:
    """FLOP/s of the five matrix products of a step alone, at their shapes and precision: the best of a few tries.

    Args:
        rows: of a batch, B.
        columns: of all checkpoints side by side, M D.
        features: F; where that is large, the products are measured on the first of them.
        dtype: of the products.
        device: where.
        seconds: stop trying after so long.
    """
    rows = min(rows, ROWS) if device.type == "cpu" else rows
    most = CPU_FLOP if device.type == "cpu" else FLOP
    features = max(1, min(features, int(most / (10 * rows * columns))))
    generator = torch.Generator(device).manual_seed(0)  # the state of the user's is none of our business
    x, codes, encoder, decoder = (
        torch.randn(shape, generator=generator, device=device).to(dtype)
        for shape in ((rows, columns), (rows, features), (columns, features), (features, columns))
    )

    def products() -> object:
        return x @ encoder, codes @ decoder, x @ decoder.T, x.T @ codes, codes.T @ x

    return 10 * rows * columns * features / fastest(products, device, seconds)


def fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds that the work takes, the least of up to five tries after one that does not count."""
    best, begin = float("inf"), time.perf_counter()
    for n in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        synchronise(device)
        end = time.perf_counter()
        best = min(best, end - start) if n else best
        if end - begin > seconds and best < float("inf"):
            break
    return best


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
