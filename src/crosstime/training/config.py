"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from crosstime.base.device import fast_dtype
from crosstime.base.errors import SettingError
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.crosscoder.sparsity.rules import L1, Sparsity


@dataclass(frozen=True)
class CrosscoderSpec:
    """One of the crosscoders that `train_several` trains on the same activations.

    Example:
        >>> from crosstime import CrosscoderSpec, TopK
        >>> specs = {"small": CrosscoderSpec(1024), "sparse": CrosscoderSpec(4096, TopK(k=32), seed=1)}
    """

    features: int = 16_384
    """F, the number of features."""
    sparsity: Sparsity = field(default_factory=L1)
    """The sparsity rule."""
    seed: int | None = None
    """Seed of the initialisation; None for `TrainConfig.seed`."""

    def __post_init__(self) -> None:
        check_at_least(1, features=self.features)
        check_seed("seed", self.seed)
        try:
            self.sparsity.check(self.features)
            self.sparsity.check_trainable()
        except SettingError as error:
            raise error.under("sparsity") from None


def check_seed(name: str, seed: int | None) -> None:
    """Raise SettingError for a seed that the generators of torch or numpy don't accept."""
    if seed is not None and not 0 <= seed < 2**63:
        raise SettingError(name, f"must be at least 0 and less than 2^63, not {seed}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of crosscoder training. Defaults follow arXiv 2509.05291, except `tied_init` and the precision.

    Example:
        >>> from crosstime import TrainConfig
        >>> config = TrainConfig(tokens=1_000_000, batch_size=1024, lr=1e-3, buffer_tokens=65_536)
        >>> config.steps
        976
    """

    tokens: int = 400_000_000
    """Tokens to train on; every checkpoint reads each of them."""
    batch_size: int = 4096
    """Tokens per optimisation step."""
    lr: float = 5e-5
    """Learning rate of Adam (betas 0.9 and 0.999, no weight decay)."""
    lr_decay: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Gradient norm above which the gradient is scaled down to it."""
    decoder_norm: float | None = None
    """Initial norm of each decoder vector; None for the sparsity rule's, as in the paper: 0.08 for L1, 1 for others."""
    tied_init: bool = True
    """Initialise a feature with the same direction at every checkpoint. The paper uses independent directions."""
    matmul_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the matrix products; weights, Adam's moments and all sums are always float32. "auto" is bfloat16,
    or float32 on a device that multiplies bfloat16 slowly (see `fast_dtype`)."""
    model_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision in which the checkpoints run, and their activations are buffered, for training."""
    buffer_tokens: int = 524_288
    """Tokens whose activations are held for shuffling."""
    model_batch_blocks: int = 32
    """Token blocks per forward pass of a checkpoint."""
    calibration_blocks: int = 512
    """Token blocks on which scale factors and mean activations are measured."""
    seed: int = 124
    """Seed of the text's order, of shuffling, and of the initialisation of crosscoders without their own seed."""
    save_seconds: float = field(default=300.0, metadata=ASIDE)
    """Seconds between saves of the state from which an interrupted run resumes."""
    log_steps: int = field(default=20, metadata=ASIDE)
    """Steps between log records."""
    loggers: tuple[Literal["wandb", "tensorboard"], ...] = field(default=(), metadata=ASIDE)
    """Services that log records go to besides log.jsonl; each needs the extra of its name installed."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "buffer_tokens", "model_batch_blocks", "calibration_blocks", "log_steps"):
            check_at_least(1, **{name: getattr(self, name)})
        for name in ("lr", "clip", "decoder_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(name, f"must be positive, not {value}")
        if not self.save_seconds >= 0:
            raise SettingError("save_seconds", f"must not be negative, but is {self.save_seconds}")
        if not 0 <= self.lr_decay <= 1:
            raise SettingError("lr_decay", f"must be a share of the steps, from 0 to 1, not {self.lr_decay}")
        check_seed("seed", self.seed)
        for name in ("buffer_tokens", "tokens"):
            if getattr(self, name) < self.batch_size:
                raise SettingError(name, f"({getattr(self, name)}) must be at least batch_size ({self.batch_size})")

    def on(self, device: torch.device) -> TrainConfig:
        """Replace "auto" by the precision that suits a device."""
        chosen = {name: fast_dtype(device) for name in ("matmul_dtype", "model_dtype") if getattr(self, name) == "auto"}
        return replace(self, **chosen)

    @property
    def steps(self) -> int:
        """Optimisation steps of the whole run. Tokens that don't fill a batch are left out."""
        return self.tokens // self.batch_size

    def buffer_size(self, tokens_per_block: int) -> int:
        """Return the capacity of the activation buffer in tokens: at least one refill and one batch."""
        return max(self.buffer_tokens, self.model_batch_blocks * tokens_per_block + self.batch_size)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: constant, then linear to 0 (arXiv 2509.05291)."""
        start = (1 - self.lr_decay) * self.steps
        return self.lr if step < start else self.lr * (1 - (step - start) / (self.steps - start))
