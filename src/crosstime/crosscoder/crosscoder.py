"""The crosscoder: one set of sparse features for the activations of several checkpoints.

Lindsey et al. 2024 (sparse crosscoders); Bayazit, Mueller and Bosselut, arXiv 2509.05291 (pretraining checkpoints).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosstime.base.errors import InputError, SettingError
from crosstime.crosscoder import files
from crosstime.crosscoder.sparsity.rule import FINISHED, Mode
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.text.positions import Positions


@dataclass(frozen=True)
class CrosscoderConfig:
    """Shape, sparsity rule and provenance of a crosscoder; saved as config.json.

    Example:
        >>> from crosstime import CrosscoderConfig, TopK
        >>> config = CrosscoderConfig(("step256", "step3786"), layer=3, width=128, features=1024, sparsity=TopK(k=32))
        >>> config.sparsity.k
        32
    """

    checkpoints: tuple[str, ...]
    """Names of the checkpoints, in the order of training. With a single one it is a sparse autoencoder."""
    layer: int
    """The block whose output is encoded, counted from 0."""
    width: int
    """D, the model's width."""
    features: int
    """F, the number of features."""
    tokens: tuple[int | None, ...] = ()
    """Tokens that each checkpoint was trained on; None if unknown."""
    sources: tuple[str, ...] = ()
    """Source of each checkpoint: a folder, or repository@commit."""
    weights: tuple[str, ...] = ()
    """SHA-256 of each checkpoint's weights."""
    positions: Positions = field(default_factory=Positions)
    """The policy for position 0 in training."""
    sparsity: Sparsity = field(default_factory=L1)
    """The sparsity rule."""

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise SettingError("checkpoints", "must name at least one checkpoint")
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise SettingError("checkpoints", f"must have different names, not {list(self.checkpoints)}")
        if min(self.width, self.features) < 1:
            raise InputError(f"width and features must be positive, not {self.width} and {self.features}")
        self.sparsity.check(self.features)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CrosscoderConfig:
        """Build a configuration from the output of `dataclasses.asdict`, also after a round trip through JSON.

        Raises:
            KeyError, TypeError: A field is missing or unknown.
            InputError: A value is out of range.
        """
        parsed = {name: tuple(values[name]) for name in ("checkpoints", "tokens", "sources", "weights")}
        parsed |= {"positions": Positions(**values["positions"]), "sparsity": Sparsity.from_dict(values["sparsity"])}
        return cls(**{**values, **parsed})


class Crosscoder(nn.Module):
    """One sparse code for M checkpoints. It reads and writes raw activations; inside, each is scaled to a common norm.

    Parameters (M checkpoints, D width, F features), all in scaled units: W_enc [M, D, F], b_enc [F], W_dec [F, M, D],
    b_dec [M, D]; and `threshold`, what the sparsity rule learns or measures (None for other rules). Buffers: the scale
    factors c, `scale` [M]; and `norm_scale` [M], by which the decoder norms of a folded crosscoder are multiplied to
    be in scaled units again.

        h      = ReLU(sum_m c_m x_m W_enc[m] + b_enc)
        f      = h where the sparsity rule keeps a feature, else 0
        xhat_m = (f W_dec[:, m] + b_dec[m]) / c_m

    Example:
        >>> import torch
        >>> from crosstime import Crosscoder, CrosscoderConfig
        >>> crosscoder = Crosscoder(CrosscoderConfig(("step256", "step3786"), layer=3, width=16, features=64))
        >>> x = torch.randn(10, 2, 16)  # raw activations: tokens, checkpoints, width
        >>> f = crosscoder.encode(x)
        >>> f.shape, crosscoder.decode(f).shape
        (torch.Size([10, 64]), torch.Size([10, 2, 16]))
    """

    scale: Tensor
    norm_scale: Tensor
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
        self.register_buffer("norm_scale", torch.ones(m))
        threshold = config.sparsity.initial_threshold(f)
        if isinstance(threshold, nn.Parameter):
            self.threshold = threshold
        else:
            self.register_buffer("threshold", threshold)

    def encode(self, x: Float[Tensor, "*b M D"], mode: Mode = "inference") -> Float[Tensor, "*b F"]:
        """Return the feature activations, given the raw activations of all checkpoints at the same tokens.

        Args:
            x: Raw activations.
            mode: "inference", in which tokens don't affect one another; or "training", in which a rule may select
                features over the whole batch (BatchTopK: k per token on average over the tokens given).
        """
        scaled = x.to(self.W_enc.dtype) * self.scale[:, None]
        h = torch.relu(scaled.flatten(-2) @ self.W_enc.flatten(0, 1) + self.b_enc)
        rule, norms = self.config.sparsity, self.decoder_norms()
        if mode == "inference":
            return rule.select(h, norms, self.threshold)
        return rule.select_in_training(h.reshape(-1, h.shape[-1]), norms, self.threshold, FINISHED).reshape(h.shape)

    def gate(self, f: Float[Tensor, "*b F"], m: int) -> Float[Tensor, "*b F"]:
        """Return the feature activations that checkpoint m's decoder reads: f, unless the rule gates each checkpoint.

        Under JumpReLU a feature is off at checkpoints where its decoder vector is small.
        """
        rule = self.config.sparsity
        if not rule.gates_checkpoints:
            return f
        return rule.gate(f, self.W_dec[:, m].norm(dim=-1) * self.norm_scale[m], self.threshold)

    def decode(self, f: Float[Tensor, "*b F"]) -> Float[Tensor, "*b M D"]:
        """Return the reconstructed raw activations of all checkpoints."""
        decoded = [self.gate(f, m) @ self.W_dec[:, m] for m in range(len(self.config.checkpoints))]
        return (torch.stack(decoded, dim=-2) + self.b_dec) / self.scale[:, None]

    def forward(self, x: Float[Tensor, "*b M D"]) -> Float[Tensor, "*b M D"]:
        """Encode and decode raw activations."""
        return self.decode(self.encode(x))

    def raw_decoder(self, m: int, features: Int[Tensor, " K"] | None = None) -> Float[Tensor, "K D"]:
        """Return the decoder vectors of checkpoint m, of all or of some features, in units of raw activations."""
        vectors = self.W_dec[:, m] if features is None else self.W_dec[features, m]
        return vectors / self.scale[m]

    def raw_bias(self) -> Float[Tensor, "M D"]:
        """Return the reconstruction when no feature is active; initialised at the mean activation."""
        return self.b_dec / self.scale[:, None]

    def decoder_norms(self) -> Float[Tensor, "M F"]:
        """Return ||d_m,i|| in scaled units, in which checkpoints can be compared (RelDec of arXiv 2509.05291)."""
        return (self.W_dec.norm(dim=-1) * self.norm_scale).T

    @torch.no_grad()
    def fold(self) -> Crosscoder:
        """Return the same function with the scale factors folded into the weights, so that `scale` is 1.

        Feature activations, reconstructions, decoder norms and thresholds don't change.
        """
        folded = copy.deepcopy(self)
        folded.W_enc.mul_(self.scale[:, None, None])
        folded.W_dec.div_(self.scale[:, None])
        folded.b_dec.div_(self.scale[:, None])
        folded.norm_scale.mul_(self.scale)
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
        """Initialise: random decoder vectors of one norm, the encoder as their transpose, b_dec at the mean activation.

        Args:
            mean: Mean raw activation of each checkpoint. A zero code then reconstructs it, and the path of integrated
                gradients ends at a typical activation.
            scale: c_m, which scales the mean norm of each checkpoint's activations to sqrt(D).
            decoder_norm: Norm of each d_m,i (0.08 in the paper).
            tied: Give a feature the same direction at every checkpoint. Independent directions, the paper's choice,
                favour features of a single checkpoint.
            generator: Source of randomness.
        """
        shape = self.W_dec.shape
        directions = torch.randn(shape[0], 1 if tied else shape[1], shape[2], generator=generator).expand(shape)
        self.W_dec.copy_(decoder_norm * directions / directions.norm(dim=-1, keepdim=True))
        self.W_enc.copy_(self.W_dec.permute(1, 2, 0))
        self.b_enc.zero_()
        self.norm_scale.fill_(1)
        self.scale.copy_(scale)
        self.b_dec.copy_(mean * scale[:, None])

    def save_pretrained(self, folder: str | Path) -> None:
        """Save model.safetensors, config.json and a model card to a folder, which is created if needed.

        Raises:
            OSError: The folder can't be written. A crosscoder that was saved there before is kept.
        """
        files.save(folder, asdict(self.config), self.state_dict())

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Crosscoder:
        """Load a crosscoder from a folder or a hub repository.

        Raises:
            InputError: There is none, or it was saved by another version.
            DamagedArtifact: Its weights are missing, truncated or altered.
        """
        folder = files.locate(source, revision)
        values = files.load_config(folder)
        try:
            weights_sha256 = str(values.pop("weights_sha256"))
            crosscoder = cls(CrosscoderConfig.from_dict(values))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{folder / files.CONFIG} is damaged or of another version of crosstime ({error!r}): update crosstime, "
                "or train the crosscoder again"
            ) from None
        except InputError as error:
            raise InputError(f"{folder / files.CONFIG}: {error}") from None
        try:
            crosscoder.load_state_dict(files.load_weights(folder, weights_sha256))
        except RuntimeError as error:
            raise InputError(f"the weights in {source} don't fit its {files.CONFIG}: {error}") from None
        return crosscoder

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the crosscoder with its card to the hub, and return the URL of the commit.

        Raises:
            InputError: The hub refused the upload.
        """
        return files.upload(self.save_pretrained, repo, private=private, token=token)
