"""The activation buffer, which shuffles activations in fixed memory."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_COPIED_TOKENS = 65_536


class ActivationBuffer:
    """Store activations in the order of the text, and serve them in random order, each exactly once.

    Served activations free their slots for new ones, so memory is constant. Shuffling moves no data: it permutes slot
    numbers. The first `live` entries of `slots` are slots with activations yet to be served.

    Args:
        size: Tokens that the buffer has room for.
        width: W, the numbers per token.
        dtype: Precision of the stored activations.
        device: Where they are stored.
        seed: Seed of the shuffling.
    """

    def __init__(self, size: int, width: int, *, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.store = torch.empty(size, width, dtype=dtype, device=device)
        self.slots = torch.arange(size)
        self.live = 0
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self.slots) - self.live

    def fill(self, activations: Float[Tensor, "N W"]) -> None:
        """Write activations into free slots."""
        assert len(activations) <= self.free, f"{len(activations)} activations for {self.free} free slots"
        taken = self.slots[self.live : self.live + len(activations)]
        self.store[taken.to(self.store.device)] = activations.to(self.store.dtype)
        self.live += len(activations)

    def shuffle(self) -> None:
        """Draw a new order of all activations yet to be served."""
        order = torch.randperm(self.live, generator=self.generator)
        self.slots[: self.live] = self.slots[: self.live][order]

    def serve(self, n: int) -> Float[Tensor, "N W"]:
        """Return the next n activations, and free their slots."""
        assert n <= self.live, f"{n} activations requested, but only {self.live} are left"
        taken = self.slots[self.live - n : self.live]
        self.live -= n
        return self.store[taken.to(self.store.device)]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the buffer, without the free slots."""
        return {
            "buffer.activations": self._live_activations(),
            "buffer.slots": self.slots,
            "buffer.random": self.generator.get_state(),
        }

    def _live_activations(self) -> Float[Tensor, "N W"]:
        """Copy the activations yet to be served to the CPU, in chunks, so that the device holds no second buffer."""
        copied = torch.empty(self.live, self.store.shape[1], dtype=self.store.dtype)
        slots = self.slots[: self.live].split(_COPIED_TOKENS)
        for chunk, chosen in zip(copied.split(_COPIED_TOKENS), slots, strict=True):
            chunk.copy_(self.store[chosen.to(self.store.device)])
        return copied

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.slots.copy_(tensors["buffer.slots"])
        self.live = len(tensors["buffer.activations"])
        self.store[self.slots[: self.live].to(self.store.device)] = tensors["buffer.activations"].to(self.store.device)
        self.generator.set_state(tensors["buffer.random"])
