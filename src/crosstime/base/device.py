"""Devices: asked for by name, refused where they do not exist."""

from __future__ import annotations

import torch

from crosstime.base.errors import InputError


def available_device(device: str | torch.device) -> torch.device:
    """The device ("cpu", "cuda", "cuda:1", "mps", ...), if this machine has it.

    Raises:
        InputError: there is no such device here.
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
