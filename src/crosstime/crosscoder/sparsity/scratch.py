"""Memory for the intermediate values of a training step, which the next step takes again."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Gives memory by name: the same piece whenever a name is asked for, so a value lives until then.

    On a CPU, to get memory anew costs several times as much as to write into it. Other devices' allocators keep what
    was freed, so there each piece is new.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of any content, on the device of `like` and of its dtype where none is given."""
        dtype = dtype or like.dtype
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=like.device)
        size = math.prod(shape) * dtype.itemsize
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = torch.empty(size, dtype=torch.uint8)
        return self._held[name][:size].view(dtype).view(shape)
