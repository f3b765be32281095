"""Builds the report: a folder that opens from the file system, without a server and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from plotly.offline import get_plotlyjs

from crosstime.attribution.effects import TaskTotals
from crosstime.attribution.overlap import overlap as compare
from crosstime.base.errors import InputError
from crosstime.base.units import format_duration, format_tokens
from crosstime.evaluation.survey import Survey
from crosstime.report import summary, words
from crosstime.report.agreement import agreements
from crosstime.report.colour import checkpoint_colours
from crosstime.report.data import ReportData
from crosstime.report.diagnosis import LABEL_WORDS
from crosstime.report.directions import mean_similarity, turn
from crosstime.report.features import LIFECYCLE_WORDS, TaskFeatures, by_task, class_group, class_words, pairs
from crosstime.report.plots import (
    ablation,
    crosscoder,
    decoder,
    effects,
    evolution,
    matrix,
    overlap,
    pairwise,
    survey,
    trajectories,
)
from crosstime.report.plots import diagnosis as plots_of_diagnosis
from crosstime.report.plots import exact as plots_of_exact
from crosstime.report.plots.axis import TokenAxis
from crosstime.report.plots.figure import Figure
from crosstime.report.population import by_decoder, by_effect, present
from crosstime.report.rows import Extras, card_chunks, decoded, listed, remarks, row_limit, table_rows, tiles
from crosstime.report.script import assignment, to_json
from crosstime.report.story import GroupStory, group_stories, lead, promotes, task_story

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "figures.js", "trajectories.js", "table.js", "card.js", "main.js")
TOPS = (10, 100)
"""Top features of each task whose overlap is looked at, as in arXiv 2509.05291."""
MANY = 4
"""Checkpoints from which on features are followed over training."""


def build_report(data: ReportData, folder: Path) -> Path:
    """Writes the report into an existing, empty folder.

    Args:
        data: the values to show; what is missing is left out of the page.
        folder: becomes `index.html`, `assets/` (style, scripts, plotly) and `data/` (script files with the data:
            one a task for the tables, and chunks of cards that load when a card is opened).

    Returns:
        The path of `index.html`.

    Raises:
        InputError: the folder does not exist or is not empty.
    """
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(f"{folder}: a report is written into an existing, empty folder")
    parts = _Parts.of(data)
    figures = _figures(parts)
    _write_assets(folder / "assets")
    _write_data(folder / "data", parts, figures)
    page = folder / "index.html"
    page.write_text(_render(parts, figures), encoding="utf-8", newline="\n")
    return page


@dataclass(frozen=True)
class _Parts:
    """The data, and what all sections take from it."""

    data: ReportData
    tasks: dict[str, TaskFeatures]
    """The attributed tasks, in the order of the page."""
    colours: dict[str, str]
    """Compared checkpoint -> colour."""
    groups: list[GroupStory]
    axis: TokenAxis
    """Where the compared checkpoints stand in training."""
    extras: Extras
    labels: list[str]
    """The classes of the features that are listed for any task."""

    @classmethod
    def of(cls, data: ReportData) -> _Parts:
        groups = group_stories(data.survey, data.survey_groups) if data.survey is not None else []
        tasks = _in_order(by_task(data.features) if data.features is not None else {}, groups)
        return cls(
            data,
            tasks,
            dict(zip(data.chosen, checkpoint_colours(len(data.chosen)), strict=True)),
            groups,
            TokenAxis.of(data.chosen, data.tokens),
            Extras(data.contexts, data.diagnostics, data.exact, remarks(data.annotations)),
            sorted({features.classes[row] for features in tasks.values() for row in listed(features)}),
        )

    @cached_property
    def directions(self) -> Float[np.ndarray, "M M"] | None:
        """Mean cosine of two checkpoints' decoder vectors, over the features that fire and are present at both."""
        if self.data.diagnostics is None or not self.tasks:
            return None
        features = next(iter(self.tasks.values()))
        there = present(features.rel_dec) & (features.frequency > 0)
        return mean_similarity(self.data.diagnostics.cosine[..., features.feature].transpose(2, 0, 1), there)

    @cached_property
    def decoder_labels(self) -> dict[int, str]:
        """Feature -> "by its decoder persistent"; empty without diagnostics."""
        found = self.data.diagnostics
        return {i: f"by its decoder {label}" for i, label in enumerate(found.label)} if found is not None else {}

    @property
    def many(self) -> bool:
        """Whether features have a course over training, and not only an earlier and a later."""
        return len(self.colours) >= MANY


def _in_order(tasks: Mapping[str, TaskFeatures], groups: Sequence[GroupStory]) -> dict[str, TaskFeatures]:
    """The attributed tasks in the order in which the groups are told; others after them, as they come."""
    names = [group.name for group in groups]
    place = {task: names.index(words.name(task)) if words.name(task) in names else len(names) for task in tasks}
    return {task: tasks[task] for task in sorted(tasks, key=lambda task: place[task])}


def _figures(parts: _Parts) -> dict[str, list[Figure]]:
    """The figures of each section, in the order of the page; those that change with the task are not among them."""
    data, tasks, colours = parts.data, parts.tasks, parts.colours
    figures: dict[str, list[Figure]] = {}
    if data.survey is not None:
        figures |= _survey_figures(data.survey, parts)
    if data.quality is not None:
        figures["frequency"] = [crosscoder.frequency(data.quality)]
    if data.training:
        figures["training"] = crosscoder.training_curves(data.training)
    if tasks and len(colours) > 1:
        first = next(iter(tasks.values()))
        maps = crosscoder.decoder_maps(first) if parts.many else crosscoder.decoder_histograms(first, colours)
        figures["alone"], figures["pairs"] = maps
    if tasks and parts.many:
        counted = {"By decoder norm": by_decoder(next(iter(tasks.values())))}
        counted |= {f"By IE: {words.name(task)}": by_effect(features) for task, features in tasks.items()}
        figures["population"] = [trajectories.populations(counted, parts.axis, colours)]
        if parts.directions is not None:
            found = parts.directions
            figures["directions"] = [trajectories.directions(found, turn(found), colours)]
            figures["neighbours"] = [trajectories.neighbours(found, parts.axis, colours)]
    if len(tasks) > 1:
        ie = {task: features.ie for task, features in tasks.items()}
        figures["overlap"] = [overlap.overlaps(compare(ie, data.chosen, k), k) for k in TOPS]
    if data.diagnostics is not None:
        figures["scaling"] = [plots_of_diagnosis.latent_scaling(data.diagnostics)]
    if data.ablation is not None:
        figures["ablation"] = [ablation.ablation_scatter(data.ablation, colours)]
        figures["joint"] = ablation.ablation_joint(data.ablation, colours)
    return figures


def _survey_figures(found: Survey, parts: _Parts) -> dict[str, list[Figure]]:
    known = np.asarray(found.sentence_accuracy, dtype=float)
    lowest = max(0.0, np.floor(10 * np.nanmin([*known.ravel(), 0.45])) / 10)
    by_name = {words.name(group.name): group for group in parts.data.survey_groups}
    return {
        "accuracy": [
            survey.accuracy(found, by_name[story.name], f"accuracy-{i}", parts.colours, float(lowest))
            for i, story in enumerate(parts.groups)
        ],
        "perplexity": [survey.perplexity(found, parts.colours)],
        "similarity": [survey.similarity(found, parts.colours)],
    }


def _task_figures(features: TaskFeatures, parts: _Parts) -> dict[str, Figure]:
    """The figures that change with the task, by their place in the page."""
    notes = _notes(features, parts)
    figures = {"relative": effects.relative_effects(features, parts.colours, notes)}
    if len(parts.colours) > 1:
        figures["evolution"] = evolution.effects_over_time(features, parts.axis, parts.colours, notes)
        figures["decoder"] = decoder.dec_against_ie(features, parts.colours, parts.decoder_labels)
    if len(parts.colours) > 2:
        figures["pairwise"] = pairwise.pairwise_effects(features, parts.colours, parts.decoder_labels)
    if parts.data.exact is not None:
        figures["exact"] = plots_of_exact.exact_effects(parts.data.exact, features.task, parts.colours)
    return figures


def _notes(features: TaskFeatures, parts: _Parts) -> dict[int, str]:
    """Feature -> what its decoder says, and which tokens it promotes, in one line."""
    notes = {}
    for feature in features.feature.tolist():
        pieces = [parts.decoder_labels.get(feature, "")]
        if feature in parts.data.contexts:
            pieces.append(_promoted_line(parts.data, feature))
        line = "; ".join(filter(None, pieces))
        if line:
            notes[feature] = line
    return notes


def _write_assets(folder: Path) -> None:
    folder.mkdir()
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8", newline="\n")
    for source in sorted((HERE / "assets").iterdir()):
        if source.suffix in (".css", ".js"):
            shutil.copyfile(source, folder / source.name)


def _write_data(folder: Path, parts: _Parts, figures: Mapping[str, list[Figure]]) -> None:
    folder.mkdir()
    for i, features in enumerate(parts.tasks.values()):
        entry = {
            "rows": table_rows(features, parts.extras, parts.labels),
            "figures": {place: figure.to_dict() for place, figure in _task_figures(features, parts).items()},
            "tiles": tiles(features, parts.extras) if parts.many else [],
        }
        _write(folder / f"task-{i}.js", f"crosstime.tasks[{i}]", to_json(entry))
    starts = []
    for i, (first, cards) in enumerate(card_chunks(list(parts.tasks.values()), parts.extras) if parts.tasks else []):
        starts.append(first)
        _write(folder / f"cards-{i}.js", f"crosstime.cards[{i}]", cards)
    drawn = {figure.key: figure.to_dict() for section in figures.values() for figure in section}
    _write(folder / "figures.js", "crosstime.figures", to_json(drawn))
    _write(folder / "report.js", "crosstime.report", to_json(_report(parts, starts)))


def _write(path: Path, target: str, text: str) -> None:
    path.write_text(assignment(target, text), encoding="utf-8", newline="\n")


def _promoted_line(data: ReportData, feature: int) -> str:
    found = promotes(data.contexts[feature], data.chosen[-1], 4)
    return f"promotes {', '.join(found)} ({data.chosen[-1]})" if found else ""


def _report(parts: _Parts, starts: list[int]) -> dict[str, Any]:
    """What the page's scripts need to know before any table or card is loaded."""
    names = parts.data.chosen
    groups = sorted({class_group(label, names) for label in parts.labels})
    return {
        "title": parts.data.title,
        "checkpoints": [{"name": name, "colour": colour} for name, colour in parts.colours.items()],
        "tasks": [words.name(task) for task in parts.tasks],
        "classes": [
            {"words": class_words(label, names), "colour": effects.class_colour(label, parts.colours)}
            | {"group": groups.index(class_group(label, names))}
            for label in parts.labels
        ],
        "groups": [group.words for group in groups],
        "pairs": pairs(len(names)),
        "lifecycles": LIFECYCLE_WORDS,
        "labels": LABEL_WORDS,
        "decoded": decoded(names),
        "frames": _frames(parts),
        "chunks": starts,
    }


def _frames(parts: _Parts) -> dict[str, Any]:
    """Figures of single features, without values; the page's script fills them in from the cards."""
    if not parts.many:
        return {}
    names = parts.data.chosen
    later = [[f"{a} against {b}" for b in names] for a in names]
    return {
        "tile": trajectories.tile(parts.axis, parts.colours),
        "directions": matrix.empty(names, parts.colours),
        "pairwise": matrix.empty(names, parts.colours, later),
    }


def _completeness(data: ReportData, tasks: Mapping[str, TaskFeatures]) -> list[TaskTotals]:
    names = list(tasks)
    return sorted(data.tasks, key=lambda task: names.index(task.task) if task.task in names else len(names))


def _render(parts: _Parts, figures: Mapping[str, list[Figure]]) -> str:
    data, tasks = parts.data, parts.tasks
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        task_name=words.name,
        sentence_case=words.sentence_case,
        percent=words.percent,
        tokens=format_tokens,
        share=words.share,
        number=words.number,
        fixed=words.fixed,
        duration=format_duration,
        class_words=lambda label: class_words(label, data.chosen),
    )
    carried = [task_story(features, data.contexts) for features in tasks.values()]
    return environment.get_template("index.html.j2").render(
        data=data,
        run=data.run,
        colours=parts.colours,
        many=parts.many,
        figures=figures,
        scripts=SCRIPTS,
        groups=parts.groups,
        carried=carried,
        lead=lead(parts.groups, carried),
        key_numbers=summary.key_numbers(data, tasks),
        quality_rows=summary.quality_rows(data.quality) if data.quality else [],
        completeness=[(task, summary.completeness_rows(task)) for task in _completeness(data, tasks)],
        class_counts=summary.class_counts(tasks),
        pair_counts=summary.pair_counts(tasks),
        turn=turn(parts.directions) if parts.directions is not None else None,
        label_counts=summary.label_counts(data.diagnostics, tasks) if data.diagnostics is not None else [],
        label_colours=plots_of_diagnosis.LABEL_COLOURS,
        exact=summary.exact_table(data.exact, list(tasks)) if data.exact is not None else None,
        agreements=agreements(data.annotations),
        validation_rows=summary.validation_rows(data.validation) if data.validation is not None else [],
        decoder_labels=parts.decoder_labels,
        decoder_rows=summary.decoder_rows(tasks),
        class_colour=lambda label: effects.class_colour(label, parts.colours),
        row_limit=row_limit(len(data.chosen)),
        has_tasks=bool(tasks),
    )
