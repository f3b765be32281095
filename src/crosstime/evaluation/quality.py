"""The quality of a crosscoder's reconstructions on held-out text, and the cross-entropy of spliced models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.base.units import jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus

MAX_LOGITS = 2**25
"""Logits held in memory at a time (128 MiB in float32), but at least those of one sequence."""

_PER_CHECKPOINT = ("explained_variance", "ce_clean", "ce_spliced", "ce_zero")


@dataclass(frozen=True)
class EvaluationConfig:
    """[evaluation]: measuring a crosscoder on held-out text."""

    blocks: int = 512
    """Held-out blocks to read, from the beginning of the text."""
    batch_blocks: int = field(default=16, metadata=ASIDE)
    """Blocks per forward pass."""

    def __post_init__(self) -> None:
        check_at_least(1, blocks=self.blocks, batch_blocks=self.batch_blocks)


@dataclass(frozen=True)
class Quality:
    """Quality of a crosscoder on held-out text (arXiv 2509.05291, evaluation of the crosscoders).

    Arrays [M] follow the order of `checkpoints`. Cross-entropies are in nats per token, over the predictions made at
    encoded positions.

    Example:
        >>> import numpy as np
        >>> quality = Quality(
        ...     checkpoints=["step64", "step3786"], n_tokens=1000, l0=1.5, dead=1, frequency=np.array([0.0, 1.0, 0.5]),
        ...     explained_variance=np.array([0.9, 0.8]), ce_clean=np.array([5.0, 3.0]),
        ...     ce_spliced=np.array([5.1, 3.5]), ce_zero=np.array([9.0, 8.0]),
        ... )
        >>> quality.delta_ce.round(2), quality.loss_recovered.round(3)
        (array([0.1, 0.5]), array([0.975, 0.9  ]))
    """

    checkpoints: list[str]
    n_tokens: int
    """Encoded tokens read; `dead`, `l0` and `frequency` are measured on them."""
    l0: float
    """Mean number of active features per encoded token."""
    dead: int
    """Number of features that never fire."""
    frequency: np.ndarray
    """[F] share of the tokens on which each feature fires."""
    explained_variance: np.ndarray
    """[M] 1 - sum ||x - xhat||^2 / sum ||x - mean||^2: a ratio of sums, so no token near the mean dominates."""
    ce_clean: np.ndarray
    """[M] cross-entropy of the unchanged model."""
    ce_spliced: np.ndarray
    """[M] cross-entropy with the activations at encoded positions replaced by their reconstructions."""
    ce_zero: np.ndarray
    """[M] cross-entropy with the activations at encoded positions replaced by zeros."""

    @property
    def dead_fraction(self) -> float:
        """Share of the features that never fire."""
        return self.dead / len(self.frequency)

    @property
    def delta_ce(self) -> np.ndarray:
        """[M] increase in cross-entropy caused by the reconstruction, in nats per token."""
        return self.ce_spliced - self.ce_clean

    @property
    def loss_recovered(self) -> np.ndarray:
        """[M] 1 - the reconstruction's increase in cross-entropy over zero ablation's; NaN if the latter is 0."""
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


@torch.inference_mode()
def evaluate(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    config: EvaluationConfig = EvaluationConfig(),
) -> Quality:
    """Measure a crosscoder on held-out text, without changing the crosscoder, the models or any random state.

    Args:
        crosscoder: The crosscoder.
        models: Its checkpoints, in its order.
        heldout: Text that it wasn't trained on.
        config: Settings.

    Raises:
        InputError: The models aren't the crosscoder's, the text has no block, or an activation isn't finite.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> heldout = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=32, limit_tokens=500)
        >>> models = [suite.load(name, layer=1) for name in suite.names]
        >>> untrained = ct.Crosscoder(ct.CrosscoderConfig(tuple(suite.names), layer=1, width=suite.width, features=64))
        >>> quality = ct.evaluate(untrained, models, heldout, ct.EvaluationConfig(blocks=4))
        >>> quality.n_tokens, quality.dead, quality.loss_recovered.tolist()
        (124, 64, [0.0, 0.0])
    """
    blocks = heldout_blocks(
        crosscoder,
        models,
        heldout,
        max_blocks=config.blocks,
        batch_blocks=config.batch_blocks,
        wanted="predicted",
    )
    first = crosscoder.config.positions.first_encoded
    fired = np.zeros(crosscoder.config.features, dtype=np.int64)
    errors = np.zeros(len(models))
    moments = _Moments(0, np.zeros(()), np.zeros(()))
    nats = np.zeros((3, len(models)))
    for batch in in_batches("evaluate", blocks, config.batch_blocks, partial(_measure, crosscoder, models)):
        fired += batch.fired
        errors += batch.errors
        moments = moments.joined(batch.moments)
        nats += batch.nats
    n_blocks, context = blocks.shape
    n_tokens = n_blocks * (context - first)
    clean, spliced, zero = nats / (n_blocks * (context - first - 1))
    total = moments.squares
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
    """Measurements on a batch of blocks."""

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
    encoded = x[:, first:]
    nats = np.zeros((3, len(models)))
    for m, model in enumerate(models):
        for kind, inserted in enumerate((encoded[:, :, m], xhat[:, :, m], torch.zeros_like(xhat[:, :, m]))):
            spliced = torch.cat([x[:, :first, m], inserted], dim=1)
            nats[kind, m] = cross_entropy(model, spliced, tokens, first).double().sum().item()
    return _Batch(
        fired=(f > 0).sum(dim=(0, 1)).cpu().numpy(),
        errors=(encoded - xhat).square().sum(dim=(0, 1, 3)).cpu().numpy(),
        moments=_moments(encoded.flatten(0, 1)),
        nats=nats,
    )


class _Moments(NamedTuple):
    """Mean and spread of n activations.

    Batches are joined as in Chan, Golub, LeVeque 1979: unlike sum ||x||^2 - n ||mean||^2, that loses no precision if
    the mean is large compared with the spread, and it needs float64 only on the CPU, since not every device has it.
    """

    n: int
    mean: np.ndarray
    """[M, D]"""
    squares: np.ndarray
    """[M] sum ||x - mean||^2"""

    def joined(self, batch: _Moments) -> _Moments:
        shift, n = batch.mean - self.mean, self.n + batch.n
        squares = self.squares + batch.squares + (shift**2).sum(axis=1) * (self.n * batch.n / n)
        return _Moments(n, self.mean + shift * (batch.n / n), squares)


def _moments(x: Float[Tensor, "N M D"]) -> _Moments:
    mean = x.mean(dim=0)
    squares = (x - mean).square().sum(dim=(0, 2)).cpu().double().numpy()
    return _Moments(len(x), mean.cpu().double().numpy(), squares)


def logit_chunks(model: SplitLM, residual: Float[Tensor, "B S D"]) -> Iterator[tuple[slice, Float[Tensor, "rows S V"]]]:
    """Yield the logits of a batch a few rows at a time: the slice of rows, and their logits in the model's dtype.

    Args:
        model: A checkpoint with its upper blocks.
        residual: The output of its `lower`, or a replacement for it; on any device.
    """
    size = max(1, MAX_LOGITS // (residual.shape[1] * model.vocab_size))
    for start in range(0, len(residual), size):
        rows = slice(start, start + size)
        yield rows, model.upper(residual[rows].to(model.device))


def cross_entropy(
    model: SplitLM, residual: Float[Tensor, "B S D"], tokens: Int[Tensor, "B S"], first: int
) -> Float[Tensor, "B n"]:
    """Return the nats of each token given those before it, for predictions at positions `first` to S-2; on the CPU.

    Args:
        model: A checkpoint with its upper blocks.
        residual: As for `logit_chunks`.
        tokens: The text.
        first: First position whose prediction counts; n = S - 1 - first.
    """
    nats = []
    for rows, logits in logit_chunks(model, residual):
        predicted = logits[:, first:-1].float()
        targets = tokens[rows, first + 1 :].to(predicted.device)
        nats.append(torch.nn.functional.cross_entropy(predicted.flatten(0, 1), targets.flatten(), reduction="none"))
    return torch.cat(nats).cpu().reshape(len(tokens), -1)
