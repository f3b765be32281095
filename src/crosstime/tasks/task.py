"""Tasks: minimal pairs of texts that differ in one respect, of which a model should prefer one."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.models.tokenizer import tokenise
from crosstime.tasks.prompts import Cut, Prompts, Question, add_patch, cut_prompts
from crosstime.text.positions import Positions

_INCOMPLETE = "a pair needs both `good` and `bad`, or all of `prefix`, `right` and `wrong`"


@dataclass(frozen=True)
class Pair:
    """A minimal pair: two sentences, or a prefix with two answers, or both.

    Texts are exactly what the model reads after BOS, leading spaces included.

    Raises:
        InputError: Neither form is complete, the two texts of a form are equal, or `patch` has no prefix or repeats it.

    Example:
        >>> import crosstime as ct
        >>> ct.Pair(prefix=" The keys", right=" are", wrong=" is").sentences
        (' The keys are', ' The keys is')
        >>> pair = ct.Pair.from_sentences(" The keys are here.", " The keys is here.")
        >>> pair.prefix, pair.right, pair.wrong
        (' The keys', ' are', ' is')
    """

    good: str | None = None
    """The acceptable sentence."""
    bad: str | None = None
    """The unacceptable sentence."""
    prefix: str | None = None
    """The text before the answers."""
    right: str | None = None
    """The right continuation of the prefix."""
    wrong: str | None = None
    """The wrong continuation of the prefix."""
    patch: str | None = None
    """A second, counterfactual prefix: it differs from the first in what decides between the answers."""

    def __post_init__(self) -> None:
        sentences, answers = (self.good, self.bad), (self.prefix, self.right, self.wrong)
        if any(any(form) and None in form for form in (sentences, answers)):
            raise InputError(_INCOMPLETE)
        if None in sentences and None in answers:
            raise InputError(_INCOMPLETE)
        if self.patch is not None and self.prefix is None:
            raise InputError("`patch` is a second prefix: a pair needs `prefix`, `right` and `wrong` too")
        for texts, one, other in (
            ("sentences", self.good, self.bad),
            ("answers", self.right, self.wrong),
            ("prefixes", self.prefix, self.patch),
        ):
            if one is not None and one == other:
                raise InputError(f"both {texts} are {one!r}: a pair needs two that differ")

    @classmethod
    def from_sentences(cls, good: str, bad: str, patch: str | None = None) -> Pair:
        """Make a pair whose prefix is the words that both sentences share at the beginning.

        The answers are the first words that differ, each with the space before it. If one sentence is just the
        beginning of the other, the pair has no prefix and no answers.

        Raises:
            InputError: The sentences are equal, or `patch` is given without a prefix.
        """
        good_words, bad_words = (re.findall(r"\s*\S+", text) for text in (good, bad))
        for i, (right, wrong) in enumerate(zip(good_words, bad_words, strict=False)):
            if right != wrong:
                return cls(good, bad, "".join(good_words[:i]), right, wrong, patch)
        return cls(good, bad, patch=patch)

    @property
    def sentences(self) -> tuple[str, str]:
        """The good and the bad sentence; prefix and answer if the pair has no sentences."""
        if self.good is not None and self.bad is not None:
            return self.good, self.bad
        return f"{self.prefix}{self.right}", f"{self.prefix}{self.wrong}"


@dataclass(frozen=True)
class Task:
    """Minimal pairs under one name, from one set or several.

    Example:
        >>> import crosstime as ct
        >>> task = ct.BlimpPairs("distractor").load()
        >>> task
        Task('distractor', 2000 pairs from 2 sets)
        >>> task.pairs[0].prefix, task.pairs[0].right, task.pairs[0].wrong
        (' A niece of most senators', " hasn't", " haven't")
        >>> [part.name for part in task.take(10).by_set()]
        ['distractor_agreement_relational_noun', 'distractor_agreement_relative_clause']
    """

    name: str
    pairs: tuple[Pair, ...]
    set_names: tuple[str, ...]
    """Name of each pair's set."""
    cut: Cut = "shared"
    """How prefixes and answers become tokens."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"task {self.name} holds no pairs")
        assert len(self.pairs) == len(self.set_names)

    @classmethod
    def from_pairs(cls, name: str, pairs: Sequence[Pair]) -> Task:
        """Make a task of one set, which has the task's name.

        Raises:
            InputError: There are no pairs.
        """
        return cls(name, tuple(pairs), (name,) * len(pairs))

    @classmethod
    def join(cls, name: str, tasks: Sequence[Task]) -> Task:
        """Join the pairs of several tasks, in order.

        Raises:
            InputError: There are no tasks, or their prompts are cut in different ways.
        """
        cuts: set[Cut] = {task.cut for task in tasks}
        if len(cuts) > 1:
            raise InputError(f"task {name}: its parts cut their prompts in different ways: {', '.join(sorted(cuts))}")
        pairs = tuple(pair for task in tasks for pair in task.pairs)
        return cls(name, pairs, tuple(set_name for task in tasks for set_name in task.set_names), *cuts)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self)} pairs from {len(self.indices_by_set)} sets)"

    @cached_property
    def indices_by_set(self) -> dict[str, list[int]]:
        """Indices of the pairs of each set. Sets keep their order; sets that are mixed are in alphabetical order."""
        indices: dict[str, list[int]] = {}
        for i, name in enumerate(self.set_names):
            indices.setdefault(name, []).append(i)
        is_mixed = len(indices) != sum(1 for _ in groupby(self.set_names))
        return dict(sorted(indices.items())) if is_mixed else indices

    def by_set(self) -> list[Task]:
        """Split the task into one task per set, under the set's name."""
        return [replace(self.select(index), name=name) for name, index in self.indices_by_set.items()]

    def select(self, index: Sequence[int]) -> Task:
        """Select pairs by index, in the order given."""
        pairs, set_names = (tuple(column[i] for i in index) for column in (self.pairs, self.set_names))
        return replace(self, pairs=pairs, set_names=set_names)

    def take(self, n: int) -> Task:
        """Take the first `n` pairs of each set."""
        return self.select(sorted(i for index in self.indices_by_set.values() for i in index[:n]))

    @cached_property
    def sha256(self) -> str:
        """Hash of the pairs, their sets and the cut; the task's name isn't part of it."""
        rows = [
            [p.good, p.bad, p.prefix, p.right, p.wrong, p.patch, name]
            for p, name in zip(self.pairs, self.set_names, strict=True)
        ]
        return hashlib.sha256(json.dumps([self.cut, rows]).encode()).hexdigest()

    def sentences(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = Positions(),  # noqa: B008
    ) -> list[tuple[list[int], list[int]]]:
        """Tokenise the good and the bad sentence of each pair, with BOS before each if the policy asks for it."""
        bos = positions.bos_ids(tokenizer)
        good, bad = (tokenise(tokenizer, [pair.sentences[n] for pair in self.pairs]) for n in (0, 1))
        return [([*bos, *g], [*bos, *b]) for g, b in zip(good, bad, strict=True)]

    def prompts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = Positions(),  # noqa: B008
    ) -> Prompts:
        """Tokenise the pairs that a model can decide by its next token; see `find_prompts`.

        Raises:
            InputError: No pair has single-token answers; the message counts the reasons.
        """
        prompts = self.find_prompts(tokenizer, positions)
        if not len(prompts):
            why = ", ".join(f"{reason}: {count}" for reason, count in prompts.skipped.items())
            raise InputError(f"task {self.name}: none of its {len(self)} pairs has single-token answers ({why})")
        return prompts

    def find_prompts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = Positions(),  # noqa: B008
    ) -> Prompts:
        """Tokenise the pairs that a model can decide by its next token, of which there may be none.

        A pair is skipped if its answers differ in length or have more than two tokens. Of two tokens each, the first is
        the answer if the first ones differ; if they agree, they move to the prompt and the second is the answer (as in
        the paper's code). `Cut` explains how texts are split into prompt and answers.

        In a task with second prefixes every prompt has one, with as many tokens and the same answers, so effects
        against every baseline are measured on the same prompts. The other pairs are skipped.
        """
        bos = positions.bos_ids(tokenizer)
        index = [i for i, pair in enumerate(self.pairs) if pair.prefix is not None]
        has_patches = any(pair.patch for pair in self.pairs)
        questions = self._questions(tokenizer, [self.pairs[i] for i in index], has_patches)
        skipped = Counter({"no prefix": len(self) - len(index)})
        skipped.update(question for question in questions if isinstance(question, str))
        kept = [(i, question) for i, question in zip(index, questions, strict=True) if isinstance(question, Question)]
        return Prompts(
            self.name,
            [[*bos, *question.prompt] for _, question in kept],
            right=torch.tensor([question.right for _, question in kept], dtype=torch.long),
            wrong=torch.tensor([question.wrong for _, question in kept], dtype=torch.long),
            pair_index=torch.tensor([i for i, _ in kept], dtype=torch.long),
            skipped={reason: count for reason, count in skipped.items() if count},
            bos=positions.bos,
            patch=[[*bos, *(question.patch or [])] for _, question in kept] if has_patches else None,
        )

    def _questions(
        self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], has_patches: bool
    ) -> list[Question | str]:
        answers = [f"{pair.right}" for pair in pairs], [f"{pair.wrong}" for pair in pairs]
        questions = cut_prompts(self.cut, tokenizer, [f"{pair.prefix}" for pair in pairs], *answers)
        if not has_patches:
            return questions
        seconds = cut_prompts(self.cut, tokenizer, [pair.patch or "" for pair in pairs], *answers)
        return [
            add_patch(question, second if pair.patch else "none")
            for pair, question, second in zip(pairs, questions, seconds, strict=True)
        ]
