"""What a report shows: the values of a run, and the view of its features on each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from crosstime.attribution.ablation import Ablation
from crosstime.attribution.effects import TaskTotals
from crosstime.attribution.exact import Exact
from crosstime.attribution.features import FLOOR, FeatureTable
from crosstime.base.errors import InputError
from crosstime.evaluation.contexts import FeatureContexts
from crosstime.evaluation.diagnostics import Diagnostics
from crosstime.evaluation.quality import Quality
from crosstime.evaluation.survey import Proposal, Survey
from crosstime.report.annotation import Annotation
from crosstime.report.format import readable, visible_token
from crosstime.report.plots.style import TrainingAxis, checkpoint_colours
from crosstime.report.trends import Shape, mean_similarity, pooled, positions, present, shape

MANY = 4
"""From this number of checkpoints on, the report follows features over training."""


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run for the notes."""

    source: str
    """Origin of the checkpoints: a Hub repository or the name of a folder."""
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
    """Surveyed tasks that share one sentence and one panel; `name` is their common name in the text."""

    name: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class GroupShape:
    """What the accuracy of a group did over training."""

    name: str
    group: TaskGroup
    accuracy: Float[np.ndarray, "C T"]
    """Accuracy on whole sentences, by surveyed checkpoint and task."""
    shape: Shape
    """Of the accuracy pooled over the pairs of all tasks."""


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; only title, run and checkpoints are required."""

    title: str
    run: RunFacts
    checkpoints: list[str]
    """The crosscoder's checkpoints, in order of training."""
    survey: Survey | None = None
    proposal: Proposal | None = None
    """Why these checkpoints; None if the user chose them."""
    quality: Quality | None = None
    features: FeatureTable | None = None
    totals: tuple[TaskTotals, ...] = ()
    ablation: Ablation | None = None
    contexts: Mapping[int, FeatureContexts] = field(default_factory=dict)
    diagnostics: Diagnostics | None = None
    exact: Exact | None = None
    validation: pa.Table | None = None
    """The table of `validation.parquet`: one row per task, pair of checkpoints and number of top features."""
    annotations: tuple[Annotation, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    groups: tuple[TaskGroup, ...] = ()
    """Surveyed tasks that belong together; every other task is a group of its own."""

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise InputError("a report needs at least one checkpoint")
        parts = {"features": self.features, "diagnostics": self.diagnostics, "exact effects": self.exact}
        for what, part in parts.items():
            if part is not None and part.checkpoints != self.checkpoints:
                raise InputError(
                    f"the {what} are of the checkpoints {', '.join(part.checkpoints)}, but the report is on "
                    f"{', '.join(self.checkpoints)}"
                )
        if self.survey is not None:
            unknown = [task for group in self.groups for task in group.tasks if task not in self.survey.tasks]
            if unknown:
                raise InputError(f"the survey has no task {unknown[0]!r}; it has {', '.join(self.survey.tasks)}")

    @property
    def many(self) -> bool:
        """Whether there are enough checkpoints to follow features over training."""
        return len(self.checkpoints) >= MANY

    @cached_property
    def colours(self) -> dict[str, str]:
        """Checkpoint -> colour."""
        return dict(zip(self.checkpoints, checkpoint_colours(len(self.checkpoints)), strict=True))

    @cached_property
    def axis(self) -> TrainingAxis:
        """The axis of training with the crosscoder's checkpoints, by the tokens that the survey gives for them."""
        survey = self.survey
        tokens = dict(zip(survey.checkpoints, survey.tokens, strict=True)) if survey is not None else {}
        return TrainingAxis.from_tokens(self.checkpoints, [tokens.get(name) for name in self.checkpoints])

    @cached_property
    def group_shapes(self) -> list[GroupShape]:
        """The groups in the order of the page: rises in the order of training, then dips, then flat accuracies."""
        survey = self.survey
        if survey is None:
            return []
        grouped = {task for group in self.groups for task in group.tasks}
        alone = [TaskGroup(task, (task,)) for task in survey.tasks if task not in grouped]
        places = positions(survey.tokens)
        shapes = []
        for group in (*self.groups, *alone):
            columns = [survey.tasks.index(task) for task in group.tasks]
            n_pairs = [survey.n_pairs[column] for column in columns]
            accuracy = np.asarray(survey.sentence_accuracy, dtype=float)[:, columns]
            whole = shape(pooled(accuracy, n_pairs), sum(n_pairs), places)
            shapes.append(GroupShape(readable(group.name), group, accuracy, whole))
        return sorted(shapes, key=lambda one: one.shape.order)

    @cached_property
    def tasks(self) -> dict[str, TaskFeatures]:
        """Attributed task -> its features, in the order of the groups, then of attribution."""
        if self.features is None:
            return {}
        groups = [group.name for group in self.group_shapes]
        rank = {task: (*groups, readable(task)).index(readable(task)) for task in self.features.tasks}
        return {task: TaskFeatures.from_data(self, task) for task in sorted(rank, key=rank.__getitem__)}

    @property
    def task_names(self) -> list[str]:
        """Readable names of the attributed tasks."""
        return [readable(task) for task in self.tasks]

    @cached_property
    def directions(self) -> Float[np.ndarray, "M M"] | None:
        """Mean cosine of two checkpoints' decoder vectors, over the features that fire and are present at both."""
        if self.diagnostics is None or not self.tasks:
            return None
        features = next(iter(self.tasks.values()))
        is_present = present(features.rel_dec) & (features.frequency > 0)
        return mean_similarity(self.diagnostics.cosine[..., features.feature], is_present)

    @cached_property
    def decoder_labels(self) -> dict[int, str]:
        """Feature -> "decoder label: persistent"; empty without diagnostics."""
        labels = self.diagnostics.label if self.diagnostics is not None else []
        return {feature: f"decoder label: {label}" for feature, label in enumerate(labels)}

    @cached_property
    def notes(self) -> dict[int, str]:
        """Feature -> one line for hover texts: its decoder label, and the tokens promoted at the last checkpoint."""
        last = self.checkpoints[-1]
        notes = dict(self.decoder_labels)
        for feature in self.contexts:
            tokens = self.promotes(feature, last, 4)
            promotes = f"promotes {', '.join(tokens)} ({last})" if tokens else ""
            notes[feature] = "; ".join(filter(None, (notes.get(feature), promotes)))
        return notes

    def fires_on(self, feature: int, limit: int = 3) -> list[str]:
        """Return the tokens on which a feature peaks, the most frequent first."""
        contexts = self.contexts[feature].contexts if feature in self.contexts else []
        peaks = Counter(visible_token(context.tokens[context.peak]) for context in contexts)
        return [text for text, _ in peaks.most_common(limit)]

    def promotes(self, feature: int, checkpoint: str, limit: int = 3) -> list[str]:
        """Return the first tokens that a feature promotes at a checkpoint."""
        promoted = self.contexts[feature].promoted.get(checkpoint, []) if feature in self.contexts else []
        return [visible_token(text) for text, _ in promoted[:limit]]


_MEASURES = ("ie", "ie_low", "ie_high", "rel_ie", "rel_ie_low", "rel_ie_high")
_MEASURES += ("sign_consistency", "decoder_norm", "rel_dec")


@dataclass(frozen=True)
class TaskFeatures:
    """All features on one task; a "row" is the index of a feature in these arrays."""

    data: ReportData = field(repr=False)
    task: str
    feature: Int[np.ndarray, " F"]
    classes: list[str]
    lifecycle: list[str]
    frequency: Float[np.ndarray, " F"]
    ie: Float[np.ndarray, "M F"]
    ie_low: Float[np.ndarray, "M F"]
    ie_high: Float[np.ndarray, "M F"]
    rel_ie: Float[np.ndarray, "M F"]
    rel_ie_low: Float[np.ndarray, "M F"]
    rel_ie_high: Float[np.ndarray, "M F"]
    sign_consistency: Float[np.ndarray, "M F"]
    decoder_norm: Float[np.ndarray, "M F"]
    rel_dec: Float[np.ndarray, "M F"]

    @classmethod
    def from_data(cls, data: ReportData, task: str) -> TaskFeatures:
        """Read the features of a task from the feature table."""
        table = data.features
        assert table is not None
        return cls(
            data,
            task,
            feature=table.features(task).astype(np.int64),
            classes=table.column(task, "class"),
            lifecycle=table.column(task, "lifecycle"),
            frequency=np.array(table.column(task, "frequency"), np.float64),
            **{name: table.array(task, name) for name in _MEASURES},
        )

    @property
    def name(self) -> str:
        """The readable name of the task."""
        return readable(self.task)

    @cached_property
    def strength(self) -> Float[np.ndarray, " F"]:
        """The largest |IE| of each feature over the checkpoints."""
        return np.nan_to_num(np.abs(self.ie)).max(axis=0)

    @cached_property
    def share(self) -> Float[np.ndarray, "M F"]:
        """|IE| over the sum of |IE| of all features, by checkpoint."""
        size = np.nan_to_num(np.abs(self.ie))
        return size / np.maximum(size.sum(axis=1, keepdims=True), 1e-30)

    def strongest(self, limit: int) -> Int[np.ndarray, " N"]:
        """Return the rows of the features with the largest |IE| at any checkpoint, without those of no effect."""
        order = np.argsort(-self.strength, kind="stable")[:limit]
        return order[self.strength[order] > 0]

    def top(self, checkpoint: int, k: int) -> list[int]:
        """Return the rows of the `k` features with the largest |IE| at a checkpoint, without those of no effect."""
        order = np.argsort(-self.share[checkpoint], kind="stable")[:k]
        return [int(row) for row in order if self.share[checkpoint, row] > 0]

    @cached_property
    def has_class(self) -> Bool[np.ndarray, " F"]:
        """Features with an effect large enough for a class."""
        return np.array([life not in ("negligible", "undefined") for life in self.lifecycle], dtype=bool)

    def pairwise(self, before: int, after: int) -> Float[np.ndarray, " F"]:
        """Return the pairwise RelIE of two checkpoints, |IE_after| / (|IE_before| + |IE_after|).

        NaN if the effect is negligible at both: below `FLOOR` of the sum over all features.
        """
        size = np.abs(self.ie[[before, after]])
        counted = (self.share[[before, after]] >= FLOOR).any(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(counted, size[1] / size.sum(axis=0), np.nan)

    def count_for(self, checkpoint: int, part: float) -> int:
        """Return how many top features make up a part of the sum of |IE| at a checkpoint; 0 if no feature has any."""
        share = np.sort(self.share[checkpoint])[::-1]
        if share.sum() == 0:
            return 0
        return int(np.searchsorted(np.cumsum(share), part) + 1)
