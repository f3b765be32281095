"""The rules that come with crosstime. To import this module makes them known by name."""

from __future__ import annotations

from crosstime.crosscoder.sparsity.batch_topk import BatchTopK
from crosstime.crosscoder.sparsity.fixed import FixedThresholds
from crosstime.crosscoder.sparsity.jumprelu import JumpReLU
from crosstime.crosscoder.sparsity.l1 import L1
from crosstime.crosscoder.sparsity.rule import Sparsity
from crosstime.crosscoder.sparsity.topk import TopK

__all__ = ["L1", "BatchTopK", "FixedThresholds", "JumpReLU", "Sparsity", "TopK"]
