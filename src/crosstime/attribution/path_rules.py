"""The paths of indirect effects by name: where they end, and at which points gradients are taken, how weighted."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from crosstime.base.errors import InputError

Method = Literal["gradient", "integrated", "released", "paper"]
"""Where gradients are taken and how effects are aggregated: see `effects.attribute`."""
Baseline = Literal["bias", "mean", "patch"]
"""What features are compared with: see `baselines.ends`."""
PathRule = Literal["gauss-legendre", "midpoint", "trapezoid", "left"]


def nodes_and_weights(rule: PathRule, steps: int) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Nodes in [0, 1] and their weights, which sum to 1.

    The error falls with K steps as K^-2K for a smooth path (Gauss-Legendre), K^-2 (midpoint, trapezoid), or K^-1
    (left, the paper's).

    Raises:
        InputError: an unknown rule, or fewer steps than it needs.
    """
    least = 2 if rule == "trapezoid" else 1
    if steps < least:
        raise InputError(f"the {rule} rule needs at least {least} step{'s' * (least > 1)}; got {steps}")
    match rule:
        case "gauss-legendre":
            nodes, weights = np.polynomial.legendre.leggauss(steps)
            return (nodes + 1) / 2, weights / 2
        case "midpoint":
            return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
        case "trapezoid":
            weights = np.full(steps, 1 / (steps - 1))
            weights[[0, -1]] /= 2
            return np.linspace(0, 1, steps), weights
        case "left":
            return np.arange(steps) / steps, np.full(steps, 1 / steps)
        case _:
            raise InputError(f"unknown path rule {rule!r}: choose gauss-legendre, midpoint, trapezoid or left")
