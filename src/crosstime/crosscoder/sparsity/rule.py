"""The interface of sparsity rules: which features stay active, and what the training loss adds for sparsity.

A rule is a frozen dataclass of settings, without state. What it learns or measures in training is one tensor, the
crosscoder's `threshold`. To add a rule, subclass `Sparsity` in a module of its own (docs/extending.md).

Symbols: B tokens, M checkpoints, F features; h [B, F] = ReLU(pre-activations); f [B, F] = feature activations, h or 0;
norms [M, F] = ||d_m,i||, norms of the decoder vectors in scaled units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.base.errors import InputError, nearest
from crosstime.base.registry import Family

Features = Float[Tensor, "*b F"]
BatchFeatures = Float[Tensor, "B F"]
DecoderNorms = Float[Tensor, "M F"]
PerFeature = Float[Tensor, " F"]
Mode = Literal["training", "inference"]


@dataclass(frozen=True)
class TrainingProgress:
    """Position within a training run; schedules are functions of it."""

    step: int
    """Index of the current step, from 0."""
    steps: int
    """Total number of steps."""


FINISHED = TrainingProgress(1, 1)
"""Progress after the last step: every schedule has reached its final value."""


@dataclass(frozen=True)
class AuxK:
    """Settings of the auxiliary loss that revives dead features (Gao et al. 2024, as in arXiv 2509.05291).

    `training.step` adds it to the loss of any rule whose `auxk` isn't None.
    """

    weight: float
    """Coefficient of the auxiliary loss."""
    k: int | None
    """Dead features that reconstruct the residual of each token; None for half the model's width."""
    dead_tokens: int
    """Tokens after which a feature that hasn't fired counts as dead."""


class Scratch:
    """Preallocated memory by name, for a training step's intermediate values.

    Asking for a name again returns the same memory, so a value is valid until then. On a CPU, allocating costs several
    times as much as writing. Other devices' allocators cache freed memory, so there each request allocates.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised tensor on the device of `like`, by default of its dtype."""
        dtype = dtype or like.dtype
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=like.device)
        size = math.prod(shape) * dtype.itemsize
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = torch.empty(size, dtype=torch.uint8)
        return self._held[name][:size].view(dtype).view(shape)


class RuleGradients(NamedTuple):
    """Gradients of the loss that pass through a sparsity rule; None where there is none."""

    h: BatchFeatures
    """0 where h is 0."""
    norms: DecoderNorms | None
    threshold: PerFeature | None


class Activations(ABC):
    """Feature activations of a training batch, the sparsity penalty, and their gradients."""

    f: BatchFeatures
    """Feature activations; positive if the feature is active at any checkpoint."""
    feature_sums: PerFeature
    """Sum of f over the tokens: 0 for features that don't fire in the batch."""
    decoder_inputs: Sequence[BatchFeatures]
    """What the decoder reads: one matrix for all checkpoints, or one per checkpoint if the rule gates each."""
    penalty: Float[Tensor, ""]
    """What the rule adds to the loss."""
    penalty_gradient: PerFeature | None = None
    """Gradient of the penalty with respect to f, if it is the same for every token; None if it is zero or part of
    `backward`."""
    norms_gradient: DecoderNorms | None = None
    """Gradient of the penalty with respect to the decoder norms; None if it is zero or part of `backward`."""
    threshold: Tensor | None = None
    """The crosscoder's threshold after this batch, if the rule measures it."""
    only_masks: bool = False
    """Whether `backward` is nothing but the mask f > 0 and `norms_gradient`; sparse matrix products may then replace
    dense ones."""

    @abstractmethod
    def backward(self, gradients: Sequence[BatchFeatures]) -> RuleGradients:
        """Turn gradients with respect to `decoder_inputs` into those with respect to h, norms and threshold.

        The gradients include `penalty_gradient`, and may be overwritten.
        """


class MaskedActivations(Activations):
    """Activations that are h or 0, the same at all checkpoints, with an L1 penalty weighted by decoder norms.

    The penalty is coefficient * mean over tokens of sum_i f_i s_i. Gradients are written by hand, so training stores
    only the activations and their gradient.
    """

    only_masks = True

    def __init__(self, f: BatchFeatures, norms: DecoderNorms, coefficient: float) -> None:
        self.f, self.decoder_inputs = f, (f,)
        per_token = coefficient / len(f)
        # Summed in float32 and rounded once, at the end: asking for a float32 result would first copy f to it.
        self.feature_sums = f.sum(0).float()
        self.penalty = per_token * (self.feature_sums @ total_norms(norms))
        if coefficient:
            self.penalty_gradient = per_token * total_norms(norms)
            self.norms_gradient = (per_token * self.feature_sums).expand(norms.shape)

    def backward(self, gradients: Sequence[BatchFeatures]) -> RuleGradients:
        return RuleGradients(where_positive(gradients[0], self.f, out=gradients[0]), self.norms_gradient, None)


@dataclass(frozen=True)
class Sparsity(Family, ABC):
    """Base class of sparsity rules; see L1, TopK, BatchTopK and JumpReLU.

    Only `select` must be overridden.

    Example:
        >>> from crosstime import Sparsity
        >>> Sparsity.from_dict({"rule": "l1", "weight": 0.5})
        L1(rule='l1', weight=0.5, warmup=0.05)
    """

    variant_key: ClassVar[str] = "rule"

    rule: str = field(default="", init=False)
    """Name of the rule in run.toml and config.json; each subclass sets its own."""
    initial_decoder_norm: ClassVar[float] = 1.0
    """Default norm of each d_m,i at initialisation, in scaled units (1 in the paper for BatchTopK)."""
    gates_checkpoints: ClassVar[bool] = False
    """Whether `gate` differs between checkpoints; a training batch then holds M matrices of activations."""

    @abstractmethod
    def select(self, h: Features, norms: DecoderNorms, threshold: Tensor | None) -> Features:
        """Return the feature activations at inference. Tokens don't affect one another."""

    def select_in_training(
        self, h: BatchFeatures, norms: DecoderNorms, threshold: Tensor | None, progress: TrainingProgress
    ) -> BatchFeatures:
        """Return the feature activations of a training batch, by default those at inference."""
        return self.select(h, norms, threshold)

    def penalty_coefficient(self, progress: TrainingProgress) -> float:
        """Return the coefficient of the penalty sum_i f_i s_i at a step."""
        return 0.0

    def activate(
        self,
        h: BatchFeatures,
        norms: DecoderNorms,
        threshold: Tensor | None,
        progress: TrainingProgress,
        scratch: Scratch,
    ) -> Activations:
        """Return the activations of a training batch with penalty and gradients. They may use memory of `scratch`."""
        f = self.select_in_training(h, norms, threshold, progress).to(h.dtype)
        return MaskedActivations(f, norms, self.penalty_coefficient(progress))

    def gate(self, f: Features, norms: PerFeature, threshold: Tensor | None) -> Features:
        """Return the feature activations that one checkpoint's decoder reads, given its decoder norms."""
        return f

    def activation_threshold(self, norms: DecoderNorms, m: int, threshold: Tensor | None) -> PerFeature | None:
        """Return what h must exceed for checkpoint m's decoder to read it; None if that depends on other features."""
        return None

    @property
    def auxk(self) -> AuxK | None:
        """Settings of the auxiliary loss on dead features; None for no such loss."""
        return None

    @property
    def threshold_lr_scale(self) -> float:
        """Learning rate of a learnt threshold, relative to that of the weights."""
        return 1.0

    def initial_threshold(self, features: int) -> Tensor | None:
        """Return the threshold before training: an nn.Parameter if it is learnt, a tensor if it is measured."""
        return None

    def scheduled_values(self, progress: TrainingProgress) -> dict[str, float | int]:
        """Return the values of the rule's schedules at a step, for the training log."""
        return {}

    def check(self, features: int) -> None:
        """Raise SettingError if the rule doesn't fit a dictionary of this size."""

    def check_trainable(self) -> None:
        """Raise SettingError if a crosscoder can't be trained with this rule."""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Sparsity:
        """Build a rule from the output of `to_dict`.

        Raises:
            InputError: No such rule has been imported.
            TypeError: The rule has no such setting.
        """
        settings = dict(settings)
        name, variants = settings.pop("rule"), cls.variants()
        if name not in variants:
            raise InputError(
                f"unknown sparsity rule {name!r}{nearest(name, variants)}; import the module of your own rules first"
            )
        return variants[name](**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule's name and settings as plain values."""
        return asdict(self)


def total_norms(norms: DecoderNorms) -> PerFeature:
    """Return s_i = sum_m ||d_m,i||: rules compare features by f_i s_i, which rescaling a feature doesn't change."""
    return norms.sum(0)


def count_active(f: BatchFeatures) -> Int[Tensor, ""]:
    """Count the active features of a batch. As integers they are counted many times faster; 0.0 has all bits zero."""
    return torch.count_nonzero(float_bits(f))


def float_bits(values: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """View floats as integers of the same width. Integers are ordered like the floats if no float is negative."""
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])


def where_positive(a: BatchFeatures, b: BatchFeatures, *, out: BatchFeatures) -> BatchFeatures:
    """Return a where b > 0, else 0, in one pass: the kernel of ReLU's backward pass.

    The result is written into `out`, which may be a or b, unless a requires gradients.
    """
    kernel = torch.ops.aten.threshold_backward
    return kernel(a, b, 0) if a.requires_grad else kernel.grad_input(a, b, 0, grad_input=out)
