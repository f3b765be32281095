"""The format of science-of-finetuning/dictionary_learning: config.json with model.safetensors, or a state dict in .pt.

Its crosscoders have `encoder.weight` [M, D, F], `encoder.bias` [F], `decoder.weight` [M, F, D], `decoder.bias` [M, D];
BatchTopK ones also `k` and `threshold`. They may normalise activations, per checkpoint or per neuron, and compare
features by one of several norms (`code_normalization`), above whose product with the code a threshold lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.reading import config_in, numbers, only, read_tensors, take
from crosstime.crosscoder.formats.stated import Found, Stated, assemble
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, FixedThresholds, JumpReLU

CLASSES = ("CrossCoder", "BatchTopKCrossCoder")
WEIGHTS = ("model.safetensors", "ae.pt", "model_final.pt")
NORMALIZATIONS = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")
"""In the order of their numbers, which begin at 1."""
EPSILON = 1e-8
"""What its normalisation adds to a divisor."""


def fits(path: Path) -> bool:
    """Whether a folder or file is of this format; a state dict alone, without config.json, does not tell."""
    config = _config(path)
    return config.get("dict_class") in CLASSES or {"activation_dim", "dict_size", "num_layers"} <= config.keys()


def read(path: Path, stated: Stated) -> Crosscoder:
    """Read a file of weights, or a folder with one and config.json.

    Raises:
        InputError: see `assemble`; a file is missing or not of this format; or the crosscoder has a part that ours
            cannot have, which the message names.
    """
    weights, config = _weights(path), _config(path)
    if config.get("dict_class", CLASSES[0]) not in CLASSES:
        raise InputError(f"{weights} is a {config['dict_class']}, no crosscoder: readable are {' and '.join(CLASSES)}")
    if config.get("latent_processor") is not None:
        raise InputError(f"{weights}: it has a latent_processor, a function of its codes that crosstime does not know")
    # Of a compiled module every name has this before it.
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in read_tensors(weights).items()}
    file = _File(weights, config, tensors)
    return assemble(file.gated(file.normalised()), stated)


@dataclass(frozen=True)
class _File:
    """A file of this format, and what its parts mean."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def normalised(self) -> Found:
        """The crosscoder without its gate: the normalisation of activations is worked into weights and scale factors.

        It is x' = (x - mean) / size, with one size a checkpoint or one a neuron. In the latter case sizes go into the
        weights, and the scale factor keeps their root mean square, so that decoder norms stay comparable.
        """
        w_dec = self._take("decoder.weight", 3)
        w_enc, b_enc = self._encoder(len(w_dec)), self._take("encoder.bias", 1)
        b_dec = self._take("decoder.bias", 2)
        mean, divisor, factor = self._normalizer(b_dec.shape)
        scale = factor.square().mean(1).rsqrt()
        return Found(
            where=self.path,
            W_enc=w_enc / (divisor * scale[:, None])[..., None],
            # A mean may be large beside what is left of it here.
            b_enc=(b_enc - torch.einsum("md,mdf->f", (mean / divisor).double(), w_enc.double())).float(),
            W_dec=w_dec.transpose(0, 1) * (factor * scale[:, None]),
            b_dec=(b_dec * factor + mean) * scale[:, None],
            sparsity=L1(**{"weight": 0.0, **self._numbers({"weight": "l1_penalty"}, float)}),
            scale=scale.tolist(),
            layer=self._numbers({"layer": "layer"}, int).get("layer"),
        )

    def gated(self, found: Found) -> Found:
        """The same with the rule that keeps features: where code times code normalisation exceeds a threshold."""
        if "threshold" not in self.tensors:
            return found
        threshold, name = self._take("threshold", self.tensors["threshold"].ndim), self._code_normalization()
        if bool((threshold <= 0).all()) and name != "CROSSCODER":
            return found  # never measured, so every active feature passes
        if name == "DECOUPLED":
            if self._per_neuron or bool((threshold != threshold.flatten()[0]).any()):
                raise InputError(
                    f"{self.path}: its code normalization DECOUPLED gates every checkpoint by a threshold of its own "
                    f"({threshold.tolist()}), which crosstime cannot: it has one threshold a feature"
                )
            log_threshold = threshold.flatten()[0].log().expand(len(found.b_enc))
            return replace(found, sparsity=JumpReLU(), threshold=log_threshold)
        if name == "CROSSCODER" and not self._per_neuron:
            k = {"k": int(self._take("k", 0)), **self._numbers({"k": "k_target"}, int)}
            return replace(found, sparsity=BatchTopK(**k), threshold=threshold)
        # Each feature has a threshold of its own where the norms are not those by which ours compares features.
        own = (threshold / self._code_norms(name)).clamp(0, torch.finfo(torch.float32).max)
        return replace(found, sparsity=FixedThresholds(), threshold=own)

    def _encoder(self, m: int) -> Float[Tensor, "M D F"]:
        """The encoder of all checkpoints; zero for those that it does not read."""
        weight, read = self._take("encoder.weight", 3), self.config.get("encoder_layers")
        if len(weight) == m and read is None:
            return weight
        if not isinstance(read, list) or len(read) != len(weight) or not set(read) <= set(range(m)):
            raise InputError(
                f"{self.path}: its encoder reads {len(weight)} checkpoints, its decoder writes {m}, and "
                f"`encoder_layers` ({read}) does not say which are read"
            )
        full = weight.new_zeros(m, *weight.shape[1:])
        full[read] = weight
        return full

    def _normalizer(self, shape: torch.Size) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"], Float[Tensor, "M D"]]:
        """Mean, divisor before encoding, and factor after decoding; where there is no normalizer 0, 1 and 1."""
        if "activation_mean" not in self.tensors or bool(self._take("activation_mean", 2).isnan().any()):
            return torch.zeros(shape), torch.ones(shape), torch.ones(shape)
        mean = self._take("activation_mean", 2)
        if mean.shape != shape:
            raise InputError(f"{self.path}: activation_mean has the shape {tuple(mean.shape)}, not {tuple(shape)}")
        if self._per_neuron:
            std = self._take("activation_std", 2).expand(shape) + EPSILON
            return mean, std, std
        size = self._take("activation_global_scale", self.tensors["activation_global_scale"].ndim)
        size = size.reshape(-1, 1).expand(shape)
        return mean, 1 / size, 1 / (size + EPSILON)

    @property
    def _per_neuron(self) -> bool:
        """Whether activations were divided by each neuron's own deviation, as they were until June 2025."""
        return "activation_std" in self.tensors and "activation_global_scale" not in self.tensors

    def _code_normalization(self) -> str:
        """Its name; CROSSCODER where the file is older than the choice."""
        if "code_normalization_id" in self.tensors:
            number = int(self._take("code_normalization_id", 0))
            name = NORMALIZATIONS[number - 1] if 1 <= number <= len(NORMALIZATIONS) else str(number)
        else:
            name = str(self.config.get("code_normalization") or NORMALIZATIONS[0]).upper()
        if name not in NORMALIZATIONS:
            raise InputError(
                f"{self.path}: code normalization {name} is unknown; known are {', '.join(NORMALIZATIONS)}"
            )
        return name

    def _code_norms(self, name: str) -> Float[Tensor, " F"]:
        """By which factor each feature's code is compared with the threshold."""
        w_dec = self._take("decoder.weight", 3)
        total, joint = w_dec.norm(dim=2).sum(0), w_dec.norm(dim=(0, 2))
        names = {"sae": "code_normalization_alpha_sae", "crosscoder": "code_normalization_alpha_cc"}
        alpha = {"sae": 1.0, "crosscoder": 0.1, **self._numbers(names, float)}
        mixed = alpha["sae"] * joint + alpha["crosscoder"] * total
        return {"CROSSCODER": total, "SAE": joint, "MIXED": mixed, "NONE": torch.ones_like(total)}[name]

    def _numbers(self, names: Mapping[str, str], kind: type) -> dict[str, Any]:
        return numbers(self.path, self.config, names, kind)

    def _take(self, name: str, dimensions: int) -> Tensor:
        return take(self.path, self.tensors, name, dimensions).float()


def _config(path: Path) -> Mapping[str, Any]:
    """config.json; where a training run wrote it, the settings of its trainer."""
    config = config_in(path if path.is_dir() else path.parent)
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, dict) else config


def _weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    known = [path / name for name in WEIGHTS if (path / name).is_file()]
    return known[0] if known else only(path, list(path.glob("*.pt")))
