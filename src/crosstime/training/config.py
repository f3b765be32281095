"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from crosstime.base.device import fast_dtype
from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.rules import L1, Sparsity

ASIDE = {"matters": False}
"""Marks a setting on which the weights do not depend: changing it makes nothing stale."""


@dataclass(frozen=True)
class CrosscoderSpec:
    """What one of the crosscoders that train on the same activations is."""

    features: int = 16_384
    """F, the size of the dictionary."""
    sparsity: Sparsity = field(default_factory=L1)
    """Which features it keeps."""
    seed: int | None = None
    """Seed of its start values; without it `TrainConfig.seed`."""

    def __post_init__(self) -> None:
        if self.features < 1:
            raise InputError(f"features must be at least 1; got {self.features}")
        if self.seed is not None:
            check_seed("seed", self.seed)
        self.sparsity.check(self.features)
        self.sparsity.check_trainable()


def check_seed(name: str, seed: int) -> None:
    """Raise InputError for a seed that torch's and numpy's generators do not both take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"{name} must not be negative, and less than 2^63; got {seed}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of crosscoder training.

    Defaults follow arXiv 2509.05291 where it gives a value, except `tied_init` and `matmul_dtype`.
    """

    tokens: int = 400_000_000
    """Tokens to train on; every checkpoint reads each of them."""
    batch_size: int = 4096
    """Tokens of one optimisation step."""
    lr: float = 5e-5
    """Learning rate of Adam (betas 0.9 and 0.999, no weight decay)."""
    lr_decay: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    decoder_norm: float | None = None
    """Norm of each feature's decoder vector, at each checkpoint, at the start; without it what suits the sparsity rule:
    0.08 for L1 and 1 for the others, as in the paper."""
    tied_init: bool = True
    """Start each feature with the same direction at every checkpoint. The paper starts with independent ones."""
    matmul_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the matrix products; weights, Adam's moments and all sums are always float32. "auto" is bfloat16,
    or float32 on a device that multiplies bfloat16 slowly (see `fast_dtype`)."""
    model_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision in which the checkpoints run, and their activations are buffered, for training."""
    buffer_tokens: int = 524_288
    """Tokens whose activations are held for shuffling."""
    model_batch_blocks: int = 32
    """Token blocks that one forward pass of a checkpoint reads."""
    calibration_blocks: int = 512
    """Token blocks from which scale factors and mean activations are measured."""
    seed: int = 124
    """Seed of the order of the text, of the shuffling, and of start values that have none of their own."""
    save_seconds: float = field(default=300.0, metadata=ASIDE)
    """Seconds between saves of the state from which an interrupted run goes on."""
    log_steps: int = field(default=20, metadata=ASIDE)
    """Steps between two lines of the log."""
    loggers: tuple[Literal["wandb", "tensorboard"], ...] = field(default=(), metadata=ASIDE)
    """Where the log goes besides log.jsonl; each needs the extra of its name installed."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "buffer_tokens", "model_batch_blocks", "calibration_blocks", "log_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} must be at least 1; got {getattr(self, name)}")
        for name in ("lr", "clip", "decoder_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"training.{name} must be positive; got {value}")
        if not self.save_seconds >= 0:
            raise InputError(f"training.save_seconds must not be negative; got {self.save_seconds}")
        if not 0 <= self.lr_decay <= 1:
            raise InputError(f"training.lr_decay is a share of the steps, from 0 to 1; got {self.lr_decay}")
        check_seed("training.seed", self.seed)
        if self.buffer_tokens < self.batch_size:
            raise InputError(
                f"training.buffer_tokens ({self.buffer_tokens}) must be at least training.batch_size "
                f"({self.batch_size})"
            )
        if self.tokens < self.batch_size:
            raise InputError(
                f"training.tokens ({self.tokens}) is less than one training.batch_size ({self.batch_size})"
            )

    def on(self, device: torch.device) -> TrainConfig:
        """Replace "auto" by the precision that suits a device."""
        chosen = {name: fast_dtype(device) for name in ("matmul_dtype", "model_dtype") if getattr(self, name) == "auto"}
        return replace(self, **chosen)

    @property
    def steps(self) -> int:
        """Optimisation steps of the whole run; tokens that fill no batch are left out."""
        return self.tokens // self.batch_size

    def buffer_size(self, tokens_per_block: int) -> int:
        """Tokens that the activation buffer has room for: at least one refill and one batch."""
        return max(self.buffer_tokens, self.model_batch_blocks * tokens_per_block + self.batch_size)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0 (arXiv 2509.05291: constant, then linear to 0)."""
        start = (1 - self.lr_decay) * self.steps
        return self.lr if step < start else self.lr * (1 - (step - start) / (self.steps - start))
