"""Build the report: a folder that opens in a browser from the file system, without a server or a network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from crosstime.base.errors import InputError
from crosstime.base.units import format_duration, format_tokens
from crosstime.report.classes import LABEL_WORDS, LIFECYCLE_WORDS, class_group, class_words, pairs
from crosstime.report.data import ReportData
from crosstime.report.format import (
    format_fixed,
    format_number,
    format_percent,
    format_share,
    readable,
    sentence_case,
    to_json,
)
from crosstime.report.plots.effects import class_colour
from crosstime.report.plots.style import Figure
from crosstime.report.plots.trajectories import feature_frames
from crosstime.report.sections import TEMPLATES, Section, shown_sections
from crosstime.report.story import checkpoint, lead, task_story, tokens
from crosstime.report.table_data import card_chunks, decoded, listed_classes, table_columns, tiles
from crosstime.report.tables import key_numbers

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("figures.js", "trajectories.js", "table.js", "card.js", "main.js")
"""Scripts of the page, in the order in which they are loaded after page.js and the data."""

Figures = Mapping[str, Mapping[str, Sequence[Figure]]]
"""Section -> name in its template -> figures."""


def build_report(data: ReportData, folder: Path) -> Path:
    """Write the report into an existing, empty folder.

    Args:
        data: The values to show; the page leaves out what the run doesn't have.
        folder: Receives `index.html`, `assets/` (style, scripts, plotly) and `data/`: script files with the figures
            of each section, the feature table of each task, and the cards in chunks, loaded when a card is opened.

    Returns:
        The path of `index.html`.

    Raises:
        InputError: the folder doesn't exist or isn't empty, or two figures have the same key.
    """
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(f"{folder}: a report is written into an existing, empty folder")
    sections = shown_sections(data)
    figures = {section.name: section.figures(data) for section in sections}
    task_figures = [[f for section in sections for f in section.task_figures(task)] for task in data.tasks.values()]
    _check_keys(figures, task_figures)
    _write_assets(folder / "assets")
    _write_data(folder / "data", data, figures, task_figures)
    page = folder / "index.html"
    page.write_text(_render(data, sections, figures, task_figures), encoding="utf-8", newline="\n")
    return page


def environment(data: ReportData) -> jinja2.Environment:
    """Return the environment in which templates are rendered, with their filters and macros."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(
        readable=readable,
        sentence_case=sentence_case,
        percent=format_percent,
        share=format_share,
        number=format_number,
        fixed=format_fixed,
        duration=format_duration,
        thousands=lambda value: f"{value:,}",
        token_count=format_tokens,
        tokens=tokens,
        checkpoint=lambda name: checkpoint(name, data.colours),
        class_words=lambda label: class_words(label, data.checkpoints),
    )
    jinja.globals.update(data=data, tasks=data.task_names)
    jinja.globals["m"] = jinja.get_template("macros.html.j2").module
    return jinja


def _render(
    data: ReportData, sections: Sequence[Section], figures: Figures, task_figures: Sequence[Sequence[Figure]]
) -> str:
    jinja = environment(data)
    of_task = {figure.key: figure for figure in (task_figures[0] if task_figures else [])}
    pages = []
    for section in sections:
        values = {"section": section, "figures": figures[section.name], "task_figures": of_task}
        pages.append((section, Markup(jinja.from_string(section.source).render(**values, **section.values(data)))))
    stories = [task_story(features) for features in data.tasks.values()]
    return jinja.get_template("index.html.j2").render(
        sections=pages,
        figure_files=[name for name, found in figures.items() if any(found.values())],
        scripts=SCRIPTS,
        lead=lead(data, stories),
        key_numbers=key_numbers(data),
    )


def _check_keys(figures: Figures, task_figures: Sequence[Sequence[Figure]]) -> None:
    keys = [figure.key for groups in figures.values() for group in groups.values() for figure in group]
    keys += [figure.key for figure in (task_figures[0] if task_figures else [])]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise InputError(f"two figures of the report have the key {twice[0]!r}: rename one")


def _write_assets(folder: Path) -> None:
    folder.mkdir()
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8", newline="\n")
    for source in sorted(ASSETS.iterdir()):
        if source.suffix in (".css", ".js"):
            shutil.copyfile(source, folder / source.name)


def _write_data(folder: Path, data: ReportData, figures: Figures, task_figures: Sequence[Sequence[Figure]]) -> None:
    folder.mkdir()
    for i, features in enumerate(data.tasks.values()):
        entry = {
            "rows": table_columns(features),
            "figures": {figure.key: figure.to_dict() for figure in task_figures[i]},
            "tiles": tiles(features) if data.many else [],
        }
        _write(folder / f"task-{i}.js", f"crosstime.tasks[{i}]", to_json(entry))
    starts = []
    for i, (first, cards) in enumerate(card_chunks(data)):
        starts.append(first)
        _write(folder / f"cards-{i}.js", f"crosstime.cards[{i}]", cards)
    for section, groups in figures.items():
        drawn = {figure.key: figure.to_dict() for group in groups.values() for figure in group}
        if drawn:
            _write(folder / f"figures-{section}.js", f'crosstime.figures["{section}"]', to_json(drawn))
    _write(folder / "report.js", "crosstime.report", to_json(_page_data(data, starts)))


def _page_data(data: ReportData, starts: list[int]) -> dict[str, Any]:
    """Return what the page's scripts need before any table or card is loaded."""
    names, labels = data.checkpoints, listed_classes(data)
    groups = sorted({class_group(label, names) for label in labels})
    return {
        "title": data.title,
        "checkpoints": [{"name": name, "colour": colour} for name, colour in data.colours.items()],
        "tasks": data.task_names,
        "classes": [
            {"words": class_words(label, names), "colour": class_colour(label, data)}
            | {"group": groups.index(class_group(label, names))}
            for label in labels
        ],
        "groups": [group.words for group in groups],
        "pairs": pairs(len(names)),
        "lifecycles": LIFECYCLE_WORDS,
        "labels": LABEL_WORDS,
        "decoded": decoded(len(names)),
        "frames": feature_frames(data) if data.many else {},
        "chunks": starts,
    }


def _write(path: Path, target: str, text: str) -> None:
    """Write a script that assigns JSON: a page from the file system can't fetch data, but it can load scripts."""
    path.write_text(f"{target} = {text};\n", encoding="utf-8", newline="\n")
