"""What a feature's decoder says of its life, held against the data: a label per feature, independent of any task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.latent_scaling import Scaling, latent_scaling, scaled_decoder
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus

LABELS = ("early", "persistent", "late", "rotated", "artefact", "unclear")
"""Decoder labels. They share no word with `relative.LIFECYCLES`, which classify features by effect."""

PRESENT = 0.2
"""A decoder claims its feature at checkpoints with at least this share of its largest norm (arXiv 2504.02922)."""
SHRUNK = 0.2
"""nu_error from which a feature is there although its decoder says that it is not: complete shrinkage (the same)."""
DECOUPLED = 0.5
"""nu_reconstruction from which other features write there what this one stands for: decoupling (the same)."""
ROTATED = 0.5
"""Cosine of the decoder vectors at the first and the last checkpoint below which a feature has turned: 60 degrees."""
COMPLEMENT = 0.9
"""Cosine of reference vectors above which two features of different checkpoints are one concept (the same)."""
FITTING = 4.0
"""A decoder is off by no more than this factor, at its own reference, from the least-squares one."""
ENOUGH = 10
"""Tokens on which a feature must fire for its ratios to mean anything."""
NO_DIRECTION = 0.01
"""Share of the largest norm below which a decoder vector has no direction to speak of."""
FEATURES_AT_ONCE = 2048


@dataclass(frozen=True)
class Diagnostics:
    """What decoder and data say of every feature (arXiv 2504.02922, for M checkpoints; docs/method.md).

    The reference of a feature is the checkpoint of its largest decoder norm, in scaled units.
    """

    checkpoints: list[str]
    n_tokens: int
    """Encoded held-out tokens looked at."""
    label: list[str]
    """[F] one of LABELS."""
    reference: np.ndarray
    """[F] number of each feature's reference."""
    complement: np.ndarray
    """[F] the feature that its concept was split off to, at other checkpoints; -1 where there is none."""
    fired: np.ndarray
    """[F] tokens on which each feature fires."""
    fit: np.ndarray
    """[F] beta_error at the reference: 1 where the decoder is the least-squares one, above 1 where it is shrunk."""
    strength: np.ndarray
    """[F, M] decoder norm over that at the reference: what the decoder says."""
    nu_error: np.ndarray
    """[F, M] beta_error over that at the reference: what the data say. High where strength is 0: complete shrinkage."""
    nu_reconstruction: np.ndarray
    """[F, M] beta_reconstruction over that at the reference. High where strength is 0: decoupling."""
    cosine: np.ndarray
    """[F, M, M] of a feature's decoder vectors; NaN where one has less than 1 % of the largest norm."""

    @property
    def counts(self) -> dict[str, int]:
        """How many features have each label."""
        return {label: self.label.count(label) for label in LABELS}

    @property
    def table(self) -> pa.Table:
        """One row per feature: feature, label, reference (a checkpoint's name), complement (null where there is none),
        fired, fit, and for each checkpoint NAME strength_NAME, nu_error_NAME and nu_reconstruction_NAME.
        """
        columns: dict[str, object] = {
            "feature": np.arange(len(self.label), dtype=np.int32),
            "label": pa.array(self.label, pa.string()),
            "reference": pa.array([self.checkpoints[m] for m in self.reference], pa.string()),
            "complement": pa.array(self.complement, pa.int32(), mask=self.complement < 0),
            "fired": self.fired,
            "fit": self.fit.astype(np.float32),
        }
        for name in _PER_CHECKPOINT:
            values = getattr(self, name).astype(np.float32)
            columns |= {f"{name}_{checkpoint}": values[:, m] for m, checkpoint in enumerate(self.checkpoints)}
        return pa.table(columns)

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
        checkpoints = summary["checkpoints"]
        table = pq.read_table(folder / "diagnostics.parquet")
        return cls(
            checkpoints=checkpoints,
            n_tokens=summary["n_tokens"],
            label=table["label"].to_pylist(),
            reference=np.array([checkpoints.index(name) for name in table["reference"].to_pylist()]),
            complement=table["complement"].fill_null(-1).to_numpy(),
            fired=table["fired"].to_numpy(),
            fit=table["fit"].to_numpy(),
            **{name: np.stack([table[f"{name}_{c}"].to_numpy() for c in checkpoints], 1) for name in _PER_CHECKPOINT},
            **load_file(folder / "similarity.safetensors"),
        )


_PER_CHECKPOINT = ("strength", "nu_error", "nu_reconstruction")


def diagnose(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    heldout: Corpus,
    *,
    max_blocks: int = 256,
    batch_blocks: int = 16,
) -> Diagnostics:
    """Say of every feature what became of it, and whether its decoder can be believed.

    Args:
        crosscoder: F features over M checkpoints.
        models: its checkpoints, in its order.
        heldout: text that it was not trained on.
        max_blocks: look at the first so many blocks of the text at most.
        batch_blocks: blocks run through the models and encoded at a time; the numbers do not depend on it.

    Raises:
        InputError: the models are not the crosscoder's, the text holds no block, or an activation is not finite.
    """
    scaling = latent_scaling(crosscoder, models, heldout, max_blocks=max_blocks, batch_blocks=batch_blocks)
    return judge(scaled_decoder(crosscoder).detach(), scaling, list(crosscoder.config.checkpoints))


def judge(decoder: Float[Tensor, "F M D"], scaling: Scaling, checkpoints: list[str]) -> Diagnostics:
    """The diagnostics of features with these decoder vectors, in scaled units, that scale in this way."""
    norms = decoder.norm(dim=-1)
    reference = norms.argmax(1)
    strength = _ratio(norms, norms.amax(1, keepdim=True)).cpu().numpy()
    cosine = _cosine(decoder, strength)
    at = reference.cpu().numpy()[:, None]
    fit, reconstruction = (np.take_along_axis(beta, at, 1) for beta in (scaling.error, scaling.reconstruction))
    nu_error, nu_reconstruction = _over(scaling.error, fit), _over(scaling.reconstruction, reconstruction)
    sound = (scaling.fired >= ENOUGH) & (fit[:, 0] >= 1 / FITTING) & (fit[:, 0] <= FITTING)
    rows = torch.arange(len(decoder), device=decoder.device)
    return Diagnostics(
        checkpoints=checkpoints,
        n_tokens=scaling.n_tokens,
        label=label(strength, nu_error, nu_reconstruction, cosine[:, 0, -1], sound),
        reference=at[:, 0],
        complement=complements(decoder[rows, reference], (strength >= PRESENT) & sound[:, None]),
        fired=scaling.fired,
        fit=fit[:, 0],
        strength=strength,
        nu_error=nu_error,
        nu_reconstruction=nu_reconstruction,
        cosine=cosine,
    )


def label(
    strength: Float[np.ndarray, "F M"],
    nu_error: Float[np.ndarray, "F M"],
    nu_reconstruction: Float[np.ndarray, "F M"],
    first_to_last: Float[np.ndarray, " F"],
    sound: Bool[np.ndarray, " F"],
) -> list[str]:
    """One word for each feature; the first that applies.

    "unclear": not `sound`. "artefact": absent by its decoder at a checkpoint where latent scaling finds it. "early":
    absent at the last checkpoint, wherever it was before (present only between, too). "late": absent at the first.
    "rotated": present at both, in directions whose cosine, `first_to_last`, is below ROTATED. "persistent": the rest.
    """
    present = strength >= PRESENT
    refuted = ~present & ((nu_error >= SHRUNK) | (nu_reconstruction >= DECOUPLED))
    conditions = [~sound, refuted.any(1), ~present[:, -1], ~present[:, 0], first_to_last < ROTATED]
    return np.select(conditions, ["unclear", "artefact", "early", "late", "rotated"], "persistent").tolist()


def complements(direction: Float[Tensor, "F D"], present: Bool[np.ndarray, "F M"]) -> Int[np.ndarray, " F"]:
    """For each feature, the one most like it that is present only where it is not.

    -1 where none has a cosine above COMPLEMENT.

    Args:
        direction: decoder vectors at the features' references.
        present: where each feature is; one that is nowhere has no complement.
    """
    found = np.full(len(direction), -1)
    candidates = np.flatnonzero(present.any(1) & ~present.all(1))
    unit = normalize(direction[candidates], dim=1)
    where = torch.from_numpy(present[candidates]).to(unit)
    for start in range(0, len(candidates), FEATURES_AT_ONCE):  # all pairs at once would not fit a device
        part = slice(start, start + FEATURES_AT_ONCE)
        cosine = unit[part] @ unit.T
        cosine[where[part] @ where.T > 0] = -1
        best, which = (values.cpu().numpy() for values in cosine.max(1))
        found[candidates[part]] = np.where(best > COMPLEMENT, candidates[which], -1)
    return found


def _cosine(decoder: Float[Tensor, "F M D"], strength: Float[np.ndarray, "F M"]) -> Float[np.ndarray, "F M M"]:
    unit = normalize(decoder, dim=-1)
    cosine = (unit @ unit.mT).cpu().numpy()
    vague = ~(strength >= NO_DIRECTION)  # NaN where a feature has no decoder at all
    cosine[vague[:, :, None] | vague[:, None, :]] = np.nan
    return cosine


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, torch.nan)


def _over(beta: Float[np.ndarray, "F M"], reference: Float[np.ndarray, "F 1"]) -> Float[np.ndarray, "F M"]:
    """nu; NaN where the target does not hold the feature even at its reference."""
    return np.divide(beta, reference, out=np.full_like(beta, np.nan), where=reference > 0)
