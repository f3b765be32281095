"""[[task]] of run.toml: where a task's pairs come from, and which of them are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError, SettingError, nearest

# To import a source registers it.
from crosstime.tasks import blimp, clams, columns, multiblimp  # noqa: F401
from crosstime.tasks.pair_source import PairSource
from crosstime.tasks.prompts import Cut
from crosstime.tasks.task import Task
from crosstime.text.positions import Positions

Limits = int | Mapping[str, int] | None
"""Largest number of pairs of a set: one number for all sets; or numbers by the set's name, in which * matches anything:
the first name that matches counts, and a set that no name matches is taken whole; or None for no limit."""


@dataclass(frozen=True)
class TaskConfig:
    """[[task]]: a task, and whether effects are computed on it. Paths are relative to run.toml."""

    name: str
    """Name of the task."""
    pairs: PairSource | tuple[PairSource, ...] = ()
    """Where its pairs come from: one source or several, joined in order."""
    max_pairs: int | dict[str, int] | None = None
    """Largest number of pairs of each set, or a table by the set's name, in which * matches anything."""
    sample_seed: int | None = None
    """Draw the pairs at random, those that give a prompt before the others; without it the first ones are taken."""
    prefix: Cut = "shared"
    """How prefixes and answers become tokens (see `crosstime.tasks.prompts.Cut`)."""
    attribute: bool = True
    """Compute effects on this task; otherwise only the survey reads it."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SettingError("name", "must not be empty")
        if not self.pairs:
            raise SettingError("pairs", f"must name a source of pairs: {', '.join(sorted(PairSource.variants()))}")
        limits = self.max_pairs.values() if isinstance(self.max_pairs, dict) else [self.max_pairs]
        for limit in limits:
            if limit is not None and limit < 1:
                raise SettingError("max_pairs", f"must be at least 1, not {limit}")
        if self.sample_seed is not None and self.sample_seed < 0:
            raise SettingError("sample_seed", f"must be at least 0, not {self.sample_seed}")

    def load(self, folder: Path, tokenizer: PreTrainedTokenizerBase, positions: Positions) -> Task:
        """Load the pairs from all sources and choose among them.

        Args:
            folder: Folder of run.toml.
            tokenizer, positions: Decide which pairs give a prompt; needed for `sample_seed` only.

        Raises:
            InputError: A source can't be read, or `max_pairs` names a set that isn't there; the message names the task.
        """
        sources = self.pairs if isinstance(self.pairs, tuple) else (self.pairs,)
        try:
            task = replace(Task.join(self.name, [source.load(folder) for source in sources]), cut=self.prefix)
            if len(sources) == len(task.indices_by_set) == 1 and sources[0].named_by_task:
                task = replace(task, set_names=(self.name,) * len(task))
            if self.sample_seed is None:
                return first_pairs(task, self.max_pairs)
            return sample_pairs(task, self.max_pairs, self.sample_seed, tokenizer, positions)
        except InputError as error:
            raise InputError(f"task {self.name!r}: {error}") from None


def first_pairs(task: Task, limits: Limits) -> Task:
    """Take the first pairs of each set.

    Raises:
        InputError: `limits` names a set that the task doesn't have; the message names the nearest.
    """
    _check_names(limits, task)
    return task.select(sorted(i for name, index in task.indices_by_set.items() for i in index[: _limit(limits, name)]))


def sample_pairs(
    task: Task, limits: Limits, seed: int, tokenizer: PreTrainedTokenizerBase, positions: Positions
) -> Task:
    """Draw pairs at random from each set, and mix the sets.

    Pairs that give a prompt are drawn before those that give none, so that effects have as many prompts as possible.

    The draws are those of arXiv 2509.05291 for CLAMS: the pairs of each set that give a prompt are shuffled and cut to
    the limit, then all sets together are shuffled, each time as by `datasets.Dataset.shuffle(seed)`.

    Raises:
        InputError: As for `first_pairs`.
    """
    _check_names(limits, task)
    with_prompt = set(task.find_prompts(tokenizer, positions).pair_index.tolist())
    drawn = [_shuffled(index, with_prompt, seed)[: _limit(limits, name)] for name, index in task.indices_by_set.items()]
    return task.select(_shuffled(list(chain(*drawn)), with_prompt, seed))


def _shuffled(index: Sequence[int], with_prompt: set[int], seed: int) -> list[int]:
    """Shuffle the pairs that give a prompt; the others follow in their own order, so they don't affect the draw."""
    prompts = [i for i in index if i in with_prompt]
    order = np.random.default_rng(seed).permutation(len(prompts))
    return [*(prompts[n] for n in order), *(i for i in index if i not in with_prompt)]


def _limit(limits: Limits, set_name: str) -> int | None:
    if not isinstance(limits, Mapping):
        return limits
    return next((limit for pattern, limit in limits.items() if fnmatchcase(set_name, pattern)), None)


def _check_names(limits: Limits, task: Task) -> None:
    names = task.indices_by_set
    for pattern in limits if isinstance(limits, Mapping) else ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SettingError(
                "max_pairs", f"names a set {pattern!r} that the task doesn't have{nearest(pattern, names)}"
            )
