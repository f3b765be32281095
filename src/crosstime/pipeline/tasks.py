"""The pairs of one [[task]] of run.toml, from all the places that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from crosstime import demo
from crosstime.base.errors import InputError
from crosstime.pipeline.config import TaskConfig
from crosstime.tasks import clams, multiblimp
from crosstime.tasks.blimp import blimp_sets, load_blimp
from crosstime.tasks.jsonl import load_jsonl
from crosstime.tasks.task import Task


def read_task(config: TaskConfig, path: Callable[[str], Path]) -> Task:
    """All pairs of the sets that a [[task]] names.

    Args:
        config: the section.
        path: where a path of run.toml leads.

    Raises:
        InputError: a set, file, language, construction or phenomenon is not there, or a file is malformed; the task
            is named.
    """
    try:
        return replace(Task.join(config.name, [*_published(config, path), *_users(config, path)]), cut=config.prefix)
    except ValueError as error:
        raise InputError(f"task {config.name!r}: {error}") from None


def _published(config: TaskConfig, path: Callable[[str], Path]) -> Iterator[Task]:
    for name in config.sets:
        yield load_blimp(demo.BLIMP, name, counterfactual=config.counterfactual)
    if config.blimp:
        for name in config.blimp_sets or blimp_sets(path(config.blimp)):
            yield load_blimp(path(config.blimp), name, counterfactual=config.counterfactual)
    if config.clams:
        languages = config.languages or clams.LANGUAGES
        constructions = config.constructions or clams.CONSTRUCTIONS
        yield clams.load_clams(_source(config.clams, path), languages, constructions)
    if config.has_multiblimp:
        languages = config.languages or multiblimp.LANGUAGES
        source = _source(config.multiblimp or multiblimp.REPO, path)
        yield multiblimp.load_multiblimp(languages, config.phenomena, source)


def _users(config: TaskConfig, path: Callable[[str], Path]) -> Iterator[Task]:
    """The user's files, each under its own name; one that is all there is goes by the task's."""
    files = [config.jsonl] if isinstance(config.jsonl, str) else config.jsonl
    is_all = len(files) == 1 and not (config.sets or config.blimp or config.clams or config.has_multiblimp)
    for file in files:
        yield load_jsonl(path(file), config.name if is_all else None)


def _source(stated: str, path: Callable[[str], Path]) -> Path | str:
    """A folder beside run.toml before a repository of the same name."""
    return path(stated) if path(stated).is_dir() else stated
