"""A crosscoder in training: its parameters, its optimiser, and what must be kept between two steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rule import Progress
from crosstime.crosscoder.sparsity.scratch import Scratch
from crosstime.training.clipped_adam import ClippedAdam
from crosstime.training.config import TrainConfig
from crosstime.training.resume import optimiser_tensors, restore_optimiser
from crosstime.training.step import StepStats, gradients


class TrainState:
    """Takes optimisation steps on batches of scaled activations, wherever these come from."""

    def __init__(
        self, crosscoder: Crosscoder, config: TrainConfig, seed: int | None = None, scratch: Scratch | None = None
    ) -> None:
        crosscoder.config.sparsity.check_trainable()
        self.crosscoder, self.config = crosscoder, config
        self.seed = config.seed if seed is None else seed
        """Of the start values."""
        self.scratch = scratch or Scratch()
        """Memory for a step; learners that take turns may share it."""
        self.step = 0
        self.tokens_since_fired = torch.zeros(
            crosscoder.config.features, dtype=torch.long, device=crosscoder.W_enc.device
        )
        """Rows since each feature last fired."""
        self.products = getattr(torch, config.on(crosscoder.W_enc.device).matmul_dtype)
        self.optimiser = ClippedAdam(self._groups(), lr=config.lr, clip=config.clip)

    @property
    def progress(self) -> Progress:
        """Where the schedules stand."""
        return Progress(self.step, self.config.steps)

    @property
    def product_flop(self) -> float:
        """FLOP of a step's five matrix products: two forward, three backward, of 2 B M D F each."""
        return 10.0 * self.config.batch_size * self.crosscoder.W_enc.numel()

    def start(self, mean: Float[Tensor, "M D"], scale: Float[Tensor, " M"]) -> None:
        """Give the crosscoder its start values.

        Args:
            mean: mean raw activation of each checkpoint.
            scale: factor by which each checkpoint's activations are scaled.
        """
        self.crosscoder.initialise(
            mean,
            scale,
            decoder_norm=self.config.decoder_norm or self.crosscoder.config.sparsity.decoder_norm,
            tied=self.config.tied_init,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_step(self, batch: Float[Tensor, "B W"]) -> StepStats:
        """Take one step on scaled activations of all checkpoints side by side, W = M D.

        Where the gradient is not finite, weights and optimiser stay as they are.
        """
        stats = gradients(self.crosscoder, batch, self.progress, self.products, self.tokens_since_fired, self.scratch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr_at(self.step) * group["lr_share"]
        taken = self.optimiser.clipped_step()
        self.step += 1
        return stats.only_if(taken)

    def logged(self) -> dict[str, float | int]:
        """What the last step's schedules said, and the threshold where the sparsity rule measures one."""
        last = Progress(self.step - 1, self.config.steps)
        scheduled = {"lr": self.config.lr_at(last.step), **self.crosscoder.config.sparsity.logged(last)}
        threshold = self.crosscoder.threshold
        return scheduled if threshold is None or threshold.ndim else {**scheduled, "threshold": float(threshold)}

    def tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on from here."""
        return {
            **{f"crosscoder.{name}": tensor for name, tensor in self.crosscoder.state_dict().items()},
            **optimiser_tensors(self.optimiser, dict(self.crosscoder.named_parameters())),
            "tokens_since_fired": self.tokens_since_fired,
        }

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave after `step` steps."""
        self.step = step
        prefix = "crosscoder."
        self.crosscoder.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        restore_optimiser(self.optimiser, dict(self.crosscoder.named_parameters()), tensors)
        self.tokens_since_fired.copy_(tensors["tokens_since_fired"])

    def _groups(self) -> list[dict[str, object]]:
        """The weights, and the threshold where it is learnt, at a learning rate of its own."""
        weights = [p for p in self.crosscoder.parameters() if p is not self.crosscoder.threshold]
        groups: list[dict[str, object]] = [{"params": weights, "lr_share": 1.0}]
        if isinstance(self.crosscoder.threshold, nn.Parameter):
            share = self.crosscoder.config.sparsity.threshold_lr_share
            groups.append({"params": [self.crosscoder.threshold], "lr_share": share})
        return groups
