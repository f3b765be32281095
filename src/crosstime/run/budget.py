"""compute.memory, obeyed: what must be held throughout is checked before any long work, and batches fit into the rest.

On CUDA torch enforces the budget besides. Elsewhere it is kept by the estimates of `cost` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from crosstime.lm.memory import held_bytes, limit_bytes, shown_bytes


@dataclass(frozen=True)
class Budget:
    """Memory that a run may hold on its device."""

    device: torch.device
    most: int | None
    """Bytes; None for no limit."""
    before: int
    """Bytes that were held before the run loaded anything: on a CPU, the libraries."""

    @classmethod
    def of(cls, device: torch.device, most: int | None) -> Budget:
        """The budget of a run that begins now; on CUDA it is enforced from here on."""
        if most is not None:
            limit_bytes(device, most)
        return cls(device, most, held_bytes(device))

    def fitting(self, doing: str, wanted: int, each: int, parts: Mapping[str, int]) -> int:
        """How many blocks or prompts to work on at a time: as many as wanted, or fewer that fit.

        Args:
            doing: what the work is, for the error.
            wanted: most of them.
            each: bytes that one takes while it is worked on.
            parts: what is held besides, by what takes it and the setting that would make it less.

        Raises:
            ValueError: not even one fits; it says what takes how much, and which settings to lower.
        """
        if self.most is None:
            return wanted
        left = self.most - self.before - sum(parts.values())
        if left < each:
            whole = {**parts, "one block or prompt (text.context)": each, "the process itself": self.before}
            held = ", ".join(f"{what} {shown_bytes(count)}" for what, count in whole.items() if count)
            raise ValueError(
                f"compute.memory is {shown_bytes(self.most)}, and {doing} takes {shown_bytes(sum(whole.values()))}: "
                f"{held}; lower a setting that is named here, or raise compute.memory"
            )
        return min(wanted, left // each)
