"""The rules that come with crosstime. Importing this module registers them by name."""

from __future__ import annotations

from crosstime.crosscoder.sparsity.jumprelu import FixedThresholds, JumpReLU
from crosstime.crosscoder.sparsity.l1 import L1
from crosstime.crosscoder.sparsity.rule import Sparsity
from crosstime.crosscoder.sparsity.topk import BatchTopK, TopK

__all__ = ["L1", "BatchTopK", "FixedThresholds", "JumpReLU", "Sparsity", "TopK"]
