"""Builds the report: a folder that opens from the file system, without a server and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs

from crosstime.analysis.numbers import token_count
from crosstime.report import plots, summary, words
from crosstime.report.colour import checkpoint_colours
from crosstime.report.data import ReportData, TaskEffects
from crosstime.report.features import LIFECYCLE_WORDS, TaskFeatures, by_task, class_words
from crosstime.report.rows import ROWS, card_chunks, table_rows
from crosstime.report.script import assignment, to_json
from crosstime.report.story import GroupStory, group_stories, lead, promotes, task_story

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "figures.js", "table.js", "card.js", "main.js")


def build_report(data: ReportData, folder: Path) -> Path:
    """Writes the report into an existing, empty folder.

    Args:
        data: the values to show; what is missing is left out of the page.
        folder: becomes `index.html`, `assets/` (style, scripts, plotly) and `data/` (script files with the data:
            one a task for the tables, and chunks of cards that load when a card is opened).

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: the folder does not exist or is not empty, or the table of features is of other checkpoints.
    """
    if not folder.is_dir() or any(folder.iterdir()):
        raise ValueError(f"{folder}: a report is written into an existing, empty folder")
    groups = group_stories(data.survey, data.survey_groups) if data.survey is not None else []
    tasks = _in_order(by_task(data.features, data.chosen) if data.features is not None else {}, groups)
    chosen = dict(zip(data.chosen, checkpoint_colours(len(data.chosen)), strict=True))
    figures = _figures(data, tasks, chosen, groups)
    _write_assets(folder / "assets")
    _write_data(folder / "data", data, tasks, chosen, figures)
    page = folder / "index.html"
    page.write_text(_render(data, tasks, chosen, figures, groups), encoding="utf-8", newline="\n")
    return page


def _in_order(tasks: Mapping[str, TaskFeatures], groups: Sequence[GroupStory]) -> dict[str, TaskFeatures]:
    """The attributed tasks in the order in which the groups are told; others after them, as they come."""
    names = [group.name for group in groups]
    place = {task: names.index(words.name(task)) if words.name(task) in names else len(names) for task in tasks}
    return {task: tasks[task] for task in sorted(tasks, key=lambda task: place[task])}


def _figures(
    data: ReportData,
    tasks: Mapping[str, TaskFeatures],
    chosen: Mapping[str, str],
    groups: Sequence[GroupStory],
) -> dict[str, list[plots.Figure]]:
    """The figures of each section, in the order of the page."""
    figures: dict[str, list[plots.Figure]] = {}
    if data.survey is not None:
        known = np.asarray(data.survey.sentence_accuracy, dtype=float)
        lowest = max(0.0, np.floor(10 * np.nanmin([*known.ravel(), 0.45])) / 10)
        by_name = {words.name(group.name): group for group in data.survey_groups}
        figures["accuracy"] = [
            plots.accuracy(data.survey, by_name[story.name], f"accuracy-{i}", chosen, float(lowest))
            for i, story in enumerate(groups)
        ]
        figures["perplexity"] = [plots.perplexity(data.survey, chosen)]
        figures["similarity"] = [plots.similarity(data.survey, chosen)]
    if data.quality is not None:
        figures["frequency"] = [plots.frequency(data.quality)]
    if data.training:
        figures["training"] = plots.training_curves(data.training)
    if tasks and len(chosen) > 1:
        figures["alone"], figures["pairs"] = plots.decoder_histograms(next(iter(tasks.values())), chosen)
    if data.ablation is not None:
        figures["ablation"] = [plots.ablation_scatter(data.ablation, chosen)]
        figures["joint"] = plots.ablation_joint(data.ablation, chosen)
    return figures


def _write_assets(folder: Path) -> None:
    folder.mkdir()
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8", newline="\n")
    for source in sorted((HERE / "assets").iterdir()):
        if source.suffix in (".css", ".js"):
            shutil.copyfile(source, folder / source.name)


def _write_data(
    folder: Path,
    data: ReportData,
    tasks: Mapping[str, TaskFeatures],
    chosen: Mapping[str, str],
    figures: Mapping[str, list[plots.Figure]],
) -> None:
    folder.mkdir()
    promoted = {feature: _promoted_line(data, feature) for feature in data.contexts}
    for i, features in enumerate(tasks.values()):
        entry = {
            "rows": table_rows(features, data.contexts),
            "relative": plots.relative_effects(features, chosen, promoted).to_dict(),
        }
        _write(folder / f"task-{i}.js", f"crosstime.tasks[{i}]", to_json(entry))
    starts = []
    for i, (first, cards) in enumerate(card_chunks(list(tasks.values()), data.contexts if tasks else {})):
        starts.append(first)
        _write(folder / f"cards-{i}.js", f"crosstime.cards[{i}]", cards)
    drawn = {figure.key: figure.to_dict() for section in figures.values() for figure in section}
    _write(folder / "figures.js", "crosstime.figures", to_json(drawn))
    _write(folder / "report.js", "crosstime.report", to_json(_report(data, tasks, chosen, starts)))


def _write(path: Path, target: str, text: str) -> None:
    path.write_text(assignment(target, text), encoding="utf-8", newline="\n")


def _promoted_line(data: ReportData, feature: int) -> str:
    found = promotes(data.contexts[feature], data.chosen[-1], 4)
    return f"promotes {', '.join(found)} ({data.chosen[-1]})" if found else ""


def _report(
    data: ReportData, tasks: Mapping[str, TaskFeatures], chosen: Mapping[str, str], starts: list[int]
) -> dict[str, Any]:
    """What the page's scripts need to know before any table or card is loaded."""
    labels = sorted({label for features in tasks.values() for label in features.classes})
    return {
        "title": data.title,
        "checkpoints": [{"name": name, "colour": colour} for name, colour in chosen.items()],
        "tasks": [words.name(task) for task in tasks],
        "classes": {
            label: {"words": class_words(label, data.chosen), "colour": plots.class_colour(label, chosen)}
            for label in labels
        },
        "lifecycles": LIFECYCLE_WORDS,
        "chunks": starts,
    }


def _completeness(data: ReportData, tasks: Mapping[str, TaskFeatures]) -> list[TaskEffects]:
    names = list(tasks)
    return sorted(data.tasks, key=lambda task: names.index(task.task) if task.task in names else len(names))


def _render(
    data: ReportData,
    tasks: Mapping[str, TaskFeatures],
    chosen: Mapping[str, str],
    figures: Mapping[str, list[plots.Figure]],
    groups: Sequence[GroupStory],
) -> str:
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
        tokens=token_count,
        share=words.share,
        number=words.number,
        duration=words.duration,
        class_words=lambda label: class_words(label, data.chosen),
    )
    carried = [task_story(features, data.contexts) for features in tasks.values()]
    return environment.get_template("index.html.j2").render(
        data=data,
        run=data.run,
        colours=chosen,
        figures=figures,
        scripts=SCRIPTS,
        groups=groups,
        carried=carried,
        lead=lead(groups, carried),
        key_numbers=summary.key_numbers(data, tasks),
        quality_rows=summary.quality_rows(data.quality) if data.quality else [],
        completeness=[(task, summary.completeness_rows(task)) for task in _completeness(data, tasks)],
        class_counts=summary.class_counts(tasks),
        class_colours={
            label: plots.class_colour(label, chosen) for features in tasks.values() for label in set(features.classes)
        },
        row_limit=ROWS,
        has_tasks=bool(tasks),
    )
