"""Minimal pairs: two texts that differ in one respect, of which a model should prefer one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.data.positions import Positions
from crosstime.data.tokens import encode


@dataclass(frozen=True)
class Pair:
    """A minimal pair, in one or both of its forms: texts as the model reads them after BOS, leading spaces included.

    Raises:
        ValueError: neither form is complete, or the two texts of a form are the same.
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

    def __post_init__(self) -> None:
        sentences, answers = (self.good, self.bad), (self.prefix, self.right, self.wrong)
        for form in (sentences, answers):
            if any(form) and None in form:
                raise ValueError("a pair needs both `good` and `bad`, or all of `prefix`, `right` and `wrong`")
        if None in sentences and None in answers:
            raise ValueError("a pair needs both `good` and `bad`, or all of `prefix`, `right` and `wrong`")
        if self.good is not None and self.good == self.bad:
            raise ValueError(f"both sentences are {self.good!r}: a pair needs two that differ")
        if self.right is not None and self.right == self.wrong:
            raise ValueError(f"both answers are {self.right!r}: a pair needs two that differ")

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

    def by_length(self, batch_size: int) -> Iterator[tuple[Int[Tensor, " B"], Int[Tensor, "B S"]]]:
        """Batches of prompts of one length, so that nothing is ever padded.

        Yields:
            the indices of the prompts, and their tokens; every prompt once, the short ones first.
        """
        for same_length in indices_by_length(self.tokens).values():
            for start in range(0, len(same_length), batch_size):
                index = same_length[start : start + batch_size]
                yield torch.tensor(index), torch.tensor([self.tokens[i] for i in index])


@dataclass(frozen=True)
class Task:
    """Named minimal pairs, from one source or several joined."""

    name: str
    pairs: tuple[Pair, ...]
    sources: tuple[str, ...]
    """For each pair, the set it comes from."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"task {self.name} holds no pairs")
        assert len(self.pairs) == len(self.sources)

    @classmethod
    def from_pairs(cls, name: str, pairs: Sequence[Pair]) -> Task:
        """A task of which all pairs have one source, the task's own name.

        Raises:
            ValueError: there are no pairs.
        """
        return cls(name, tuple(pairs), (name,) * len(pairs))

    @classmethod
    def join(cls, name: str, tasks: Sequence[Task]) -> Task:
        """All pairs of some tasks, in order, under one name.

        Raises:
            ValueError: there are no tasks.
        """
        pairs = tuple(pair for task in tasks for pair in task.pairs)
        return cls(name, pairs, tuple(source for task in tasks for source in task.sources))

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, n: int) -> Task:
        """The first `n` pairs of each source."""
        seen: Counter[str] = Counter()
        kept = []
        for pair, source in zip(self.pairs, self.sources, strict=True):
            if seen[source] < n:
                kept.append((pair, source))
            seen[source] += 1
        return replace(self, pairs=tuple(pair for pair, _ in kept), sources=tuple(source for _, source in kept))

    @cached_property
    def sha256(self) -> str:
        """Of the pairs and their sources; the task's name does not matter."""
        rows = [[p.good, p.bad, p.prefix, p.right, p.wrong, s] for p, s in zip(self.pairs, self.sources, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

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
            ValueError: no pair has single-token answers (the reasons are named, with counts).
        """
        prompts = self.find_prompts(tokenizer, positions)
        if not len(prompts):
            why = ", ".join(f"{reason}: {count}" for reason, count in prompts.skipped.items())
            raise ValueError(f"task {self.name}: none of its {len(self)} pairs has single-token answers ({why})")
        return prompts

    def find_prompts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = Positions(),  # noqa: B008
    ) -> Prompts:
        """The pairs that a model can decide by its next token; there may be none.

        The answers are what the tokenizer makes of them after the prefix. A pair is skipped where they have different
        lengths or more than two tokens. Of two tokens each, the first is the answer where the first ones differ;
        where they agree, they move to the prompt and the second is the answer (the paper's code does the same).
        """
        bos = positions.bos_ids(tokenizer)
        asked = [(i, pair) for i, pair in enumerate(self.pairs) if pair.prefix is not None]
        prefixes = encode(tokenizer, [f"{pair.prefix}" for _, pair in asked])
        rights = encode(tokenizer, [f"{pair.prefix}{pair.right}" for _, pair in asked])
        wrongs = encode(tokenizer, [f"{pair.prefix}{pair.wrong}" for _, pair in asked])
        skipped = Counter({"no prefix": len(self) - len(asked)})
        tokens, answers, index = [], [], []
        for (i, _), *texts in zip(asked, prefixes, rights, wrongs, strict=True):
            found = _prompt(*texts)
            if isinstance(found, str):
                skipped[found] += 1
                continue
            prompt, right, wrong = found
            tokens.append([*bos, *prompt])
            answers.append((right, wrong))
            index.append(i)
        right, wrong = torch.tensor(answers, dtype=torch.long).reshape(-1, 2).unbind(1)
        reasons = {reason: count for reason, count in skipped.items() if count}
        return Prompts(self.name, tokens, right, wrong, torch.tensor(index, dtype=torch.long), reasons, positions.bos)


def indices_by_length(sequences: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Which sequences have which length; the short ones first."""
    found: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        found.setdefault(len(sequence), []).append(i)
    return dict(sorted(found.items()))


def common_length(*sequences: Sequence[int]) -> int:
    """For how many tokens from the beginning the sequences agree."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _prompt(prefix: list[int], right: list[int], wrong: list[int]) -> tuple[list[int], int, int] | str:
    """Prompt, right token and wrong token of one pair; or why there is none.

    Args:
        prefix: tokens of the prefix alone.
        right, wrong: tokens of the prefix with each answer.
    """
    # Tokens of a text can differ from those of its beginning near the cut: what all three share is the prompt.
    cut = common_length(prefix, right, wrong)
    prompt, right, wrong = right[:cut], right[cut:], wrong[cut:]
    if right == wrong:
        return "the same tokens"
    if len(right) != len(wrong):
        return "answers of different length"
    if len(right) > 2:
        return "answers of more than two tokens"
    if right[0] == wrong[0]:
        prompt, right, wrong = [*prompt, right[0]], right[1:], wrong[1:]
    return (prompt, right[0], wrong[0]) if prompt else "nothing before the answers"
