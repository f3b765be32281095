"""What a run will cost, before anything runs: tokens, time, memory and disk, from the model's shape and the settings.

Everything here is an estimate. Time is that of training on one device, whose speeds are stated; survey, evaluation,
effects and ablation add minutes to the hours of a large run, and streaming the text is left out. Memory is the larger
of what training and the analyses hold at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crosstime.evaluation.quality import MAX_LOGITS
from crosstime.models.shape import ModelShape
from crosstime.pipeline.config import RunConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}
"""Of a value; "auto" is counted as the larger of the two that it may become."""

FLOP_PER_WEIGHT_AND_ROW = 5
"""Of the crosscoder's two matrices, M D F weights each: five products (two forward, three backward) of 2 M D F each."""

STEP_BYTES = 46
"""Moved for each weight in a step: Adam reads four values and writes three, clipping reads and writes the gradient
(once more to measure it), and the copy for the products is written: (7 + 3 + 1.5) x 4 bytes."""

KEPT_BYTES, PRODUCT_BYTES = 16, 4
"""Held in training for each weight: itself, its gradient and two moments in float32; and, during a step, copies for the
products and their results."""

CODE_BYTES, GATED_CODE_BYTES = 8, 24
"""Held in training for each feature of each row: the code, its gradient, and what chooses it. Where every checkpoint
has a gate of its own, the second number for each of them."""

ROW_BYTES = 16
"""Held in training for each activation of each row: the row, its error, and both again for the products."""

HARVEST_VALUES = 12
"""Values that a block holds for each token while it runs, in widths of the model: a guess that suits most."""

EVALUATED, DIAGNOSED = 3, 8
"""Values that evaluation and diagnosis hold for each feature at each token, measured: codes, and what they multiply."""


@dataclass(frozen=True)
class Device:
    """How fast a kind of device is, as we assume."""

    name: str
    products: float
    """FLOP/s of the crosscoder's matrix products."""
    collection: float
    """FLOP/s of the models' forward passes."""
    bandwidth: float
    """Bytes/s of memory."""

    def __str__(self) -> str:
        """The device and what is assumed of it."""
        return (
            f"one {self.name} ({self.products / 1e12:.0f} TFLOP/s in the crosscoder's products, "
            f"{self.collection / 1e12:.0f} in the checkpoints, {self.bandwidth / 1e12:.0f} TB/s in Adam)"
        )


H100 = Device("H100", products=600e12, collection=0.45 * 989e12, bandwidth=3.0e12)
"""In bfloat16: 600 TFLOP/s sustained in large products, 45 % of the peak of 989 TFLOP/s in a model, 3 TB/s."""


@dataclass(frozen=True)
class Cost:
    """An estimate of a run's cost."""

    rows: int
    """Tokens that the crosscoder is trained on."""
    tokens: int
    """Tokens that every checkpoint reads for them."""
    weights: int
    """Weights of the two matrices of all crosscoders."""
    collection_flop: float
    """All forward passes of training."""
    product_flop: float
    """All matrix products of the crosscoders."""
    seconds: float
    """Training on the assumed device."""
    gpu_bytes: int
    """The most memory that is held at once."""
    run_bytes: int
    """The most that the run folder holds at once: two training states, the crosscoders, the text's tokens."""

    @property
    def gpu_hours(self) -> float:
        return self.seconds / 3600


def estimate(config: RunConfig, shape: ModelShape, device: Device = H100, *, beside: Sequence[RunConfig] = ()) -> Cost:
    """The cost of a run.

    Args:
        config: its settings.
        shape: of each of its checkpoints.
        device: what it runs on.
        beside: the settings of the other crosscoders that are trained on the same activations.
    """
    configs = [config, *beside]
    checkpoints, layer = config.selection.size, config.crosscoder.layer_of(shape.layers)
    context, trained = config.text.context, not config.crosscoder.from_
    steps = config.training.steps if trained else 0
    rows = steps * config.training.batch_size
    tokens = round(rows * context / (context - config.positions.first_trained))
    weights = sum(crosscoder_weights(each, shape) for each in configs)
    # A token attends to half of its sequence on average; scores and mixing cost 2 S D each for a whole one.
    per_token = (layer + 1) * (2 * shape.block + 2 * context * shape.width)
    collection_flop = float(tokens) * checkpoints * per_token
    product_flop = float(rows) * FLOP_PER_WEIGHT_AND_ROW * weights
    seconds = collection_flop / device.collection + product_flop / device.products
    seconds += steps * (STEP_BYTES * weights + 2 * sum(map(_code_bytes, configs))) / device.bandwidth
    analysis = _analysis_bytes(configs, shape)
    return Cost(
        rows=rows,
        tokens=tokens,
        weights=weights,
        collection_flop=collection_flop,
        product_flop=product_flop,
        seconds=seconds,
        gpu_bytes=max(_training_bytes(configs, shape), analysis) if trained else analysis,
        run_bytes=_run_bytes(config, shape, weights),
    )


def training_parts(configs: Sequence[RunConfig], shape: ModelShape) -> dict[str, int]:
    """Bytes that training holds from its beginning to its end, by what takes them."""
    config, weights = configs[0], sum(crosscoder_weights(config, shape) for config in configs)
    models = config.selection.size * shape.parameters_up_to(config.crosscoder.layer_of(shape.layers))
    return {
        "checkpoints (training.model_dtype)": models * BYTES[config.training.model_dtype],
        "weights, gradients and moments (crosscoder.features)": weights * KEPT_BYTES,
        "activation buffer (training.buffer_tokens)": buffer_bytes(config, shape),
        # One crosscoder after the other takes its step, in the same memory.
        "a step (training.batch_size)": max(step_bytes(config, shape) for config in configs),
    }


def step_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Bytes that a training step works in; they are kept for the next."""
    rows = config.training.batch_size * config.selection.size * shape.width * ROW_BYTES
    return _code_bytes(config) + rows + crosscoder_weights(config, shape) * PRODUCT_BYTES


def collection_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Extra bytes to collect one block's activations: a forward pass, and all checkpoints' activations twice."""
    rows = 2 * config.text.context * config.selection.size * shape.width
    return pass_bytes(config, shape, config.training.model_dtype) + rows * BYTES[config.training.model_dtype]


def pass_bytes(config: RunConfig, shape: ModelShape, precision: str) -> int:
    """Bytes that a checkpoint's pass over one block of text holds."""
    return config.text.context * shape.width * HARVEST_VALUES * BYTES[precision]


def analysis_parts(configs: Sequence[RunConfig], shape: ModelShape) -> dict[str, int]:
    """Bytes that evaluation, effects and ablation hold from beginning to end, by what takes them."""
    config, weights = configs[0], sum(crosscoder_weights(config, shape) for config in configs)
    models = config.selection.size * shape.parameters
    return {
        "checkpoints (compute.dtype)": models * BYTES[config.compute.dtype],
        "crosscoders (crosscoder.features)": 4 * weights,
    }


def analysis_bytes(config: RunConfig, shape: ModelShape, codes: int) -> int:
    """Bytes that an analysis of one block of text holds besides: its rows, read and written, and values of that number
    for each feature.
    """
    return 4 * config.text.context * (codes * config.crosscoder.features + 2 * config.selection.size * shape.width)


def gradient_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Bytes that the blocks above the layer keep of a position for the way back."""
    above = shape.layers - config.crosscoder.layer_of(shape.layers)
    return shape.width * HARVEST_VALUES * above * BYTES[config.compute.dtype]


def logit_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Bytes that the logits of a part of a batch hold besides: twice, and their loss."""
    return 3 * 4 * max(MAX_LOGITS, config.text.context * shape.vocabulary)


def free_bytes(folder: Path) -> int:
    """What is free on the disk where a folder is, or is to be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def largest(configs: Sequence[RunConfig]) -> RunConfig:
    """The crosscoder with most features: the analyses, which take one after the other, hold most for it."""
    return max(configs, key=lambda config: config.crosscoder.features)


def crosscoder_weights(config: RunConfig, shape: ModelShape) -> int:
    """Weights of the crosscoder's two matrices."""
    return 2 * config.selection.size * shape.width * config.crosscoder.features


def _training_bytes(configs: Sequence[RunConfig], shape: ModelShape) -> int:
    collection = configs[0].training.model_batch_blocks * collection_bytes(configs[0], shape)
    return sum(training_parts(configs, shape).values()) + collection


def _code_bytes(config: RunConfig) -> int:
    codes = config.training.batch_size * config.crosscoder.features
    return codes * (GATED_CODE_BYTES * config.selection.size if config.sparsity.gates_checkpoints else CODE_BYTES)


def _analysis_bytes(configs: Sequence[RunConfig], shape: ModelShape) -> int:
    """While a crosscoder is evaluated."""
    config = largest(configs)
    batch = config.evaluation.batch_blocks * analysis_bytes(config, shape, 2) + logit_bytes(config, shape)
    return sum(analysis_parts(configs, shape).values()) + batch


def buffer_bytes(config: RunConfig, shape: ModelShape) -> int:
    training = config.training
    return training.buffer_size(config.text.context) * config.selection.size * shape.width * BYTES[training.model_dtype]


def _run_bytes(config: RunConfig, shape: ModelShape, weights: int) -> int:
    """A new state is written before the old one goes; each is the crosscoder, Adam's moments and the buffer."""
    state = 0 if config.crosscoder.from_ else 12 * weights + buffer_bytes(config, shape)
    token = 2 if shape.vocabulary <= 1 << 16 else 4
    return 2 * state + 4 * weights + token * (config.text.limit_tokens or 0)
