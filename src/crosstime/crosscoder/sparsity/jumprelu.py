"""Thresholds per feature: JumpReLU, which learns them and gates each checkpoint by itself, and fixed ones.

Rajamanoharan et al. 2024; Ge et al. 2025 (arXiv 2509.17196).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from crosstime.base.errors import SettingError
from crosstime.crosscoder.sparsity.l1 import PenaltyRule
from crosstime.crosscoder.sparsity.rule import (
    Activations,
    BatchFeatures,
    DecoderNorms,
    Features,
    PerFeature,
    RuleGradients,
    Scratch,
    Sparsity,
    TrainingProgress,
    where_positive,
)

CACHED_VALUES = 1 << 18
"""Activations that a CPU processes at a time: what is computed from them stays in its cache."""


@dataclass(frozen=True)
class JumpReLU(PenaltyRule):
    """Checkpoint m's decoder reads f_i if f_i ||d_m,i|| > theta_i: a feature with a small decoder vector is off there.

    The penalty is the tanh-quadratic one of Ge et al. 2025 (arXiv 2509.17196): weight * sum_i q_i (1 + q_i / frequency)
    with q_i = mean over tokens and checkpoints of tanh(stretch f_m,i ||d_m,i||). The crosscoder's `threshold` [F] holds
    log theta; its gradient is the straight-through estimate within a window around theta.

    Example:
        >>> import torch
        >>> from crosstime import JumpReLU
        >>> rule = JumpReLU(threshold=0.5)
        >>> norms = torch.tensor([1.0, 0.1])  # of two features, at one checkpoint
        >>> rule.gate(torch.tensor([2.0, 2.0]), norms, rule.initial_threshold(2)).detach()
        tensor([2., 0.])
    """

    rule: str = field(default="jumprelu", init=False)
    gates_checkpoints: ClassVar[bool] = True
    weight: float = 0.3
    warmup: float = 0.1
    stretch: float = 4.0
    """Steepness of the tanh: above it, a feature is penalised for firing, not for how strongly it fires."""
    frequency: float = 0.01
    """Firing frequency above which the penalty of a feature grows quadratically."""
    threshold: float = 0.1
    """Initial theta of every feature."""
    window: float = 4.0
    """Width of the window around theta in which the threshold gets a gradient."""
    threshold_lr: float = 0.1
    """Learning rate of the thresholds, relative to that of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stretch", "frequency", "threshold", "window", "threshold_lr"):
            if not getattr(self, name) > 0:
                raise SettingError(name, f"must be positive, not {getattr(self, name)}")

    @property
    def threshold_lr_scale(self) -> float:
        return self.threshold_lr

    def initial_threshold(self, features: int) -> Tensor:
        """Return log theta of every feature, a parameter."""
        return nn.Parameter(torch.full((features,), math.log(self.threshold)))

    def select(self, h: Features, norms: DecoderNorms, threshold: Tensor | None) -> Features:
        """Return h where a feature is active at any checkpoint, which is the one of its largest decoder norm."""
        return self.gate(h, norms.amax(0), threshold)

    def gate(self, f: Features, norms: PerFeature, threshold: Tensor | None) -> Features:
        assert threshold is not None
        return f * (f * norms > threshold.exp())

    def activation_threshold(self, norms: DecoderNorms, m: int, threshold: Tensor | None) -> PerFeature:
        assert threshold is not None
        return threshold.exp() / norms[m]

    def activate(
        self,
        h: BatchFeatures,
        norms: DecoderNorms,
        threshold: Tensor | None,
        progress: TrainingProgress,
        scratch: Scratch,
    ) -> Activations:
        assert threshold is not None
        return _GatedActivations(self, h, norms, threshold.exp(), self.penalty_coefficient(progress), scratch)


class _GatedActivations(Activations):
    """Activations of each checkpoint by itself.

    The gradient of theta is -theta / (window ||d||) times that of the activations within the window, and 0 elsewhere.
    Gates, penalty and gradients are computed in float32 for some tokens at a time, so the only matrices of size [B, F]
    are the activations and their gradients.
    """

    def __init__(
        self,
        rule: JumpReLU,
        h: BatchFeatures,
        norms: DecoderNorms,
        theta: PerFeature,
        coefficient: float,
        scratch: Scratch,
    ) -> None:
        self._rule, self._h, self._norms, self._theta = rule, h, norms, theta
        self.decoder_inputs = [scratch.empty(f"gated {m}", h.shape, h) for m in range(len(norms))]
        q = torch.zeros_like(theta)
        for tokens in self._chunks():
            chunk = h[tokens].float()
            for f, norm in zip(self.decoder_inputs, norms, strict=True):
                gated = chunk * (chunk * norm > theta)
                f[tokens] = gated
                q += torch.tanh(gated.mul_(rule.stretch * norm)).sum(0)
        count = len(h) * len(norms)
        q /= count
        self.penalty = coefficient * (q * (1 + q / rule.frequency)).sum()
        self._q_gradient = coefficient * (1 + 2 * q / rule.frequency) * rule.stretch / count
        self.f = reduce(torch.maximum, self.decoder_inputs)
        self.feature_sums = self.f.sum(0).float()

    def backward(self, gradients: Sequence[BatchFeatures]) -> RuleGradients:
        rule, theta, h_gradient = self._rule, self._theta, gradients[0]
        norms_gradient, theta_gradient = torch.zeros_like(self._norms), torch.zeros_like(theta)
        for tokens in self._chunks():
            chunk = self._h[tokens].float()
            total = torch.zeros_like(chunk)
            for m, (f, norm) in enumerate(zip(self.decoder_inputs, self._norms, strict=True)):
                gated = f[tokens].float()
                penalty = (1 - torch.tanh(gated * (rule.stretch * norm)).square_()).mul_(self._q_gradient)
                norms_gradient[m] += (penalty * gated).sum(0)
                gradient = penalty.mul_(norm).add_(gradients[m][tokens])
                in_window = ((chunk * norm - theta).abs_() < rule.window / 2) & (chunk * norm > 0)
                # A checkpoint whose decoder vector is 0 reads nothing and moves no threshold.
                per_unit = torch.where(norm > 0, -theta / (rule.window * norm.clamp_min(1e-12)), 0.0)
                theta_gradient += (gradient * in_window).sum(0) * per_unit
                total += where_positive(gradient, gated, out=gradient)
            h_gradient[tokens] = total
        return RuleGradients(h_gradient, norms_gradient, theta_gradient * theta)

    def _chunks(self) -> Iterator[slice]:
        """Yield tokens whose values fit a CPU's cache; elsewhere, as many as need no more memory than one matrix."""
        size = max(1, CACHED_VALUES // self._h.shape[1]) if self._h.device.type == "cpu" else len(self._h) // 8 + 1
        return (slice(start, start + size) for start in range(0, len(self._h), size))


@dataclass(frozen=True)
class FixedThresholds(Sparsity):
    """Keep h_i if h_i > theta_i, the crosscoder's `threshold` [F]: for imported crosscoders; it can't be trained."""

    rule: str = field(default="fixed", init=False)

    def initial_threshold(self, features: int) -> Tensor:
        """Return 0 for every feature, so that all active ones pass."""
        return torch.zeros(features)

    def select(self, h: Features, norms: DecoderNorms, threshold: Tensor | None) -> Features:
        assert threshold is not None
        return h * (h > threshold)

    def activation_threshold(self, norms: DecoderNorms, m: int, threshold: Tensor | None) -> PerFeature:
        assert threshold is not None
        return threshold

    def check_trainable(self) -> None:
        raise SettingError("rule", '"fixed" is for imported crosscoders and can\'t be trained: choose another rule')
