"""The crosscoder: one sparse code for the activations of several checkpoints.

Lindsey et al. 2024 (sparse crosscoders); Bayazit, Mueller, Bosselut, arXiv 2509.05291, for checkpoints of pretraining.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosstime.base.errors import InputError
from crosstime.crosscoder import files
from crosstime.crosscoder.sparsity.rule import END, Mode
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.text.positions import Positions


@dataclass(frozen=True)
class CrosscoderConfig:
    """What a crosscoder was made for, and on what; stored as config.json beside its weights."""

    checkpoints: tuple[str, ...]
    """Names of the checkpoints, in the order of training. Over one alone it is a sparse autoencoder."""
    layer: int
    """The block whose output it reads, counted from 0."""
    width: int
    """D, the model's width."""
    features: int
    """F, the size of the dictionary."""
    tokens: tuple[int | None, ...] = ()
    """Tokens that each checkpoint had seen, where known."""
    sources: tuple[str, ...] = ()
    """Where each checkpoint came from: a folder, or repository@commit."""
    weights: tuple[str, ...] = ()
    """SHA-256 of each checkpoint's weights."""
    positions: Positions = field(default_factory=Positions)
    """The policy for position 0 that it was trained under."""
    sparsity: Sparsity = field(default_factory=L1)
    """Which features it keeps."""

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise InputError("a crosscoder needs a checkpoint to read; got none")
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise InputError(f"the checkpoints of a crosscoder need different names; got {list(self.checkpoints)}")
        if min(self.width, self.features) < 1:
            raise InputError(f"width and features must be positive; got {self.width} and {self.features}")
        self.sparsity.check(self.features)


class Crosscoder(nn.Module):
    """One sparse code for M checkpoints. It reads and writes raw activations; inside, each is scaled to a common size.

    Parameters (M checkpoints, D width, F features), all in scaled units:
        W_enc [M, D, F], b_enc [F], W_dec [F, M, D], b_dec [M, D]; the scale factors c, `scale` [M]; and `threshold`,
        what its sparsity rule learns or measures (None for rules that do neither).

        h      = ReLU(sum_m c_m x_m W_enc[m] + b_enc)
        f      = h where the sparsity rule keeps a feature, else 0
        xhat_m = (f W_dec[:, m] + b_dec[m]) / c_m
    """

    scale: Tensor
    unit: Tensor
    threshold: Tensor | None

    def __init__(self, config: CrosscoderConfig) -> None:
        super().__init__()
        self.config = config
        m, d, f = len(config.checkpoints), config.width, config.features
        self.W_enc = nn.Parameter(torch.zeros(m, d, f))
        self.b_enc = nn.Parameter(torch.zeros(f))
        self.W_dec = nn.Parameter(torch.zeros(f, m, d))
        self.b_dec = nn.Parameter(torch.zeros(m, d))
        self.register_buffer("scale", torch.ones(m))
        # Decoder norms are compared in scaled units. `unit` brings those of a folded crosscoder back to them.
        self.register_buffer("unit", torch.ones(m))
        threshold = config.sparsity.first_threshold(f)
        if isinstance(threshold, nn.Parameter):
            self.threshold = threshold
        else:
            self.register_buffer("threshold", threshold)

    def encode(self, x: Float[Tensor, "*b M D"], mode: Mode = "inference") -> Float[Tensor, "*b F"]:
        """The features of raw activations of all checkpoints at the same tokens.

        Args:
            x: raw activations.
            mode: "inference", in which no row depends on another; or "training", where a rule may choose features over
                the whole batch (BatchTopK: the k largest a row, on average over the rows given).
        """
        scaled = x.to(self.W_enc.dtype) * self.scale[:, None]
        h = torch.relu(scaled.flatten(-2) @ self.W_enc.flatten(0, 1) + self.b_enc)
        rule, norms = self.config.sparsity, self.decoder_norms()
        if mode == "inference":
            return rule.select(h, norms, self.threshold)
        return rule.select_in_training(h.reshape(-1, h.shape[-1]), norms, self.threshold, END).reshape(h.shape)

    def at(self, f: Float[Tensor, "*b F"], m: int) -> Float[Tensor, "*b F"]:
        """The features as checkpoint m writes them: f itself, but for rules that gate each checkpoint by itself."""
        rule = self.config.sparsity
        return rule.at(f, self.W_dec[:, m].norm(dim=-1) * self.unit[m], self.threshold) if rule.gated else f

    def decode(self, f: Float[Tensor, "*b F"]) -> Float[Tensor, "*b M D"]:
        """The raw activations of all checkpoints that the features stand for."""
        written = [self.at(f, m) @ self.W_dec[:, m] for m in range(len(self.config.checkpoints))]
        return (torch.stack(written, dim=-2) + self.b_dec) / self.scale[:, None]

    def forward(self, x: Float[Tensor, "*b M D"]) -> Float[Tensor, "*b M D"]:
        """The reconstruction of raw activations."""
        return self.decode(self.encode(x))

    def raw_decoder(self, m: int, features: Int[Tensor, " K"] | None = None) -> Float[Tensor, "K D"]:
        """What one unit of each feature, or of each of some, adds to the activation of checkpoint m."""
        rows = self.W_dec[:, m] if features is None else self.W_dec[features, m]
        return rows / self.scale[m]

    def raw_bias(self) -> Float[Tensor, "M D"]:
        """What the crosscoder decodes when no feature fires; initialised at the mean activation."""
        return self.b_dec / self.scale[:, None]

    def decoder_norms(self) -> Float[Tensor, "F M"]:
        """||d_i,m|| in scaled units, in which checkpoints can be compared (arXiv 2509.05291, RelDec)."""
        return self.W_dec.norm(dim=-1) * self.unit

    @torch.no_grad()
    def fold(self) -> Crosscoder:
        """The same crosscoder with its scale factors worked into the weights, so that `scale` is 1.

        Codes, reconstructions, decoder norms and thresholds keep their values and their units.
        """
        folded = copy.deepcopy(self)
        folded.W_enc.mul_(self.scale[:, None, None])
        folded.W_dec.div_(self.scale[:, None])
        folded.b_dec.div_(self.scale[:, None])
        folded.unit.mul_(self.scale)
        folded.scale.fill_(1)
        return folded

    @torch.no_grad()
    def initialise(
        self,
        mean: Float[Tensor, "M D"],
        scale: Float[Tensor, " M"],
        *,
        decoder_norm: float,
        tied: bool,
        generator: torch.Generator,
    ) -> None:
        """Start values: random decoder directions of one norm, the encoder their transpose, b_dec the mean activation.

        Args:
            mean: mean raw activation of each checkpoint. With b_dec there, the integrated gradients of the effects
                end at a point where the model is well behaved.
            scale: c_m, which brings the mean norm of each checkpoint's activations to sqrt(D).
            decoder_norm: norm of each d_i,m (0.08 in the paper).
            tied: give a feature the same direction at every checkpoint. Independent directions, the paper's choice,
                favour features that belong to one checkpoint only.
            generator: source of the random directions.
        """
        shape = self.W_dec.shape
        directions = torch.randn(shape[0], 1 if tied else shape[1], shape[2], generator=generator).expand(shape)
        self.W_dec.copy_(decoder_norm * directions / directions.norm(dim=-1, keepdim=True))
        self.W_enc.copy_(self.W_dec.permute(1, 2, 0))
        self.b_enc.zero_()
        self.unit.fill_(1)
        self.scale.copy_(scale)
        self.b_dec.copy_(mean * scale[:, None])

    def save_pretrained(self, folder: Any) -> None:
        """Write model.safetensors, config.json and a model card into `folder`, which is made if need be.

        Raises:
            OSError: the folder cannot be written; an earlier crosscoder in it then stays whole.
        """
        files.save(self, folder)

    @classmethod
    def from_pretrained(cls, source: Any, *, revision: str | None = None) -> Crosscoder:
        """Read a crosscoder from a folder, or from a repository of the hub.

        Raises:
            InputError: nothing is there, it is no crosscoder or one of another version, or its weights were truncated
                or altered.
        """
        config, tensors = files.load(source, CrosscoderConfig, revision=revision)
        crosscoder = cls(config)
        files.fill(crosscoder, tensors, source)
        return crosscoder

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the crosscoder with its card to the hub; returns the address of the commit.

        Raises:
            InputError: the hub refused the upload.
        """
        return files.push(self, repo, private=private, token=token)
