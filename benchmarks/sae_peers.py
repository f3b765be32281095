"""One optimisation step of trainers of sparse autoencoders from the registry: peers at M = 1, where they are installed.

    pip install sae-lens eai-sparsify

Compared are SAELens' "standard" autoencoder with our L1, its BatchTopK with ours, and sparsify's TopK with ours: rules
that keep the same features of the same rows. Everything else is as each trainer does it by default. SAELens clips, and
takes Adam; sparsify does not clip, takes the sign of momentum without a schedule, and keeps decoder norms at 1.

SAELens computes in float32 by default, and its documentation advises autocast for speed: both are measured. sparsify
autocasts by itself on GPUs, and never on a CPU.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import stand_ins
import torch
from torch import Tensor, nn

STEPS = 100_000
"""Length of the run of which a step is taken."""


def steps(rule: str, x: Tensor, features: int, k: int) -> dict[str, Callable[[], object]]:
    """The steps on rows x [B, D] that are comparable under a rule of ours, by the peer's name."""
    package = "eai-sparsify" if rule == "topk" else "sae-lens"
    try:
        version(package)
        stand_ins.install()
        if rule == "topk":
            return {"sparsify": sparsify(x, features, k)}
        chosen = None if rule == "l1" else k
        return {
            "sae_lens": sae_lens(x, features, chosen, autocast=False),
            "sae_lens_autocast": sae_lens(x, features, chosen, autocast=True),
        }
    except ImportError as error:  # so is PackageNotFoundError
        print(f"{package} is left out: {error}", file=sys.stderr)
        return {}


def sae_lens(x: Tensor, features: int, k: int | None, *, autocast: bool) -> Callable[[], object]:
    """SAELens' trainer on rows x [B, D]; L1 without k, else BatchTopK."""
    from sae_lens import saes
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sizes = {"d_in": x.shape[1], "d_sae": features, "device": str(x.device)}
    if k is None:
        sae = saes.StandardTrainingSAE(saes.StandardTrainingSAEConfig(**sizes))
    else:
        sae = saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(k=k, **sizes))
    config = SAETrainerConfig(
        total_training_samples=STEPS * len(x),
        train_batch_size_samples=len(x),
        lr_end=3e-5,  # what its runner fills in; the learning rate is constant
        device=str(x.device),
        autocast=autocast,
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    return lambda: trainer.step(x)


def sparsify(x: Tensor, features: int, k: int) -> Callable[[], object]:
    """sparsify's trainer, TopK, on rows x [B, D]. Its step is no function: it is a fit to a text of one batch."""
    with _quiet():
        from sparsify.config import SparseCoderConfig, TrainConfig
        from sparsify.trainer import Trainer

        config = TrainConfig(SparseCoderConfig(num_latents=features, k=k), batch_size=1, log_to_wandb=False)
        trainer = Trainer(config, _Text(len(x)), _Model(x))
    trainer.save = lambda: None  # it saves after every fit

    def step() -> None:
        with _quiet():
            trainer.fit()

    return step


class _Text:
    """A data set that always has one more block of tokens."""

    def __init__(self, tokens: int) -> None:
        self.block = {"input_ids": torch.zeros(tokens, dtype=torch.long)}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> dict[str, Tensor]:
        return self.block

    def select(self, _: Any) -> _Text:
        return self


class _Model(nn.Module):
    """A language model whose one layer puts out the rows, whatever it reads."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])
        self.config, self.dummy_inputs = SimpleNamespace(num_hidden_layers=1), {}
        self.x, self.device = x[None], x.device

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.layers[0](self.x)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing printed, and the precision of float32 products put back: a fit changes it for everybody."""
    before = torch.get_float32_matmul_precision()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
    torch.set_float32_matmul_precision(before)
