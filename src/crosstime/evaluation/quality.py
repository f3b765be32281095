"""How well a crosscoder stands for its checkpoints, on text that it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.attribution.activations import encode, heldout_blocks, in_batches, residuals
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.cross_entropy import cross_entropy
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus


@dataclass(frozen=True)
class Quality:
    """Quality of a crosscoder on held-out text (arXiv 2509.05291, where it evaluates its crosscoders).

    Per-checkpoint values (length M) stand in the order of `checkpoints`; cross-entropies are in nats per token,
    over the predictions made at encoded positions.
    """

    checkpoints: list[str]
    n_tokens: int
    """Encoded tokens looked at; `dead`, `l0` and `frequency` are over these."""
    l0: float
    """Mean number of features above zero per encoded token."""
    dead: int
    """Features that fired on none of the tokens."""
    frequency: np.ndarray
    """[F] share of the tokens on which each feature fires."""
    explained_variance: np.ndarray
    """[M] 1 - sum ||x - xhat||^2 / sum ||x - mean||^2: a ratio of sums, so no token near the mean dominates."""
    ce_clean: np.ndarray
    """[M] cross-entropy of the model as it is."""
    ce_spliced: np.ndarray
    """[M] with the reconstruction in place of the activation at encoded positions."""
    ce_zero: np.ndarray
    """[M] with zeros in place of the activation at encoded positions."""

    @property
    def dead_fraction(self) -> float:
        """Share of the features that fired on none of the tokens."""
        return self.dead / len(self.frequency)

    @property
    def delta_ce(self) -> np.ndarray:
        """[M] nats per token that the reconstruction costs."""
        return self.ce_spliced - self.ce_clean

    @property
    def loss_recovered(self) -> np.ndarray:
        """[M] share of the cost of zero ablation that the reconstruction saves; NaN where zeros cost nothing."""
        cost = self.ce_zero - self.ce_clean
        return 1 - np.divide(self.delta_ce, cost, out=np.full_like(cost, np.nan), where=cost != 0)

    def save(self, folder: Path) -> None:
        """Write metrics.json and frequency.parquet into an existing folder."""
        metrics = {
            "checkpoints": self.checkpoints,
            "n_tokens": self.n_tokens,
            "l0": self.l0,
            "dead": self.dead,
            "dead_fraction": self.dead_fraction,
            **{name: getattr(self, name).tolist() for name in (*_PER_CHECKPOINT, "delta_ce", "loss_recovered")},
        }
        (folder / "metrics.json").write_text(json.dumps(jsonable(metrics), indent=2, allow_nan=False), encoding="utf-8")
        features = np.arange(len(self.frequency), dtype=np.int32)
        pq.write_table(pa.table({"feature": features, "frequency": self.frequency}), folder / "frequency.parquet")

    @classmethod
    def load(cls, folder: Path) -> Quality:
        """Read what `save` wrote."""
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return cls(
            checkpoints=metrics["checkpoints"],
            n_tokens=metrics["n_tokens"],
            l0=metrics["l0"],
            dead=metrics["dead"],
            frequency=pq.read_table(folder / "frequency.parquet")["frequency"].to_numpy(),
            # null, which stands for NaN in the file, becomes NaN again
            **{name: np.array(metrics[name], dtype=np.float64) for name in _PER_CHECKPOINT},
        )


_PER_CHECKPOINT = ("explained_variance", "ce_clean", "ce_spliced", "ce_zero")


@torch.inference_mode()
def evaluate(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    *,
    max_blocks: int = 256,
    batch_blocks: int = 16,
) -> Quality:
    """Measure a crosscoder on held-out text. Changes nothing: neither the crosscoder, nor the models, nor any seed.

    Args:
        crosscoder: the crosscoder.
        models: its checkpoints, in its order.
        heldout: text that it was not trained on.
        max_blocks: look at the first so many blocks of the text at most.
        batch_blocks: blocks run through the models and encoded at a time; the numbers do not depend on it.

    Raises:
        InputError: the models are not the crosscoder's, the text holds no block, or an activation is not finite.
    """
    blocks = heldout_blocks(
        crosscoder, models, heldout, max_blocks=max_blocks, batch_blocks=batch_blocks, wanted="predicted"
    )
    first = crosscoder.config.positions.first_encoded
    fired = np.zeros(crosscoder.config.features, dtype=np.int64)
    errors = np.zeros(len(models))
    spread = _Spread()
    nats = np.zeros((3, len(models)))
    for batch in in_batches("evaluate", blocks, batch_blocks, partial(_measure, crosscoder, models)):
        fired += batch.fired
        errors += batch.errors
        spread.add(batch.moments)
        nats += batch.nats
    n_blocks, context = blocks.shape
    n_tokens = n_blocks * (context - first)
    clean, spliced, zero = nats / (n_blocks * (context - first - 1))
    total = spread.squares
    return Quality(
        checkpoints=list(crosscoder.config.checkpoints),
        n_tokens=n_tokens,
        l0=float(fired.sum() / n_tokens),
        dead=int((fired == 0).sum()),
        frequency=fired / n_tokens,
        explained_variance=1 - np.divide(errors, total, out=np.full_like(total, np.nan), where=total > 0),
        ce_clean=clean,
        ce_spliced=spliced,
        ce_zero=zero,
    )


class _Batch(NamedTuple):
    """What a batch of blocks adds."""

    fired: np.ndarray
    """[F] tokens on which each feature fires."""
    errors: np.ndarray
    """[M] squared error of the reconstruction."""
    moments: _Moments
    nats: np.ndarray
    """[3, M] cross-entropy, summed over predictions: clean, spliced, zero."""


def _measure(crosscoder: Crosscoder, models: Sequence[SplitLM], tokens: Int[Tensor, "B S"]) -> _Batch:
    first = crosscoder.config.positions.first_encoded
    x = residuals(crosscoder, models, tokens)
    f = encode(crosscoder, x)[:, first:]
    xhat = crosscoder.decode(f)
    rows = x[:, first:]
    nats = np.zeros((3, len(models)))
    for m, model in enumerate(models):
        for kind, encoded in enumerate((rows[:, :, m], xhat[:, :, m], torch.zeros_like(xhat[:, :, m]))):
            spliced = torch.cat([x[:, :first, m], encoded], dim=1)
            nats[kind, m] = cross_entropy(model, spliced, tokens, first).double().sum().item()
    return _Batch(
        fired=(f > 0).sum(dim=(0, 1)).cpu().numpy(),
        errors=(rows - xhat).square().sum(dim=(0, 1, 3)).cpu().numpy(),
        moments=_moments(rows.flatten(0, 1)),
        nats=nats,
    )


class _Moments(NamedTuple):
    """Of N rows."""

    n: int
    mean: np.ndarray
    """[M, D]"""
    squares: np.ndarray
    """[M] sum ||x - mean||^2"""


def _moments(rows: Float[Tensor, "N M D"]) -> _Moments:
    mean = rows.mean(dim=0)
    squares = (rows - mean).square().sum(dim=(0, 2)).cpu().double().numpy()
    return _Moments(len(rows), mean.cpu().double().numpy(), squares)


class _Spread:
    """sum ||x - mean||^2 per checkpoint, in one pass: batches are joined as in Chan, Golub, LeVeque 1979.

    Unlike sum ||x||^2 - n ||mean||^2 this loses nothing where the mean is large beside the spread, and it needs
    float64 only for the sums on the CPU, so that it works on devices without float64.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: np.ndarray = np.zeros(())
        self.squares: np.ndarray = np.zeros(())

    def add(self, batch: _Moments) -> None:
        shift = batch.mean - self.mean
        joined = self.n + batch.n
        self.squares = self.squares + batch.squares + (shift**2).sum(axis=1) * (self.n * batch.n / joined)
        self.mean = self.mean + shift * (batch.n / joined)
        self.n = joined
