"""The sections of the page: a registry from which navigation, page and data files follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosstime.attribution.baselines import BASELINES
from crosstime.attribution.methods import METHODS
from crosstime.base.errors import SettingError
from crosstime.base.registry import Registry
from crosstime.report import tables
from crosstime.report.annotation import agreements
from crosstime.report.data import ReportData, TaskFeatures
from crosstime.report.plots import ablation, crosscoder, diagnosis, effects, survey, trajectories
from crosstime.report.plots.style import Figure
from crosstime.report.story import task_story
from crosstime.report.table_data import row_limit
from crosstime.report.trends import find_turn

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Add one with `SECTIONS.add(section)`, in a plugin as well as here.

    The template is rendered with `data`, `section`, `tasks` (readable names of the attributed tasks), `figures`,
    `task_figures` (by key), the `values`, the macros of macros.html.j2 as `m`, and the filters of `build.environment`.

    Example:
        >>> Section(
        ...     "seed",
        ...     "Seed",
        ...     "Which seed was used",
        ...     "{{ m.head(section) }}<p>The crosscoder was initialised with seed {{ seed }}.</p>",
        ...     values=lambda data: {"seed": data.run.seed},
        ... ).order
        95
    """

    name: str
    """Identifies the section on the page, as in `#name`."""
    label: str
    """In the navigation."""
    title: str
    template: str | Path
    """Jinja source, or the path of a file that contains it."""
    present: Callable[[ReportData], bool] = lambda _: True
    """Whether the page has this section."""
    figures: Callable[[ReportData], Mapping[str, Sequence[Figure]]] = lambda _: {}
    """Lists of figures, under the names by which the template refers to them."""
    task_figures: Callable[[TaskFeatures], Sequence[Figure]] = lambda _: ()
    """Figures that are drawn anew for each task; the same keys for all tasks."""
    values: Callable[[ReportData], Mapping[str, Any]] = lambda _: {}
    """Further values for the template."""
    order: int = 95
    """Position on the page: the sections of crosstime have 10, 20, ... 100, the last being the notes."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            raise SettingError("name", f"must consist of lower-case letters, digits and hyphens, not {self.name!r}")

    @property
    def source(self) -> str:
        """The source of the template."""
        return self.template.read_text(encoding="utf-8") if isinstance(self.template, Path) else self.template


SECTIONS: Registry[Section] = Registry("section of the report")


def shown_sections(data: ReportData) -> list[Section]:
    """Return the sections that a report has, in order."""
    return sorted((section for section in SECTIONS if section.present(data)), key=lambda section: section.order)


# --------------------------------------------------------------------------------- the sections of crosstime


def _effect_figures(features: TaskFeatures) -> list[Figure]:
    figures = [effects.relative_effects(features)]
    if len(features.data.checkpoints) > 1:
        figures += [effects.effects_over_training(features), effects.decoder_against_effect(features)]
    if len(features.data.checkpoints) > 2:
        figures.append(effects.pairwise_effects(features))
    return figures


for _section in (
    Section(
        "accuracy",
        "Accuracy",
        "When the model learnt it",
        TEMPLATES / "accuracy.html.j2",
        present=lambda data: bool(data.group_shapes),
        figures=lambda data: {"accuracy": survey.accuracy(data)},
        order=10,
    ),
    Section(
        "top-features",
        "Top features",
        "Which features matter most",
        TEMPLATES / "top_features.html.j2",
        present=lambda data: bool(data.tasks),
        values=lambda data: {"stories": [task_story(features) for features in data.tasks.values()]},
        order=20,
    ),
    Section(
        "checkpoints",
        "Checkpoints",
        "Which checkpoints were compared",
        TEMPLATES / "checkpoints.html.j2",
        present=lambda data: data.survey is not None,
        figures=lambda data: {"similarity": survey.similarity(data), "perplexity": survey.perplexity(data)},
        order=30,
    ),
    Section(
        "crosscoder",
        "Crosscoder",
        "How faithful the crosscoder is",
        TEMPLATES / "crosscoder.html.j2",
        present=lambda data: bool(data.quality or data.training or (data.tasks and len(data.checkpoints) > 1)),
        figures=lambda data: {
            "frequency": crosscoder.frequency(data),
            "training": crosscoder.training_curves(data),
            "decoder": crosscoder.decoder_norms(data),
        },
        values=lambda data: {"quality_rows": tables.quality_rows(data)},
        order=40,
    ),
    Section(
        "effects",
        "Effects",
        "Where in training the effect lies",
        TEMPLATES / "effects.html.j2",
        present=lambda data: bool(data.tasks),
        figures=lambda data: {"overlap": effects.overlaps(data)},
        task_figures=_effect_figures,
        values=lambda data: {
            "class_counts": tables.class_counts(data),
            "pair_counts": tables.pair_counts(data),
            "decoder_rows": tables.decoder_rows(data),
            "completeness": tables.completeness_tables(data),
            "class_colour": lambda label: effects.class_colour(label, data),
        },
        order=50,
    ),
    Section(
        "trajectories",
        "Trajectories",
        "How features change over training",
        TEMPLATES / "trajectories.html.j2",
        present=lambda data: bool(data.tasks) and data.many,
        figures=lambda data: {
            "population": trajectories.populations(data),
            "directions": trajectories.directions(data),
            "neighbours": trajectories.neighbours(data),
        },
        values=lambda data: {"turn": find_turn(data.directions) if data.directions is not None else None},
        order=60,
    ),
    Section(
        "diagnostics",
        "Diagnostics",
        "Are the classes real?",
        TEMPLATES / "diagnostics.html.j2",
        present=lambda data: bool(data.tasks) and data.diagnostics is not None,
        figures=lambda data: {"scaling": diagnosis.latent_scaling(data)},
        values=lambda data: {
            "label_counts": tables.label_counts(data),
            "label_colours": diagnosis.LABEL_COLOURS,
        },
        order=70,
    ),
    Section(
        "features",
        "Features",
        "All features",
        TEMPLATES / "features.html.j2",
        present=lambda data: bool(data.tasks),
        values=lambda data: {
            "row_limit": row_limit(len(data.checkpoints)),
            "agreements": agreements(data.annotations),
        },
        order=80,
    ),
    Section(
        "ablation",
        "Ablation",
        "Does ablation agree?",
        TEMPLATES / "ablation.html.j2",
        present=lambda data: any(part is not None for part in (data.ablation, data.exact, data.validation)),
        figures=lambda data: {
            "single": ablation.attribution_against_ablation(data),
            "joint": ablation.joint_ablation(data),
        },
        task_figures=ablation.exact_effects,
        values=lambda data: {
            "exact": tables.exact_table(data),
            "validation_rows": tables.validation_rows(data.validation),
        },
        order=90,
    ),
    Section(
        "notes",
        "Notes",
        "Notes",
        TEMPLATES / "notes.html.j2",
        values=lambda data: {
            "attribution": [
                text
                for totals in data.totals[:1]
                for text in (BASELINES[totals.baseline].sentence, METHODS[totals.method].sentence)
            ]
        },
        order=100,
    ),
):
    SECTIONS.add(_section)
