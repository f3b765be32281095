"""Fewer pairs of a task: the first of each set, or some drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError, nearest
from crosstime.tasks.task import Task
from crosstime.text.positions import Positions

Limits = int | Mapping[str, int] | None
"""At most how many pairs of a set: one number for all; or a number by the set's name, in which * stands for anything:
of several names that fit a set the first counts, and a set that none fits is taken whole; or None."""


def first(task: Task, limits: Limits) -> Task:
    """The first pairs of each set, in their order.

    Raises:
        InputError: `limits` names a set that the task does not have; the nearest is named.
    """
    _check(limits, task)
    return task.select(sorted(i for name, index in task.indices.items() for i in index[: _limit(limits, name)]))


def sample(task: Task, limits: Limits, seed: int, tokenizer: PreTrainedTokenizerBase, positions: Positions) -> Task:
    """Pairs drawn at random from each set, all sets mixed.

    Pairs that give a prompt are drawn before those that give none, so as many as the limit allows can be asked.

    The draws are those of arXiv 2509.05291 for CLAMS: the pairs of each set that give a prompt are shuffled and cut to
    the limit, then all sets together are shuffled, each time as `datasets.Dataset.shuffle(seed)` does it.

    Raises:
        InputError: as for `first`.
    """
    _check(limits, task)
    asked = set(task.find_prompts(tokenizer, positions).pair_index.tolist())
    drawn = [_shuffled(index, asked, seed)[: _limit(limits, name)] for name, index in task.indices.items()]
    return task.select(_shuffled(list(chain(*drawn)), asked, seed))


def _shuffled(index: Sequence[int], asked: set[int], seed: int) -> list[int]:
    """Pairs that give a prompt in random order, then the others in their own: they move none of the former."""
    prompts = [i for i in index if i in asked]
    order = np.random.default_rng(seed).permutation(len(prompts))
    return [*(prompts[n] for n in order), *(i for i in index if i not in asked)]


def _limit(limits: Limits, name: str) -> int | None:
    if not isinstance(limits, Mapping):
        return limits
    return next((limit for pattern, limit in limits.items() if fnmatchcase(name, pattern)), None)


def _check(limits: Limits, task: Task) -> None:
    for pattern in limits if isinstance(limits, Mapping) else ():
        if not any(fnmatchcase(name, pattern) for name in task.indices):
            raise InputError(f"max_pairs: task {task.name} has no set {pattern!r}{nearest(pattern, task.indices)}")
