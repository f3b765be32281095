"""crosstime: when did this model learn that, and which feature carries it?

The public names, in the order of the data's way. They are imported on first use, so `import crosstime` is instant.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstime.analysis.ablation import Ablation, ablate
    from crosstime.analysis.contexts import FeatureContexts, contexts
    from crosstime.analysis.diagnostics import Diagnostics, diagnose
    from crosstime.analysis.effects import Effects, attribute, attribute_several
    from crosstime.analysis.evolution import Evolution, evolution
    from crosstime.analysis.exact import Exact, exact_effects
    from crosstime.analysis.features import feature_table
    from crosstime.analysis.matching import matched_cosines
    from crosstime.analysis.norm_and_effect import NormAndEffect, norm_and_effect
    from crosstime.analysis.overlap import Overlap, overlap
    from crosstime.analysis.quality import Quality, evaluate
    from crosstime.analysis.relative import pairwise, relative
    from crosstime.analysis.seeds import OverSeeds, over_seeds
    from crosstime.analysis.survey import Survey, survey
    from crosstime.analysis.validation import validate
    from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
    from crosstime.crosscoder.formats.importing import import_crosscoder
    from crosstime.crosscoder.formats.saelens import export_saelens
    from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU, Sparsity, TopK
    from crosstime.data.blimp import load_blimp
    from crosstime.data.clams import load_clams
    from crosstime.data.corpus import Corpus
    from crosstime.data.hub_text import HubText
    from crosstime.data.jsonl import load_jsonl
    from crosstime.data.multiblimp import load_multiblimp
    from crosstime.data.packing import DocumentStart, Packed
    from crosstime.data.positions import Positions
    from crosstime.data.task import Pair, Prompts, Task
    from crosstime.lm.split import SplitLM
    from crosstime.lm.suite import Checkpoint, Suite
    from crosstime.training.config import Recipe, TrainConfig
    from crosstime.training.train import train, train_several

# Without it, on Linux, a step on a CPU spends as long on getting memory page by page as on passing over it. torch reads
# this at its first large tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = version("crosstime")

_HOME = {
    "Checkpoint": "lm.suite",
    "Suite": "lm.suite",
    "SplitLM": "lm.split",
    "Positions": "data.positions",
    "Corpus": "data.corpus",
    "HubText": "data.hub_text",
    "Packed": "data.packing",
    "DocumentStart": "data.packing",
    "Pair": "data.task",
    "Task": "data.task",
    "Prompts": "data.task",
    "load_jsonl": "data.jsonl",
    "load_blimp": "data.blimp",
    "load_clams": "data.clams",
    "load_multiblimp": "data.multiblimp",
    "survey": "analysis.survey",
    "Survey": "analysis.survey",
    "TrainConfig": "training.config",
    "Recipe": "training.config",
    "train": "training.train",
    "train_several": "training.train",
    "Crosscoder": "crosscoder.crosscoder",
    "CrosscoderConfig": "crosscoder.crosscoder",
    "import_crosscoder": "crosscoder.formats.importing",
    "export_saelens": "crosscoder.formats.saelens",
    "Sparsity": "crosscoder.sparsity.rules",
    "L1": "crosscoder.sparsity.rules",
    "TopK": "crosscoder.sparsity.rules",
    "BatchTopK": "crosscoder.sparsity.rules",
    "JumpReLU": "crosscoder.sparsity.rules",
    "evaluate": "analysis.quality",
    "Quality": "analysis.quality",
    "over_seeds": "analysis.seeds",
    "OverSeeds": "analysis.seeds",
    "matched_cosines": "analysis.matching",
    "diagnose": "analysis.diagnostics",
    "Diagnostics": "analysis.diagnostics",
    "attribute": "analysis.effects",
    "attribute_several": "analysis.effects",
    "Effects": "analysis.effects",
    "relative": "analysis.relative",
    "pairwise": "analysis.relative",
    "feature_table": "analysis.features",
    "evolution": "analysis.evolution",
    "Evolution": "analysis.evolution",
    "overlap": "analysis.overlap",
    "Overlap": "analysis.overlap",
    "norm_and_effect": "analysis.norm_and_effect",
    "NormAndEffect": "analysis.norm_and_effect",
    "ablate": "analysis.ablation",
    "Ablation": "analysis.ablation",
    "exact_effects": "analysis.exact",
    "Exact": "analysis.exact",
    "validate": "analysis.validation",
    "contexts": "analysis.contexts",
    "FeatureContexts": "analysis.contexts",
}

__all__ = [  # noqa: RUF022 (the order of the data's way)
    "Checkpoint",
    "Suite",
    "SplitLM",
    "Positions",
    "Corpus",
    "HubText",
    "Packed",
    "DocumentStart",
    "Pair",
    "Task",
    "Prompts",
    "load_jsonl",
    "load_blimp",
    "load_clams",
    "load_multiblimp",
    "survey",
    "Survey",
    "TrainConfig",
    "Recipe",
    "train",
    "train_several",
    "Crosscoder",
    "CrosscoderConfig",
    "import_crosscoder",
    "export_saelens",
    "Sparsity",
    "L1",
    "TopK",
    "BatchTopK",
    "JumpReLU",
    "evaluate",
    "Quality",
    "over_seeds",
    "OverSeeds",
    "matched_cosines",
    "diagnose",
    "Diagnostics",
    "attribute",
    "attribute_several",
    "Effects",
    "relative",
    "pairwise",
    "feature_table",
    "evolution",
    "Evolution",
    "overlap",
    "Overlap",
    "norm_and_effect",
    "NormAndEffect",
    "ablate",
    "Ablation",
    "exact_effects",
    "Exact",
    "validate",
    "contexts",
    "FeatureContexts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosstime' has no attribute {name!r}")
    return getattr(import_module(f"crosstime.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
