"""The format of science-of-finetuning/dictionary_learning: config.json with model.safetensors, or a state dict in .pt.

Its crosscoders have `encoder.weight` [M, D, F], `encoder.bias` [F], `decoder.weight` [M, F, D], `decoder.bias` [M, D];
BatchTopK ones also `k` and `threshold`. They may normalise activations, per checkpoint or per neuron. The threshold
applies to feature activations times one of several norms (`code_normalization`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import (
    Contents,
    Facts,
    ForeignFile,
    assemble,
    config_of_folder,
    only_file,
    read_tensors,
)
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, FixedThresholds, JumpReLU

_CLASSES = ("CrossCoder", "BatchTopKCrossCoder")
_WEIGHTS = ("model.safetensors", "ae.pt", "model_final.pt")
_NORMALIZATIONS = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")
"""Code normalizations, in the order of their ids, which start at 1."""
_EPSILON = 1e-8
"""Added to divisors when activations are normalised."""


def fits(path: Path) -> bool:
    """Whether a folder or file has this format. A state dict without config.json isn't recognised."""
    config = _config(path)
    return config.get("dict_class") in _CLASSES or {"activation_dim", "dict_size", "num_layers"} <= config.keys()


def read(path: Path, given: Facts) -> Crosscoder:
    """Read a file of weights, or a folder with one and config.json.

    Raises:
        InputError: As `assemble`; a file is missing or invalid; or the crosscoder has a part without a counterpart
            here.
    """
    weights, config = _weights(path), _config(path)
    if config.get("dict_class", _CLASSES[0]) not in _CLASSES:
        raise InputError(f"{weights} is a {config['dict_class']}, not a crosscoder ({' or '.join(_CLASSES)})")
    if config.get("latent_processor") is not None:
        raise InputError(
            f"{weights}: it has a latent_processor, a function of its feature activations that crosstime doesn't have"
        )
    # torch.compile prefixes every name.
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in read_tensors(weights).items()}
    file = _File(weights, tensors, weights, config)
    return assemble(file.gated(file.normalised()), given)


class _File(ForeignFile):
    """The parts of a file of this format, in crosstime's terms."""

    def normalised(self) -> Contents:
        """Fold the normalisation of activations into weights and scale factors; leave out the threshold.

        It is x' = (x - mean) / size, with one size per checkpoint or per neuron. Sizes per neuron go into the weights,
        and the scale factor keeps their root mean square, so that decoder norms stay comparable.
        """
        w_dec = self.tensor("decoder.weight", 3)
        w_enc, b_enc = self._encoder(len(w_dec)), self.tensor("encoder.bias", 1)
        b_dec = self.tensor("decoder.bias", 2)
        mean, divisor, factor = self._normalizer(b_dec.shape)
        scale = factor.square().mean(1).rsqrt()
        return Contents(
            path=self.path,
            W_enc=w_enc / (divisor * scale[:, None])[..., None],
            # In float64: the mean may be much larger than the result.
            b_enc=(b_enc - torch.einsum("md,mdf->f", (mean / divisor).double(), w_enc.double())).float(),
            W_dec=w_dec.transpose(0, 1) * (factor * scale[:, None]),
            b_dec=(b_dec * factor + mean) * scale[:, None],
            sparsity=L1(**{"weight": 0.0, **self.numbers({"weight": "l1_penalty"}, float)}),
            facts=Facts(scale=scale.tolist(), **self.numbers({"layer": "layer"}, int)),
        )

    def gated(self, contents: Contents) -> Contents:
        """Add the sparsity rule: keep features whose activation times code norm exceeds the threshold."""
        if "threshold" not in self.tensors:
            return contents
        threshold, name = self.tensor("threshold", self.tensors["threshold"].ndim), self._code_normalization()
        if bool((threshold <= 0).all()) and name != "CROSSCODER":
            return contents  # never measured: every active feature passes
        if name == "DECOUPLED":
            if self._per_neuron or bool((threshold != threshold.flatten()[0]).any()):
                raise InputError(
                    f"{self.path}: its code normalization DECOUPLED has one threshold per checkpoint "
                    f"({threshold.tolist()}); crosstime has one per feature"
                )
            log_threshold = threshold.flatten()[0].log().expand(len(contents.b_enc))
            return replace(contents, sparsity=JumpReLU(), threshold=log_threshold)
        if name == "CROSSCODER" and not self._per_neuron:
            k = {"k": int(self.tensor("k", 0)), **self.numbers({"k": "k_target"}, int)}
            return replace(contents, sparsity=BatchTopK(**k), threshold=threshold)
        # With other norms than crosstime's, the threshold becomes one per feature.
        own = (threshold / self._code_norms(name)).clamp(0, torch.finfo(torch.float32).max)
        return replace(contents, sparsity=FixedThresholds(), threshold=own)

    def _encoder(self, m: int) -> Float[Tensor, "M D F"]:
        """Return the encoder of all checkpoints; zero for those that it doesn't read."""
        weight, read = self.tensor("encoder.weight", 3), self.config.get("encoder_layers")
        if len(weight) == m and read is None:
            return weight
        if not isinstance(read, list) or len(read) != len(weight) or not set(read) <= set(range(m)):
            raise InputError(
                f"{self.path}: its encoder has {len(weight)} checkpoints and its decoder {m}, but "
                f"`encoder_layers` ({read}) doesn't list the encoder's"
            )
        full = weight.new_zeros(m, *weight.shape[1:])
        full[read] = weight
        return full

    def _normalizer(self, shape: torch.Size) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"], Float[Tensor, "M D"]]:
        """Return mean, divisor before encoding and factor after decoding: 0, 1 and 1 without normalisation."""
        if "activation_mean" not in self.tensors or bool(self.tensor("activation_mean", 2).isnan().any()):
            return torch.zeros(shape), torch.ones(shape), torch.ones(shape)
        mean = self.tensor("activation_mean", 2)
        if mean.shape != shape:
            raise InputError(f"{self.path}: activation_mean has the shape {tuple(mean.shape)}, not {tuple(shape)}")
        if self._per_neuron:
            std = self.tensor("activation_std", 2).expand(shape) + _EPSILON
            return mean, std, std
        size = self.tensor("activation_global_scale", self.tensors["activation_global_scale"].ndim)
        size = size.reshape(-1, 1).expand(shape)
        return mean, 1 / size, 1 / (size + _EPSILON)

    @property
    def _per_neuron(self) -> bool:
        """Whether activations were divided by each neuron's own standard deviation, as they were until June 2025."""
        return "activation_std" in self.tensors and "activation_global_scale" not in self.tensors

    def _code_normalization(self) -> str:
        """Return its name; CROSSCODER for files from before there was a choice."""
        if "code_normalization_id" in self.tensors:
            number = int(self.tensor("code_normalization_id", 0))
            name = _NORMALIZATIONS[number - 1] if 1 <= number <= len(_NORMALIZATIONS) else str(number)
        else:
            name = str(self.config.get("code_normalization") or _NORMALIZATIONS[0]).upper()
        if name not in _NORMALIZATIONS:
            raise InputError(f"{self.path}: unknown code normalization {name}: use one of {', '.join(_NORMALIZATIONS)}")
        return name

    def _code_norms(self, name: str) -> Float[Tensor, " F"]:
        """Return the norm that multiplies each feature's activation before it is compared with the threshold."""
        w_dec = self.tensor("decoder.weight", 3)
        total, joint = w_dec.norm(dim=2).sum(0), w_dec.norm(dim=(0, 2))
        names = {"sae": "code_normalization_alpha_sae", "crosscoder": "code_normalization_alpha_cc"}
        alpha = {"sae": 1.0, "crosscoder": 0.1, **self.numbers(names, float)}
        mixed = alpha["sae"] * joint + alpha["crosscoder"] * total
        return {"CROSSCODER": total, "SAE": joint, "MIXED": mixed, "NONE": torch.ones_like(total)}[name]

    def tensor(self, name: str, dimensions: int) -> Tensor:
        return super().tensor(name, dimensions).float()


def _config(path: Path) -> Mapping[str, Any]:
    """Read config.json; if a training run wrote it, its trainer's settings."""
    config = config_of_folder(path if path.is_dir() else path.parent)
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, dict) else config


def _weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    known = [path / name for name in _WEIGHTS if (path / name).is_file()]
    return known[0] if known else only_file(path, list(path.glob("*.pt")))
