"""What a report is made from: values of the analysis, and a few facts about the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from crosstime.attribution.ablation import Ablation
from crosstime.attribution.effects import TaskTotals
from crosstime.attribution.exact import Exact
from crosstime.attribution.features import FeatureTable
from crosstime.base.errors import InputError
from crosstime.evaluation.contexts import FeatureContexts
from crosstime.evaluation.diagnostics import Diagnostics
from crosstime.evaluation.quality import Quality
from crosstime.evaluation.survey import Proposal, Survey
from crosstime.report.annotation import Annotation


@dataclass(frozen=True)
class RunFacts:
    """The facts that a reader needs to know what was run."""

    source: str
    """Where the checkpoints come from: a Hub repository or the name of a folder."""
    layer: int
    """The block whose output was compared, counted from 0."""
    n_features: int
    tokens_trained: int
    """Tokens that the crosscoder was trained on; 0 if the run didn't train it."""
    seed: int
    seconds: tuple[tuple[str, float], ...] = ()
    """(stage, seconds), in the order of the stages."""
    version: str = ""
    """Version of crosstime."""


@dataclass(frozen=True)
class TrainingPoint:
    """One line of the training log."""

    tokens: int
    loss: float
    l0: float
    explained_variance: float


@dataclass(frozen=True)
class TaskGroup:
    """Surveyed tasks that are told as one story and drawn in one panel; the name is how the text calls them."""

    name: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Only the title, the facts and the chosen checkpoints must be there."""

    title: str
    run: RunFacts
    chosen: list[str]
    """The crosscoder's checkpoints, in order of training."""
    survey: Survey | None = None
    proposal: Proposal | None = None
    """Why these checkpoints; None where the user chose them."""
    quality: Quality | None = None
    features: FeatureTable | None = None
    tasks: tuple[TaskTotals, ...] = ()
    ablation: Ablation | None = None
    contexts: Mapping[int, FeatureContexts] = field(default_factory=dict)
    diagnostics: Diagnostics | None = None
    exact: Exact | None = None
    validation: pa.Table | None = None
    """The table of `validation.parquet`: one row per task, pair of checkpoints and number of top features."""
    annotations: tuple[Annotation, ...] = ()
    """What people say of features."""
    training: tuple[TrainingPoint, ...] = ()
    groups: tuple[TaskGroup, ...] = ()
    """Surveyed tasks that belong together. Tasks in no group stand alone."""

    def __post_init__(self) -> None:
        if not self.chosen:
            raise InputError("a report needs at least one chosen checkpoint")
        for what, found in (
            ("features", self.features),
            ("diagnostics", self.diagnostics),
            ("exact effects", self.exact),
        ):
            if found is not None and found.checkpoints != self.chosen:
                raise InputError(f"the {what} are of {', '.join(found.checkpoints)}, not of the chosen checkpoints")
        if self.survey is not None:
            unknown = [task for group in self.groups for task in group.tasks if task not in self.survey.tasks]
            if unknown:
                raise InputError(f"the survey has no task {unknown[0]!r}; it has {', '.join(self.survey.tasks)}")

    @property
    def tokens(self) -> list[int | None]:
        """Tokens that the chosen checkpoints have seen, as the survey states them; None where nobody does."""
        known = dict(zip(self.survey.checkpoints, self.survey.tokens, strict=True)) if self.survey is not None else {}
        return [known.get(name) for name in self.chosen]

    @property
    def survey_groups(self) -> tuple[TaskGroup, ...]:
        """The groups, then every surveyed task that is in none, as a group of its own."""
        if self.survey is None:
            return ()
        grouped = {task for group in self.groups for task in group.tasks}
        return self.groups + tuple(TaskGroup(task, (task,)) for task in self.survey.tasks if task not in grouped)
