"""A crosscoder in training: parameters, optimiser, and whatever else persists between steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rule import Scratch, TrainingProgress
from crosstime.training.clipped_adam import ClippedAdam
from crosstime.training.config import TrainConfig
from crosstime.training.step import StepStats, compute_gradients


class TrainState:
    """The training state of one crosscoder. It takes optimisation steps on batches of scaled activations.

    Args:
        crosscoder: The crosscoder, on its device.
        config: Settings of training.
        seed: Seed of the initialisation; None for `config.seed`.
        scratch: Working memory of a step; crosscoders that take turns can share it.
    """

    def __init__(
        self, crosscoder: Crosscoder, config: TrainConfig, seed: int | None = None, scratch: Scratch | None = None
    ) -> None:
        crosscoder.config.sparsity.check_trainable()
        device = crosscoder.W_enc.device
        self.crosscoder, self.config = crosscoder, config
        self.seed = config.seed if seed is None else seed
        self.scratch = scratch or Scratch()
        self.step = 0
        self.tokens_since_fired = torch.zeros(crosscoder.config.features, dtype=torch.long, device=device)
        self.matmul_dtype = getattr(torch, config.on(device).matmul_dtype)
        self.optimiser = ClippedAdam(self._parameter_groups(), lr=config.lr, clip=config.clip)

    @property
    def matmul_flop(self) -> float:
        """FLOP of a step's five matrix products, two forward and three backward, of 2 B M D F each."""
        return 10.0 * self.config.batch_size * self.crosscoder.W_enc.numel()

    def initialise(self, mean: Float[Tensor, "M D"], scale: Float[Tensor, " M"]) -> None:
        """Initialise the crosscoder, given each checkpoint's mean raw activation and scale factor."""
        self.crosscoder.initialise(
            mean,
            scale,
            decoder_norm=self.config.decoder_norm or self.crosscoder.config.sparsity.initial_decoder_norm,
            tied=self.config.tied_init,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_step(self, batch: Float[Tensor, "B W"]) -> StepStats:
        """Take one step on scaled activations of all checkpoints side by side, W = M D.

        If the gradient isn't finite, weights and optimiser don't change.
        """
        progress = TrainingProgress(self.step, self.config.steps)
        stats = compute_gradients(
            self.crosscoder, batch, progress, self.matmul_dtype, self.tokens_since_fired, self.scratch
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr_at(self.step) * group["lr_scale"]
        taken = self.optimiser.clipped_step()
        self.step += 1
        return stats.zero_unless(taken)

    def scheduled_values(self) -> dict[str, float | int]:
        """Return the values of the last step's schedules, and the threshold if the sparsity rule measures one."""
        last = TrainingProgress(self.step - 1, self.config.steps)
        values = {"lr": self.config.lr_at(last.step), **self.crosscoder.config.sparsity.scheduled_values(last)}
        threshold = self.crosscoder.threshold
        return values if threshold is None or threshold.ndim else {**values, "threshold": float(threshold)}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything from which training can resume."""
        return {
            **{f"crosscoder.{name}": tensor for name, tensor in self.crosscoder.state_dict().items()},
            **{
                f"adam.{name}.{key}": value
                for name, parameter in self.crosscoder.named_parameters()
                for key, value in self.optimiser.state[parameter].items()
            },
            "tokens_since_fired": self.tokens_since_fired,
        }

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned after `step` steps."""
        self.step = step
        self.crosscoder.load_state_dict(strip_prefix("crosscoder.", tensors))
        for name, parameter in self.crosscoder.named_parameters():
            saved = strip_prefix(f"adam.{name}.", tensors)
            self.optimiser.state[parameter] = {key: value.to(parameter.device) for key, value in saved.items()}
        self.tokens_since_fired.copy_(tensors["tokens_since_fired"])

    def _parameter_groups(self) -> list[dict[str, object]]:
        """Group the weights, and a learnt threshold, which has its own learning rate."""
        weights = [p for p in self.crosscoder.parameters() if p is not self.crosscoder.threshold]
        groups: list[dict[str, object]] = [{"params": weights, "lr_scale": 1.0}]
        if isinstance(self.crosscoder.threshold, nn.Parameter):
            scale = self.crosscoder.config.sparsity.threshold_lr_scale
            groups.append({"params": [self.crosscoder.threshold], "lr_scale": scale})
        return groups


def strip_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names start with a prefix, and remove it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
