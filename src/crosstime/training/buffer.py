"""The ring: a fixed store in which rows of text order become rows of random order."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROWS_AT_ONCE = 65_536


class ActivationBuffer:
    """Holds rows for shuffling. Rows that were served free their slots, and new rows are written into those.

    So memory stays what it was at the start, each row is served exactly once, and no data is moved to shuffle:
    only `slots`, a permutation of slot numbers, is. Its first `live` entries are slots that hold rows yet to serve.
    """

    def __init__(self, rows: int, width: int, *, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.store = torch.empty(rows, width, dtype=dtype, device=device)
        self.slots = torch.arange(rows)
        self.live = 0
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self.slots) - self.live

    def fill(self, rows: Float[Tensor, "N W"]) -> None:
        """Write new rows into free slots."""
        assert len(rows) <= self.free, f"{len(rows)} rows for {self.free} free slots"
        taken = self.slots[self.live : self.live + len(rows)]
        self.store[taken.to(self.store.device)] = rows.to(self.store.dtype)
        self.live += len(rows)

    def shuffle(self) -> None:
        """Draw a new order for the rows that are yet to be served."""
        order = torch.randperm(self.live, generator=self.generator)
        self.slots[: self.live] = self.slots[: self.live][order]

    def serve(self, n: int) -> Float[Tensor, "N W"]:
        """The next n rows of the drawn order; their slots become free."""
        assert n <= self.live, f"{n} rows asked of {self.live}"
        taken = self.slots[self.live - n : self.live]
        self.live -= n
        return self.store[taken.to(self.store.device)]

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on from here, as tensors; free slots are not kept."""
        return {
            "buffer.activations": self._live_rows(),
            "buffer.slots": self.slots,
            "buffer.random": self.generator.get_state(),
        }

    def _live_rows(self) -> Float[Tensor, "N W"]:
        """The rows yet to be served, in order, on the CPU: by parts, so that the device holds no second ring."""
        rows = torch.empty(self.live, self.store.shape[1], dtype=self.store.dtype)
        for part, slots in zip(rows.split(ROWS_AT_ONCE), self.slots[: self.live].split(ROWS_AT_ONCE), strict=True):
            part.copy_(self.store[slots.to(self.store.device)])
        return rows

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self.slots.copy_(state["buffer.slots"])
        self.live = len(state["buffer.activations"])
        self.store[self.slots[: self.live].to(self.store.device)] = state["buffer.activations"].to(self.store.device)
        self.generator.set_state(state["buffer.random"])
