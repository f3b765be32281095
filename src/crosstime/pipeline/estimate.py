"""Estimate what a run costs from its settings and the model's shape: FLOP, time, memory, disk. Nothing is measured.

Time is that of training on an assumed device: the analyses add minutes to the hours of a large run, and waiting for
streamed text is left out. What each stage holds in memory is stated here alone: `crosstime plan` and `crosstime new`
print it, and a `Budget` chooses batch sizes by it so that a run keeps within `compute.memory`. On CUDA torch
enforces that limit too; elsewhere these estimates are all there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from crosstime.base.errors import InputError
from crosstime.base.memory import limit_bytes, used_bytes
from crosstime.base.units import format_bytes
from crosstime.evaluation.quality import MAX_LOGITS
from crosstime.models.shape import ModelShape
from crosstime.pipeline.config import RunConfig

_BYTES = {"float32": 4, "bfloat16": 2, "auto": 4}
"""Of a value; "auto" counts as the larger of what it may become."""

_FLOP_PER_WEIGHT = 5
"""Per token and weight of the crosscoder's two matrices (M D F each): five products (two forward, three backward)."""
_STEP_BYTES = 46
"""Memory traffic per weight and step: Adam reads four values and writes three, clipping reads the gradient twice and
writes it once, and the copy for the products is written: (7 + 3 + 1.5) x 4 bytes."""
_WEIGHT_BYTES, _COPY_BYTES = 16, 4
"""Held in training per weight: itself, its gradient and two moments in float32; and, during a step, copies for the
products and their results."""
_CODE_BYTES, _GATED_CODE_BYTES = 8, 24
"""Held in a step per feature activation: itself, its gradient and the mask. With a gate at every checkpoint, the second
number for each of them."""
_STEP_ACTIVATION_BYTES = 16
"""Held in a step per input value: the activation, its error, and copies of both for the products."""
_PASS_VALUES = 12
"""Values that a block of the model holds per token while it runs, in widths of the model: a guess that suits most."""
_EVALUATED, _DIAGNOSED = 3, 8
"""Values that evaluation and diagnostics hold per feature and token, measured: activations and what multiplies them."""
_PROMPT_TOKENS = 32
"""Length assumed of a prompt that is ablated."""
_LIBRARIES = 256 * 2**20
"""Bytes that libraries loaded later, texts and tables take in a process: measured on the demo."""


@dataclass(frozen=True)
class Device:
    """Assumed speeds of a kind of device."""

    name: str
    matmul: float
    """FLOP/s in the crosscoder's matrix products."""
    forward: float
    """FLOP/s in the checkpoints' forward passes."""
    bandwidth: float
    """Bytes/s of memory."""

    def __str__(self) -> str:
        """Return the name and the assumptions."""
        return (
            f"one {self.name} ({self.matmul / 1e12:.0f} TFLOP/s in the crosscoder's products, "
            f"{self.forward / 1e12:.0f} in the checkpoints, {self.bandwidth / 1e12:.0f} TB/s in Adam)"
        )


H100 = Device("H100", matmul=600e12, forward=0.45 * 989e12, bandwidth=3.0e12)
"""In bfloat16: 600 TFLOP/s sustained in large products, 45 % of the peak of 989 TFLOP/s in a model, 3 TB/s."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run."""

    tokens: int
    """Tokens that the crosscoders are trained on."""
    tokens_read: int
    """Tokens that every checkpoint reads for that: some positions aren't trained on."""
    weights: int
    """Weights of the two matrices of all crosscoders."""
    forward_flop: float
    """All forward passes of training."""
    matmul_flop: float
    """All matrix products of the crosscoders."""
    seconds: float
    """Training on the assumed device."""
    memory: int
    """Peak bytes on the device."""
    disk: int
    """Peak bytes of the run folder: two training states, the crosscoders and the tokenised text."""


def estimate(configs: Sequence[RunConfig], shape: ModelShape, device: Device = H100) -> Estimate:
    """Estimate the cost of a run.

    Args:
        configs: Settings of each crosscoder; all are trained on the same activations.
        shape: ModelShape of each checkpoint.
        device: What the time is estimated for.
    """
    config, trained = configs[0], not configs[0].crosscoder.from_
    checkpoints, layer, context = config.selection.size, config.crosscoder.layer_of(shape.layers), config.text.context
    steps = config.training.steps if trained else 0
    tokens = steps * config.training.batch_size
    tokens_read = round(tokens * context / (context - config.positions.first_trained))
    weights = sum(_weights(each, shape) for each in configs)
    # A token attends to half of its sequence on average; scores and mixing cost 2 S D each for a whole one.
    per_token = (layer + 1) * (2 * shape.block + 2 * context * shape.width)
    forward_flop = float(tokens_read) * checkpoints * per_token
    matmul_flop = float(tokens) * _FLOP_PER_WEIGHT * weights
    seconds = forward_flop / device.forward + matmul_flop / device.matmul
    seconds += steps * (_STEP_BYTES * weights + 2 * sum(map(_code_bytes, configs))) / device.bandwidth
    state = 12 * weights + _buffer_bytes(config, shape) if trained else 0  # the crosscoders, Adam's moments, the buffer
    token_bytes = 2 if shape.vocabulary <= 1 << 16 else 4
    return Estimate(
        tokens=tokens,
        tokens_read=tokens_read,
        weights=weights,
        forward_flop=forward_flop,
        matmul_flop=matmul_flop,
        seconds=seconds,
        memory=max(
            memory(configs, shape).peak("cuda") for stage, memory in MEMORY.items() if trained or stage != "train"
        ),
        disk=2 * state + 4 * weights + token_bytes * (config.text.limit_tokens or 0),
    )


def collected_tokens(config: RunConfig) -> int:
    """Count the tokens that training reads: for calibration, and to fill and refill the activation buffer."""
    training = config.training
    per_block = config.text.context - config.positions.first_trained
    refill, buffer = training.model_batch_blocks * per_block, training.buffer_size(per_block)
    refills = (buffer + (training.steps - 1) * training.batch_size) // refill
    return (training.calibration_blocks + training.model_batch_blocks * refills) * config.text.context


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder, or the folder that it'll be made in, is on."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


# ------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes that a stage holds on the device."""

    work: str
    """What the stage does, for error messages."""
    fixed: Mapping[str, int]
    """Bytes held from beginning to end, by what holds them (and the setting that makes it smaller)."""
    unit: str
    """What is batched: "one block (text.context = 128)"."""
    per_unit: int
    """Bytes held per unit of a batch."""
    batch: int
    """Units in a batch."""
    host: Mapping[str, int] = field(default_factory=dict)
    """Bytes held in the host's memory: on a CPU they count too."""

    def held(self, device: str) -> dict[str, int]:
        """Return what is held on a type of device from beginning to end."""
        return {**self.fixed, **(self.host if device == "cpu" else {})}

    def peak(self, device: str, batch: int | None = None) -> int:
        """Return the peak bytes on a type of device, with batches as configured or of another size."""
        return sum(self.held(device).values()) + (self.batch if batch is None else batch) * self.per_unit


def survey_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of the survey, which holds one checkpoint at a time."""
    config = configs[0]
    dtype = config.compute.dtype
    fixed = {"a checkpoint (compute.dtype)": shape.parameters * _BYTES[dtype], **_logits(config, shape)}
    batch = max(1, config.survey.batch_tokens // config.text.context)
    return Memory("the survey", fixed, _block(config), _pass_bytes(config, shape, dtype), batch)


def training_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of training all crosscoders."""
    config, training = configs[0], configs[0].training
    value, values = _BYTES[training.model_dtype], config.selection.size * shape.width
    buffer = _buffer_bytes(config, shape)
    fixed = {
        "checkpoints (training.model_dtype)": config.selection.size
        * shape.parameters_up_to(config.crosscoder.layer_of(shape.layers))
        * value,
        "weights, gradients and moments (crosscoder.features)": sum(_weights(c, shape) for c in configs)
        * _WEIGHT_BYTES,
        "activation buffer (training.buffer_tokens)": buffer,
        # Crosscoders take their steps one after another, in the same memory.
        "a step (training.batch_size)": max(
            _code_bytes(each)
            + training.batch_size * values * _STEP_ACTIVATION_BYTES
            + _weights(each, shape) * _COPY_BYTES
            for each in configs
        ),
    }
    # A forward pass, and the activations of all checkpoints twice.
    per_block = _pass_bytes(config, shape, training.model_dtype) + 2 * config.text.context * values * value
    unit = f"activations of one block (text.context = {config.text.context})"
    host = {"a copy of the activation buffer, to save it": buffer}
    return Memory("training", fixed, unit, per_block, training.model_batch_blocks, host)


def evaluation_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of the evaluation."""
    memory = _analysis("the evaluation", configs, shape, configs[0].evaluation.batch_blocks, _EVALUATED)
    return replace(memory, fixed={**memory.fixed, **_logits(configs[0], shape)})


def diagnostics_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of the diagnostics."""
    return _analysis("the diagnosis", configs, shape, configs[0].diagnostics.batch_blocks, _DIAGNOSED)


def attribution_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of the attribution: mostly what the blocks above the layer keep for the backward pass."""
    config = configs[0]
    above = shape.layers - config.crosscoder.layer_of(shape.layers)
    per_token = shape.width * _PASS_VALUES * above * _BYTES[config.compute.dtype]
    return Memory(
        "the effects",
        _analysis_bytes(configs, shape),
        "one token of a prompt",
        per_token,
        config.attribution.max_positions,
    )


def ablation_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of the ablation."""
    per_prompt = 4 * _PROMPT_TOKENS * _EVALUATED * max(config.crosscoder.features for config in configs)
    fixed = _analysis_bytes(configs, shape)
    return Memory("the ablation", fixed, "one prompt", per_prompt, configs[0].ablation.batch_size)


def contexts_memory(configs: Sequence[RunConfig], shape: ModelShape) -> Memory:
    """Memory of the search for contexts."""
    return _analysis("the search for contexts", configs, shape, configs[0].contexts.batch_blocks, _EVALUATED)


MEMORY: Mapping[str, Callable[[Sequence[RunConfig], ModelShape], Memory]] = {
    "survey": survey_memory,
    "train": training_memory,
    "evaluate": evaluation_memory,
    "diagnose": diagnostics_memory,
    "attribute": attribution_memory,
    "ablate": ablation_memory,
    "contexts": contexts_memory,
}
"""By stage."""


@dataclass(frozen=True)
class Budget:
    """Memory that a run may use on its device."""

    device: torch.device
    limit: int | None
    """Bytes; None for no limit."""
    in_use: int
    """Bytes in use whatever the settings: on a CPU, by the process itself."""

    @classmethod
    def start(cls, device: torch.device, limit: int | None) -> Budget:
        """Return the budget of a run that starts now; on CUDA it is enforced from here on."""
        if limit is not None:
            limit_bytes(device, limit)
        return cls(device, limit, used_bytes(device) + (_LIBRARIES if device.type == "cpu" else 0))

    def fit(self, memory: Memory) -> int:
        """Return the largest batch that fits, up to the one configured.

        Raises:
            InputError: Not even one unit fits; the error lists what takes how much.
        """
        if self.limit is None:
            return memory.batch
        held = memory.held(self.device.type)
        left = self.limit - self.in_use - sum(held.values())
        if left < memory.per_unit:
            parts = {**held, memory.unit: memory.per_unit, "the process itself": self.in_use}
            listed = ", ".join(f"{what} {format_bytes(count)}" for what, count in parts.items() if count)
            raise InputError(
                f"compute.memory is {format_bytes(self.limit)}, and {memory.work} takes "
                f"{format_bytes(sum(parts.values()))}: {listed}; lower a setting that is named here, or raise "
                "compute.memory"
            )
        return min(memory.batch, left // memory.per_unit)


def _analysis(work: str, configs: Sequence[RunConfig], shape: ModelShape, batch: int, values: int) -> Memory:
    """An analysis of held-out text that holds so many values per feature and token."""
    config = max(configs, key=lambda config: config.crosscoder.features)  # crosscoders are analysed one after another
    per_token = values * config.crosscoder.features + 2 * config.selection.size * shape.width
    return Memory(work, _analysis_bytes(configs, shape), _block(config), 4 * config.text.context * per_token, batch)


def _analysis_bytes(configs: Sequence[RunConfig], shape: ModelShape) -> dict[str, int]:
    """What every analysis holds from beginning to end."""
    config = configs[0]
    return {
        "checkpoints (compute.dtype)": config.selection.size * shape.parameters * _BYTES[config.compute.dtype],
        "crosscoders (crosscoder.features)": 4 * sum(_weights(each, shape) for each in configs),
    }


def _block(config: RunConfig) -> str:
    return f"one block (text.context = {config.text.context})"


def _logits(config: RunConfig, shape: ModelShape) -> dict[str, int]:
    """Logits of part of a batch, twice, and their loss."""
    return {"logits (text.context)": 3 * 4 * max(MAX_LOGITS, config.text.context * shape.vocabulary)}


def _pass_bytes(config: RunConfig, shape: ModelShape, dtype: str) -> int:
    """Bytes that a checkpoint's pass over one block of text holds."""
    return config.text.context * shape.width * _PASS_VALUES * _BYTES[dtype]


def _buffer_bytes(config: RunConfig, shape: ModelShape) -> int:
    training = config.training
    return (
        training.buffer_size(config.text.context) * config.selection.size * shape.width * _BYTES[training.model_dtype]
    )


def _weights(config: RunConfig, shape: ModelShape) -> int:
    """Weights of a crosscoder's two matrices."""
    return 2 * config.selection.size * shape.width * config.crosscoder.features


def _code_bytes(config: RunConfig) -> int:
    per_code = _GATED_CODE_BYTES * config.selection.size if config.sparsity.gates_checkpoints else _CODE_BYTES
    return config.training.batch_size * config.crosscoder.features * per_code
