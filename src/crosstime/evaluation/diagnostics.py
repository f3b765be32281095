"""Diagnostics of a crosscoder's decoder: a label per feature, independent of any task, checked by latent scaling.

Under a sparsity penalty a decoder vector can vanish at a checkpoint whose activations still hold the feature (Minder,
Dumas, Juang, Chughtai, Nanda 2025, arXiv 2504.02922). Latent scaling finds these artefacts; docs/method.md derives it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from crosstime.attribution.activations import encode, heldout_blocks, in_batches, residuals
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus

LABELS = ("early", "persistent", "late", "rotated", "artefact", "unclear")
"""Decoder labels. They share no word with `relative.LIFECYCLES`, which classify features by effect."""

PRESENT = 0.2
"""Relative norm from which a decoder counts as present at a checkpoint (arXiv 2504.02922)."""
SHRUNK = 0.2
"""nu_error from which an absent decoder is refuted: complete shrinkage (arXiv 2504.02922)."""
DECOUPLED = 0.5
"""nu_reconstruction from which an absent decoder is refuted: decoupling (arXiv 2504.02922)."""
ROTATED = 0.5
"""Cosine of the decoder vectors at the first and the last checkpoint below which a feature is rotated: 60 degrees."""
COMPLEMENT = 0.9
"""Cosine of reference vectors above which two features of different checkpoints are one concept (arXiv 2504.02922)."""
MAX_MISFIT = 4.0
"""Largest factor between a decoder vector and the least-squares one, at the reference, for a label to be given."""
MIN_FIRED = 10
"""Tokens on which a feature must fire for a label to be given."""
MIN_NORM = 0.01
"""Relative norm below which a decoder vector has no meaningful direction."""
MATCH_CHUNK = 2048
"""Features compared with all others at a time."""

_PER_CHECKPOINT = ("relative_norm", "nu_error", "nu_reconstruction")


@dataclass(frozen=True)
class DiagnosticsConfig:
    """[diagnostics]: checking each feature's decoder against held-out text."""

    blocks: int = 512
    """Held-out blocks to read, from the beginning of the text."""
    batch_blocks: int = field(default=16, metadata=ASIDE)
    """Blocks per forward pass."""

    def __post_init__(self) -> None:
        check_at_least(1, blocks=self.blocks, batch_blocks=self.batch_blocks)


@dataclass(frozen=True)
class Diagnostics:
    """Labels of F features over M checkpoints, with the measurements behind them (arXiv 2504.02922; docs/method.md).

    A feature's reference is the checkpoint at which its decoder norm, in scaled units, is largest.

    Example:
        >>> import numpy as np
        >>> diagnostics = Diagnostics(
        ...     checkpoints=["step64", "step3786"], n_tokens=1000, label=["late"], reference=np.array([1]),
        ...     complement=np.array([-1]), fired=np.array([50]), fit=np.array([1.1]),
        ...     relative_norm=np.array([[0.1], [1.0]]), nu_error=np.array([[0.05], [1.0]]),
        ...     nu_reconstruction=np.array([[0.1], [1.0]]), cosine=np.full((2, 2, 1), np.nan),
        ... )
        >>> diagnostics.counts["late"]
        1
        >>> diagnostics.table.select(["feature", "checkpoint", "label", "relative_norm"]).to_pylist()[0]["checkpoint"]
        'step64'
    """

    checkpoints: list[str]
    n_tokens: int
    """Encoded held-out tokens read."""
    label: list[str]
    """[F] one of LABELS."""
    reference: np.ndarray
    """[F] index of each feature's reference checkpoint."""
    complement: np.ndarray
    """[F] the feature that represents the same concept at the other checkpoints; -1 if none."""
    fired: np.ndarray
    """[F] tokens on which each feature fires."""
    fit: np.ndarray
    """[F] beta_error at the reference: 1 for the least-squares decoder vector, above 1 for a shrunken one."""
    relative_norm: np.ndarray
    """[M, F] decoder norm divided by that at the reference."""
    nu_error: np.ndarray
    """[M, F] beta_error divided by that at the reference. High where the decoder is absent: complete shrinkage."""
    nu_reconstruction: np.ndarray
    """[M, F] beta_reconstruction divided by that at the reference. High where the decoder is absent: decoupling."""
    cosine: np.ndarray
    """[M, M, F] of a feature's decoder vectors; NaN if one has less than 1 % of the largest norm."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of features by label."""
        return {label: self.label.count(label) for label in LABELS}

    @property
    def table(self) -> pa.Table:
        """One row per feature and checkpoint.

        Columns: feature, checkpoint, label, reference (a checkpoint's name), complement (null if none), fired and fit,
        which repeat for each checkpoint; relative_norm, nu_error, nu_reconstruction.
        """
        n_checkpoints, n_features = self.relative_norm.shape
        row = np.repeat(np.arange(n_features, dtype=np.int32), n_checkpoints)
        return pa.table(
            {
                "feature": row,
                "checkpoint": self.checkpoints * n_features,
                "label": pa.array(self.label, pa.string()).take(row),
                "reference": pa.array(self.checkpoints, pa.string()).take(self.reference[row]),
                "complement": pa.array(self.complement[row], pa.int32(), mask=self.complement[row] < 0),
                "fired": self.fired[row],
                "fit": self.fit[row].astype(np.float32),
                **{name: getattr(self, name).T.reshape(-1).astype(np.float32) for name in _PER_CHECKPOINT},
            }
        )

    def save(self, folder: Path) -> None:
        """Write diagnostics.parquet, similarity.safetensors and summary.json into an existing folder."""
        pq.write_table(self.table, folder / "diagnostics.parquet")
        save_file({"cosine": np.ascontiguousarray(self.cosine)}, folder / "similarity.safetensors")
        summary = {"checkpoints": self.checkpoints, "n_tokens": self.n_tokens, "labels": self.counts}
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Diagnostics:
        """Read what `save` wrote."""
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        names = summary["checkpoints"]
        table = pq.read_table(folder / "diagnostics.parquet")
        features = table.take(np.arange(0, len(table), len(names)))
        return cls(
            checkpoints=names,
            n_tokens=summary["n_tokens"],
            label=features["label"].to_pylist(),
            reference=np.array([names.index(name) for name in features["reference"].to_pylist()]),
            complement=features["complement"].fill_null(-1).to_numpy(),
            fired=features["fired"].to_numpy(),
            fit=features["fit"].to_numpy(),
            **{name: table[name].to_numpy().reshape(-1, len(names)).T.copy() for name in _PER_CHECKPOINT},
            **load_file(folder / "similarity.safetensors"),
        )


def diagnose(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    config: DiagnosticsConfig = DiagnosticsConfig(),
) -> Diagnostics:
    """Label each feature by its decoder, and check the decoder against held-out text.

    Args:
        crosscoder: F features over M checkpoints.
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
        >>> ct.diagnose(untrained, models, heldout, ct.DiagnosticsConfig(blocks=4)).counts["unclear"]
        64
    """
    scaling = latent_scaling(crosscoder, models, heldout, config)
    decoder = scaled_decoder(crosscoder).detach()
    norms = decoder.norm(dim=-1)
    reference = norms.argmax(1)
    relative_norm = _ratio(norms, norms.amax(1, keepdim=True)).T.cpu().numpy()
    cosine = _cosine(decoder, relative_norm)
    index = reference.cpu().numpy()
    fit, reconstruction = (np.take_along_axis(beta, index[None], 0) for beta in (scaling.error, scaling.reconstruction))
    nu_error, nu_reconstruction = _nu(scaling.error, fit), _nu(scaling.reconstruction, reconstruction)
    reliable = (scaling.fired >= MIN_FIRED) & (fit[0] >= 1 / MAX_MISFIT) & (fit[0] <= MAX_MISFIT)
    direction = decoder[torch.arange(len(decoder), device=decoder.device), reference]
    return Diagnostics(
        checkpoints=list(crosscoder.config.checkpoints),
        n_tokens=scaling.n_tokens,
        label=label(relative_norm, nu_error, nu_reconstruction, cosine[0, -1], reliable),
        reference=index,
        complement=complements(direction, (relative_norm >= PRESENT) & reliable),
        fired=scaling.fired,
        fit=fit[0],
        relative_norm=relative_norm,
        nu_error=nu_error,
        nu_reconstruction=nu_reconstruction,
        cosine=cosine,
    )


def label(
    relative_norm: Float[np.ndarray, "M F"],
    nu_error: Float[np.ndarray, "M F"],
    nu_reconstruction: Float[np.ndarray, "M F"],
    first_to_last: Float[np.ndarray, " F"],
    reliable: Bool[np.ndarray, " F"],
) -> list[str]:
    """Label each feature by the first rule that applies.

    "unclear": not `reliable`. "artefact": absent by its decoder at a checkpoint where latent scaling finds it. "early":
    absent at the last checkpoint, whether or not present at the first. "late": absent at the first. "rotated": present
    at both, in directions whose cosine, `first_to_last`, is below ROTATED. "persistent": the rest.
    """
    present = relative_norm >= PRESENT
    refuted = ~present & ((nu_error >= SHRUNK) | (nu_reconstruction >= DECOUPLED))
    conditions = [~reliable, refuted.any(0), ~present[-1], ~present[0], first_to_last < ROTATED]
    return np.select(conditions, ["unclear", "artefact", "early", "late", "rotated"], "persistent").tolist()


def complements(direction: Float[Tensor, "F D"], present: Bool[np.ndarray, "M F"]) -> Int[np.ndarray, " F"]:
    """Return for each feature the most similar one that is present only where it is absent; -1 if below COMPLEMENT.

    Args:
        direction: Decoder vectors at the features' references.
        present: Where each feature is present; a feature that is present nowhere has no complement.
    """
    result = np.full(len(direction), -1)
    candidates = np.flatnonzero(present.any(0) & ~present.all(0))
    unit = normalize(direction[candidates], dim=1)
    presence = torch.from_numpy(present[:, candidates].T).to(unit)
    for start in range(0, len(candidates), MATCH_CHUNK):  # all pairs at once may not fit a device
        chunk = slice(start, start + MATCH_CHUNK)
        cosine = unit[chunk] @ unit.T
        cosine[presence[chunk] @ presence.T > 0] = -1
        best, match = (values.cpu().numpy() for values in cosine.max(1))
        result[candidates[chunk]] = np.where(best > COMPLEMENT, candidates[match], -1)
    return result


def _cosine(decoder: Float[Tensor, "F M D"], relative_norm: Float[np.ndarray, "M F"]) -> Float[np.ndarray, "M M F"]:
    unit = normalize(decoder, dim=-1)
    cosine = np.ascontiguousarray((unit @ unit.mT).permute(1, 2, 0).cpu().numpy())
    vague = ~(relative_norm >= MIN_NORM)  # NaN if a feature has no decoder at all
    cosine[vague[:, None] | vague[None]] = np.nan
    return cosine


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, torch.nan)


def _nu(beta: Float[np.ndarray, "M F"], reference: Float[np.ndarray, "1 F"]) -> Float[np.ndarray, "M F"]:
    """Ratio to the reference; NaN if the target doesn't hold the feature even there."""
    return np.divide(beta, reference, out=np.full_like(beta, np.nan), where=reference > 0)


@dataclass(frozen=True)
class Scaling:
    """How much of each feature two targets hold at each checkpoint, relative to what it writes at its reference.

    With g the activation of feature j at its reference and d its decoder vector there, in scaled units, beta is the
    least-squares factor of g d in a target y:

        beta = argmin sum_t ||y(t) - beta g(t) d||^2 = sum_t g(t) <y(t), d> / (||d||^2 sum_t g(t)^2)

    NaN if a feature never fires, or writes nothing.
    """

    n_tokens: int
    """Encoded tokens read."""
    fired: np.ndarray
    """[F] tokens on which each feature fires at its reference."""
    error: np.ndarray
    """[M, F] beta of y = x_m - xhat_m + f_j d_j,m: the activation minus the reconstruction by all other features."""
    reconstruction: np.ndarray
    """[M, F] beta of y = xhat_m - b_m: the reconstruction by all features."""


@torch.inference_mode()
def latent_scaling(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    config: DiagnosticsConfig = DiagnosticsConfig(),
) -> Scaling:
    """Scale every feature to every checkpoint, in one pass over a text; arguments as for `diagnose`."""
    blocks = heldout_blocks(
        crosscoder,
        models,
        heldout,
        max_blocks=config.blocks,
        batch_blocks=config.batch_blocks,
        wanted="encoded",
    )
    first = crosscoder.config.positions.first_encoded
    sums = _Sums(crosscoder)

    def measure(tokens: Tensor) -> _Batch:
        x = residuals(crosscoder, models, tokens)
        return sums.measure(x[:, first:].flatten(0, 1), encode(crosscoder, x)[:, first:].flatten(0, 1))

    for batch in in_batches("diagnose", blocks, config.batch_blocks, measure):
        sums.add(batch)
    return sums.scaling()


def scaled_decoder(crosscoder: Crosscoder) -> Float[Tensor, "F M D"]:
    """The decoder in scaled units, in which checkpoints are comparable."""
    return crosscoder.W_dec * crosscoder.norm_scale[:, None]


class _Batch(NamedTuple):
    """Addends of a batch to the sums."""

    n_tokens: int
    fired: Int[Tensor, " F"]
    squares: Float[Tensor, " F"]
    """sum g^2"""
    error: Float[Tensor, "M F"]
    """sum g <y, d> for the first target."""
    reconstruction: Float[Tensor, "M F"]
    """sum g <y, d> for the second target."""


class _Sums:
    """Sums over tokens, in float64 on the CPU: not every device has it."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self.crosscoder = crosscoder
        self.units = crosscoder.scale * crosscoder.norm_scale  # from raw to scaled
        decoder = scaled_decoder(crosscoder)
        self.reference: Int[Tensor, " F"] = decoder.norm(dim=-1).argmax(1)
        rows = torch.arange(len(decoder), device=decoder.device)
        self.direction: Float[Tensor, "F D"] = decoder[rows, self.reference]
        self.own: Float[Tensor, "F M"] = torch.einsum("fmd,fd->fm", decoder, self.direction).cpu()
        self.n_tokens = 0
        self.fired = torch.zeros(len(decoder), dtype=torch.int64)
        self.squares = torch.zeros(len(decoder), dtype=torch.float64)
        self.error, self.reconstruction = torch.zeros(2, decoder.shape[1], len(decoder), dtype=torch.float64)

    def measure(self, x: Float[Tensor, "N M D"], f: Float[Tensor, "N F"]) -> _Batch:
        """Measure a batch of raw activations and their features.

        <y, d> is taken for all features in one product, so no feature's own target is ever formed.
        """
        xhat, bias = self.crosscoder.decode(f), self.crosscoder.raw_bias()
        g = f
        for m in range(x.shape[1]):  # one checkpoint's features at a time: with JumpReLU they are many
            g = torch.where(self.reference == m, self.crosscoder.gate(f, m), g)
        error, reconstruction = [], []
        for m in range(x.shape[1]):
            residual = (x[:, m] - xhat[:, m]) * self.units[m] @ self.direction.T
            error.append(_dot(g, residual) + _dot(g, self.crosscoder.gate(f, m)) * self.own[:, m])
            written = (xhat[:, m] - bias[m]) * self.units[m] @ self.direction.T
            reconstruction.append(_dot(g, written))
        return _Batch(len(x), (g > 0).sum(0).cpu(), _dot(g, g), torch.stack(error), torch.stack(reconstruction))

    def add(self, batch: _Batch) -> None:
        self.n_tokens += batch.n_tokens
        self.fired += batch.fired
        self.squares += batch.squares
        self.error += batch.error
        self.reconstruction += batch.reconstruction

    def scaling(self) -> Scaling:
        size = self.direction.square().sum(1).cpu() * self.squares
        error, reconstruction = (
            torch.where(size > 0, sums / size, torch.nan).numpy() for sums in (self.error, self.reconstruction)
        )
        return Scaling(self.n_tokens, self.fired.numpy(), error, reconstruction)


def _dot(a: Float[Tensor, "N F"], b: Float[Tensor, "N F"]) -> Float[Tensor, " F"]:
    return (a * b).sum(0).cpu().double()
