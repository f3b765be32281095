"""What all benchmarks share: alternating measurement, the machine they ran on, and the line that they print."""

from __future__ import annotations

import contextlib
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from crosstime.base.device import synchronise

PACKAGES = ("torch", "transformers", "sae-lens", "eai-sparsify")
"""Whose versions are recorded, where they are installed."""

GIB = 2**30


def seconds(cases: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each case. They take turns, so that what else the machine does burdens all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, run in cases.items():
            taken = _once(run, device)
            if turn:  # the first turn warms up
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def report(
    case: Mapping[str, object],
    unit: str,
    amount: float,
    taken: Mapping[str, float],
    device: torch.device,
    **also: object,
) -> None:
    """Print the line of one case.

    Args:
        case: benchmark and sizes.
        unit: of which `ours`, `roofline` and `peers` are numbers a second.
        amount: units that each run processed.
        taken: seconds of "ours", of "roofline" where there is one, and of each peer by its name.
        also: further values for the line.
    """
    rates = {name: amount / value for name, value in taken.items()}
    ours, roofline = rates.pop("ours"), rates.pop("roofline", None)
    line = {"case": case, "unit": f"{unit}/s", "ours": round(ours, 1)}
    if roofline is not None:
        line |= {"roofline": round(roofline, 1), "share_of_roofline": round(ours / roofline, 3)}
    if rates:
        line["peers"] = {name: round(rate, 1) for name, rate in rates.items()}
        line["times_peer"] = {name: round(ours / rate, 2) for name, rate in rates.items()}
    print(json.dumps({**line, **also, **machine(device)}), flush=True)


def machine(device: torch.device) -> dict[str, object]:
    """The device and the versions that decide how fast it is."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"device": name, "versions": versions}


def peak(device: torch.device) -> int:
    """Bytes that this process held at most: on the device, or, on a CPU, at all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _once(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin
