"""compute.memory, obeyed: what a run holds throughout is checked before any long work, and batches fit into the rest.

On CUDA torch enforces the budget besides. Elsewhere it is kept by the estimates of `cost` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from crosstime.base.errors import InputError
from crosstime.base.memory import limit_bytes, used_bytes
from crosstime.base.units import format_bytes
from crosstime.models.shape import ModelShape
from crosstime.pipeline import cost
from crosstime.pipeline.config import RunConfig

LIBRARIES = 256 * 2**20
"""That libraries which are first needed later, texts and tables take in a process: measured on the demo."""


@dataclass(frozen=True)
class Budget:
    """Memory that a run may hold on its device."""

    device: torch.device
    most: int | None
    """Bytes; None for no limit."""
    before: int
    """Bytes that are held whatever the sizes: on a CPU, by the libraries and by what they keep."""

    @classmethod
    def of(cls, device: torch.device, most: int | None) -> Budget:
        """The budget of a run that begins now; on CUDA it is enforced from here on."""
        if most is not None:
            limit_bytes(device, most)
        kept = LIBRARIES if device.type == "cpu" else 0
        return cls(device, most, used_bytes(device) + kept)

    def fitting(self, doing: str, wanted: int, row: str, each: int, parts: Mapping[str, int]) -> int:
        """How many blocks or tokens to work on at a time: as many as wanted, or fewer that fit.

        Args:
            doing: what the work is, for the error.
            wanted: most of them.
            row: what one is, and the setting that would make it smaller.
            each: bytes that one takes while it is worked on.
            parts: what is held besides, in the same words.

        Raises:
            InputError: not even one fits; it says what takes how much.
        """
        if self.most is None:
            return wanted
        left = self.most - self.before - sum(parts.values())
        if left < each:
            whole = {**parts, row: each, "the process itself": self.before}
            held = ", ".join(f"{what} {format_bytes(count)}" for what, count in whole.items() if count)
            raise InputError(
                f"compute.memory is {format_bytes(self.most)}, and {doing} takes {format_bytes(sum(whole.values()))}: "
                f"{held}; lower a setting that is named here, or raise compute.memory"
            )
        return min(wanted, left // each)


@dataclass(frozen=True)
class Batches:
    """How much is worked on at a time, by what takes it: as configured, or less where compute.memory has no more."""

    collection: int
    """Blocks of a checkpoint's forward pass in training; 0 where nothing is trained."""
    survey: int
    """Tokens."""
    evaluation: int
    """Blocks."""
    diagnosis: int
    """Blocks."""
    effects: int
    """Positions of all points of a path."""
    contexts: int
    """Blocks."""

    @classmethod
    def of(cls, configs: Sequence[RunConfig], shape: ModelShape, budget: Budget, *, train: bool) -> Batches:
        """What fits.

        Args:
            configs: of each crosscoder; all are trained at once, and analysed one after another.
            shape: of each checkpoint.
            budget: for them.
            train: whether there is anything left to train.

        Raises:
            InputError: what must be held exceeds the budget.
        """
        config = cost.largest(configs)
        held, context = cost.analysis_parts(configs, shape), config.text.context
        logits = {"logits (text.context)": cost.logit_bytes(config, shape)}
        block = f"one block (text.context = {context})"

        def analysed(doing: str, wanted: int, codes: int, parts: Mapping[str, int]) -> int:
            return budget.fitting(doing, wanted, block, cost.analysis_bytes(config, shape, codes), parts)

        alone = {"a checkpoint (compute.dtype)": held["checkpoints (compute.dtype)"] // config.selection.size, **logits}
        survey = budget.fitting(
            "the survey",
            config.survey.batch_tokens // context,
            block,
            cost.pass_bytes(config, shape, config.compute.dtype),
            alone,
        )
        return cls(
            collection=_collection(configs, shape, budget) if train else 0,
            survey=max(1, survey) * context,
            evaluation=analysed("the evaluation", config.evaluation.batch_blocks, cost.EVALUATED, {**held, **logits}),
            diagnosis=analysed("the diagnosis", config.diagnostics.batch_blocks, cost.DIAGNOSED, held),
            effects=budget.fitting(
                "the effects",
                config.attribution.max_positions,
                "one token of a prompt",
                cost.gradient_bytes(config, shape),
                held,
            ),
            contexts=analysed("the search for contexts", config.contexts.batch_blocks, cost.EVALUATED, held),
        )


def _collection(configs: Sequence[RunConfig], shape: ModelShape, budget: Budget) -> int:
    config = configs[0]
    parts = cost.training_parts(configs, shape)
    if budget.device.type == "cpu":
        # Its rows are laid out in order when they are saved: in the memory of the host, which here is the same.
        parts = {**parts, "a copy of the activation buffer, to save it": cost.buffer_bytes(config, shape)}
    block = f"activations of one block (text.context = {config.text.context})"
    return budget.fitting(
        "training", config.training.model_batch_blocks, block, cost.collection_bytes(config, shape), parts
    )
