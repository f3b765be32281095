"""Minimal pairs: two texts that differ in one respect, of which a model should prefer one."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.tasks.cut import Asked, Cut, beside, cut
from crosstime.text.positions import Positions
from crosstime.text.tokens import encode


@dataclass(frozen=True)
class Pair:
    """A minimal pair, in one or both of its forms: texts as the model reads them after BOS, leading spaces included.

    Raises:
        InputError: neither form is complete, the two texts of a form are the same, or `patch` stands without a prefix
            or repeats it.
    """

    good: str | None = None
    """The acceptable sentence."""
    bad: str | None = None
    """The unacceptable sentence."""
    prefix: str | None = None
    """What stands before the answers."""
    right: str | None = None
    """The right continuation of the prefix."""
    wrong: str | None = None
    """The wrong continuation of the prefix."""
    patch: str | None = None
    """A second prefix, of the counterfactual: it differs from the first in what decides between the answers."""

    def __post_init__(self) -> None:
        sentences, answers = (self.good, self.bad), (self.prefix, self.right, self.wrong)
        for form in (sentences, answers):
            if any(form) and None in form:
                raise InputError("a pair needs both `good` and `bad`, or all of `prefix`, `right` and `wrong`")
        if None in sentences and None in answers:
            raise InputError("a pair needs both `good` and `bad`, or all of `prefix`, `right` and `wrong`")
        if self.good is not None and self.good == self.bad:
            raise InputError(f"both sentences are {self.good!r}: a pair needs two that differ")
        if self.right is not None and self.right == self.wrong:
            raise InputError(f"both answers are {self.right!r}: a pair needs two that differ")
        if self.patch is not None and self.prefix is None:
            raise InputError("`patch` is a second prefix: a pair needs `prefix`, `right` and `wrong` beside it")
        if self.patch is not None and self.patch == self.prefix:
            raise InputError(f"both prefixes are {self.prefix!r}: a pair needs two that differ")

    @classmethod
    def from_sentences(cls, good: str, bad: str, patch: str | None = None) -> Pair:
        """A pair of which the words that both sentences share at the beginning are the prefix.

        The first word of each that differs, with the space before it, is the answer. Where one sentence only ends
        earlier than the other there are none.

        Raises:
            InputError: the sentences are the same, or `patch` has no prefix beside it.
        """
        good_words, bad_words = (re.findall(r"\s*\S+", text) for text in (good, bad))
        for i, (right, wrong) in enumerate(zip(good_words, bad_words, strict=False)):
            if right != wrong:
                return cls(good, bad, "".join(good_words[:i]), right, wrong, patch)
        return cls(good, bad, patch=patch)

    @property
    def sentences(self) -> tuple[str, str]:
        """Both sentences, the good one first; prefix and answer where no sentences are given."""
        if self.good is not None and self.bad is not None:
            return self.good, self.bad
        return f"{self.prefix}{self.right}", f"{self.prefix}{self.wrong}"


@dataclass(frozen=True)
class Prompts:
    """What a task asks of the next token: prompts of token ids, and for each a right and a wrong next token."""

    task: str
    tokens: list[list[int]]
    """N prompts of different lengths, BOS first where the policy says so."""
    right: Int[Tensor, " N"]
    wrong: Int[Tensor, " N"]
    pair_index: Int[Tensor, " N"]
    """Which pair of the task each prompt comes from."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Pairs that gave no prompt: the reason and how many."""
    bos: bool = True
    """Whether each prompt starts with BOS."""
    patch: list[list[int]] | None = None
    """Token ids of the second prefix of each prompt, as many as in `tokens`; None where the task has none."""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, index: Int[Tensor, " B"]) -> Int[Tensor, "B S"]:
        """The tokens of some prompts, given by number, all of one length."""
        return torch.tensor([self.tokens[n] for n in index.tolist()])

    def by_length(self, batch_size: int) -> Iterator[tuple[Int[Tensor, " B"], Int[Tensor, "B S"]]]:
        """Batches of prompts of one length, so that nothing is ever padded.

        Yields:
            the indices of the prompts, and their tokens; every prompt once, the short ones first.
        """
        for same_length in indices_by_length(self.tokens).values():
            for start in range(0, len(same_length), batch_size):
                index = torch.tensor(same_length[start : start + batch_size])
                yield index, self.batch(index)


@dataclass(frozen=True)
class Task:
    """Named minimal pairs, from one source or several joined."""

    name: str
    pairs: tuple[Pair, ...]
    sources: tuple[str, ...]
    """For each pair, the set it comes from."""
    cut: Cut = "shared"
    """How prefixes and answers become tokens."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"task {self.name} holds no pairs")
        assert len(self.pairs) == len(self.sources)

    @classmethod
    def from_pairs(cls, name: str, pairs: Sequence[Pair]) -> Task:
        """A task of which all pairs have one source, the task's own name.

        Raises:
            InputError: there are no pairs.
        """
        return cls(name, tuple(pairs), (name,) * len(pairs))

    @classmethod
    def join(cls, name: str, tasks: Sequence[Task]) -> Task:
        """All pairs of some tasks, in order, under one name.

        Raises:
            InputError: there are no tasks, or their prompts are not cut in one way.
        """
        cuts: set[Cut] = {task.cut for task in tasks}
        if len(cuts) > 1:
            raise InputError(f"task {name}: its parts cut their prompts in different ways: {', '.join(sorted(cuts))}")
        pairs = tuple(pair for task in tasks for pair in task.pairs)
        return cls(name, pairs, tuple(source for task in tasks for source in task.sources), *cuts)

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def indices(self) -> dict[str, list[int]]:
        """For each source the numbers of its pairs. Sources that stand one after another keep their order; those of
        which pairs stand among others' are in alphabetical order."""
        found: dict[str, list[int]] = {}
        for i, source in enumerate(self.sources):
            found.setdefault(source, []).append(i)
        apart = len(found) == sum(1 for _ in groupby(self.sources))
        return found if apart else dict(sorted(found.items()))

    @property
    def parts(self) -> list[Task]:
        """The task cut into its sources, each under its own name."""
        return [replace(self.select(index), name=source) for source, index in self.indices.items()]

    def select(self, index: Sequence[int]) -> Task:
        """Some of the pairs, by number, in that order."""
        pairs, sources = (tuple(column[i] for i in index) for column in (self.pairs, self.sources))
        return replace(self, pairs=pairs, sources=sources)

    def take(self, n: int) -> Task:
        """The first `n` pairs of each source."""
        return self.select(sorted(i for index in self.indices.values() for i in index[:n]))

    @cached_property
    def sha256(self) -> str:
        """Of the pairs, their sources and their cut; the task's name does not matter."""
        pairs = zip(self.pairs, self.sources, strict=True)
        rows = [[p.good, p.bad, p.prefix, p.right, p.wrong, p.patch, source] for p, source in pairs]
        return hashlib.sha256(json.dumps([self.cut, rows]).encode()).hexdigest()

    def sentences(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = Positions(),  # noqa: B008
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of the good and the bad sentence of each pair, BOS first where the policy says so."""
        bos = positions.bos_ids(tokenizer)
        good = encode(tokenizer, [pair.sentences[0] for pair in self.pairs])
        bad = encode(tokenizer, [pair.sentences[1] for pair in self.pairs])
        return [([*bos, *g], [*bos, *b]) for g, b in zip(good, bad, strict=True)]

    def prompts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = Positions(),  # noqa: B008
    ) -> Prompts:
        """The pairs that a model can decide by its next token; see `find_prompts`.

        Raises:
            InputError: no pair has single-token answers (the reasons are named, with counts).
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
        """The pairs that a model can decide by its next token; there may be none.

        A pair is skipped where the answers have different lengths or more than two tokens. Of two tokens each, the
        first is the answer where the first ones differ; where they agree, they move to the prompt and the second is the
        answer (the paper's code does the same). See `Cut` for what becomes of the text around the cut.

        In a task with second prefixes every prompt has one, with as many tokens and the same answers, so that effects
        against it and against other baselines are of the same prompts; the other pairs are skipped.
        """
        bos = positions.bos_ids(tokenizer)
        index = [i for i, pair in enumerate(self.pairs) if pair.prefix is not None]
        pairs = [self.pairs[i] for i in index]
        answers = [f"{pair.right}" for pair in pairs], [f"{pair.wrong}" for pair in pairs]
        found = cut(self.cut, tokenizer, [f"{pair.prefix}" for pair in pairs], *answers)
        counterfactual = any(pair.patch for pair in pairs)
        if counterfactual:
            seconds = cut(self.cut, tokenizer, [pair.patch or "" for pair in pairs], *answers)
            seconds = [second if pair.patch else "none" for pair, second in zip(pairs, seconds, strict=True)]
            found = [beside(*both) for both in zip(found, seconds, strict=True)]
        skipped = Counter({"no prefix": len(self) - len(index)})
        skipped.update(reason for reason in found if isinstance(reason, str))
        kept = [(i, asked) for i, asked in zip(index, found, strict=True) if isinstance(asked, Asked)]
        patch = [[*bos, *asked.patch] for _, asked in kept if asked.patch is not None]
        return Prompts(
            self.name,
            [[*bos, *asked.prompt] for _, asked in kept],
            right=torch.tensor([asked.right for _, asked in kept], dtype=torch.long),
            wrong=torch.tensor([asked.wrong for _, asked in kept], dtype=torch.long),
            pair_index=torch.tensor([i for i, _ in kept], dtype=torch.long),
            skipped={reason: count for reason, count in skipped.items() if count},
            bos=positions.bos,
            patch=patch if counterfactual else None,
        )


def indices_by_length(sequences: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Which sequences have which length; the short ones first."""
    found: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        found.setdefault(len(sequence), []).append(i)
    return dict(sorted(found.items()))
