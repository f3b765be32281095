"""The public names, each stated once; `__init__.py` imports them on first use."""

from .attribution.ablation import Ablation as Ablation
from .attribution.ablation import AblationConfig as AblationConfig
from .attribution.ablation import ablate as ablate
from .attribution.baselines import BASELINES as BASELINES
from .attribution.baselines import Baseline as Baseline
from .attribution.comparisons import Evolution as Evolution
from .attribution.comparisons import NormAndEffect as NormAndEffect
from .attribution.comparisons import Overlap as Overlap
from .attribution.comparisons import evolution as evolution
from .attribution.comparisons import norm_and_effect as norm_and_effect
from .attribution.comparisons import overlap as overlap
from .attribution.effects import AttributionConfig as AttributionConfig
from .attribution.effects import Effects as Effects
from .attribution.effects import attribute as attribute
from .attribution.effects import attribute_several as attribute_several
from .attribution.exact import Exact as Exact
from .attribution.exact import exact_effects as exact_effects
from .attribution.exact import validate as validate
from .attribution.features import FeatureTable as FeatureTable
from .attribution.methods import METHODS as METHODS
from .attribution.methods import Method as Method
from .attribution.path import IntegrationPath as IntegrationPath
from .attribution.relative import pairwise as pairwise
from .attribution.relative import relative as relative
from .crosscoder.crosscoder import Crosscoder as Crosscoder
from .crosscoder.crosscoder import CrosscoderConfig as CrosscoderConfig
from .crosscoder.formats.importing import import_crosscoder as import_crosscoder
from .crosscoder.formats.saelens import export_saelens as export_saelens
from .crosscoder.sparsity.rules import (
    L1 as L1,
)
from .crosscoder.sparsity.rules import (
    BatchTopK as BatchTopK,
)
from .crosscoder.sparsity.rules import (
    JumpReLU as JumpReLU,
)
from .crosscoder.sparsity.rules import (
    Sparsity as Sparsity,
)
from .crosscoder.sparsity.rules import (
    TopK as TopK,
)
from .evaluation.contexts import ContextsConfig as ContextsConfig
from .evaluation.contexts import FeatureContexts as FeatureContexts
from .evaluation.contexts import contexts as contexts
from .evaluation.diagnostics import Diagnostics as Diagnostics
from .evaluation.diagnostics import DiagnosticsConfig as DiagnosticsConfig
from .evaluation.diagnostics import diagnose as diagnose
from .evaluation.quality import EvaluationConfig as EvaluationConfig
from .evaluation.quality import Quality as Quality
from .evaluation.quality import evaluate as evaluate
from .evaluation.seeds import OverSeeds as OverSeeds
from .evaluation.seeds import matched_cosines as matched_cosines
from .evaluation.seeds import over_seeds as over_seeds
from .evaluation.survey import Survey as Survey
from .evaluation.survey import SurveyConfig as SurveyConfig
from .evaluation.survey import survey as survey
from .models.split import SplitLM as SplitLM
from .models.suite import Checkpoint as Checkpoint
from .models.suite import Suite as Suite
from .pipeline.execute import run as run
from .tasks.blimp import BlimpPairs as BlimpPairs
from .tasks.clams import ClamsPairs as ClamsPairs
from .tasks.columns import ColumnPairs as ColumnPairs
from .tasks.columns import JsonlPairs as JsonlPairs
from .tasks.multiblimp import MultiBlimpPairs as MultiBlimpPairs
from .tasks.pair_source import PairSource as PairSource
from .tasks.prompts import Prompts as Prompts
from .tasks.task import Pair as Pair
from .tasks.task import Task as Task
from .text.corpus import Corpus as Corpus
from .text.files import Files as Files
from .text.hub import HubText as HubText
from .text.packing import DocumentStart as DocumentStart
from .text.packing import Packed as Packed
from .text.positions import Positions as Positions
from .training.config import CrosscoderSpec as CrosscoderSpec
from .training.config import TrainConfig as TrainConfig
from .training.train import train as train
from .training.train import train_several as train_several

__version__: str
