"""Prompts: a task's pairs as token ids that end where the next token decides between two answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.models.tokenizer import tokenise

Cut = Literal["shared", "string", "token"]
"""How a prefix and its answers become tokens: tokens of a text can differ from those of its parts near the cut.

"shared": the prefix is tokenised alone and with each answer, and the tokens that all three share are the prompt. So an
answer is what the tokenizer makes of it after the prefix. Leading spaces are kept.
"string": prefix and answers are tokenised apart, as for the published results of arXiv 2509.05291.
"token": the tokens shared by both whole texts are the prompt, as in the public code of that paper. This keeps pairs
whose answers share more than their first token.

The last two drop spaces before the prefix.
"""


@dataclass(frozen=True)
class _CutRule:
    strip_prefix: bool
    """Drop spaces before the prefix."""
    apart: bool = False
    """Tokenise prefix and answers apart."""
    within_prefix: bool = False
    """The prompt must also be the beginning of the prefix's own tokens."""


_CUTS: dict[Cut, _CutRule] = {
    "shared": _CutRule(strip_prefix=False, within_prefix=True),
    "string": _CutRule(strip_prefix=True, apart=True),
    "token": _CutRule(strip_prefix=True),
}


@dataclass(frozen=True)
class Prompts:
    """A task as questions about the next token: prompts, each with a right and a wrong next token.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> tokenizer = ct.Suite.from_folder(demo.SUITE, ["step1000", "step3786"]).tokenizer
        >>> pairs = [ct.Pair(prefix=" The keys", right=" are", wrong=" is"), ct.Pair(good=" I am.", bad=" I are.")]
        >>> prompts = ct.Task.from_pairs("agreement", pairs).prompts(tokenizer)
        >>> len(prompts), prompts.skipped
        (1, {'no prefix': 1})
        >>> tokenizer.decode(prompts.tokens[0]), tokenizer.decode(prompts.right[0])
        ('<|endoftext|> The keys', ' are')
    """

    task: str
    tokens: list[list[int]]
    """Token ids of N prompts of different lengths, starting with BOS if `bos`."""
    right: Int[Tensor, " N"]
    wrong: Int[Tensor, " N"]
    pair_index: Int[Tensor, " N"]
    """Index of each prompt's pair in the task."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of pairs that gave no prompt, by reason."""
    bos: bool = True
    """Whether each prompt starts with BOS."""
    patch: list[list[int]] | None = None
    """Token ids of each prompt's second prefix, as many as in `tokens`; None if the task has none."""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, index: Int[Tensor, " B"]) -> Int[Tensor, "B S"]:
        """Return the tokens of the prompts at `index`, which must have one length."""
        return torch.tensor([self.tokens[n] for n in index.tolist()])

    def by_length(self, batch_size: int) -> Iterator[tuple[Int[Tensor, " B"], Int[Tensor, "B S"]]]:
        """Iterate over batches of prompts of one length, shortest first, so that nothing is padded.

        Yields:
            The indices of the prompts, and their tokens.
        """
        for same_length in indices_by_length(self.tokens).values():
            for start in range(0, len(same_length), batch_size):
                index = torch.tensor(same_length[start : start + batch_size])
                yield index, self.batch(index)


def indices_by_length(sequences: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Group the indices of sequences by length, shortest first."""
    groups: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(len(sequence), []).append(i)
    return dict(sorted(groups.items()))


@dataclass(frozen=True)
class Question:
    """A prompt and its two possible next tokens."""

    prompt: list[int]
    right: int
    wrong: int
    patch: list[int] | None = None
    """Token ids of the second prefix, as many as in `prompt`."""


def cut_prompts(
    cut: Cut, tokenizer: PreTrainedTokenizerBase, prefixes: Sequence[str], rights: Sequence[str], wrongs: Sequence[str]
) -> list[Question | str]:
    """Make a question of each prefix and its answers, or return the reason why there is none.

    No tokens are decoded and encoded again: the bytes of a character may be spread over several tokens, none of which
    is text.
    """
    rule = _CUTS[cut]
    if rule.strip_prefix:
        prefixes = [prefix.lstrip() for prefix in prefixes]
    alone = tokenise(tokenizer, prefixes)
    if rule.apart:
        answers = tokenise(tokenizer, rights), tokenise(tokenizer, wrongs)
        return [_question(*parts) for parts in zip(alone, *answers, strict=True)]
    good = tokenise(tokenizer, [prefix + right for prefix, right in zip(prefixes, rights, strict=True)])
    bad = tokenise(tokenizer, [prefix + wrong for prefix, wrong in zip(prefixes, wrongs, strict=True)])
    shared = zip(alone if rule.within_prefix else good, good, bad, strict=True)
    ends = [common_length(*sequences) for sequences in shared]
    return [_question(g[:end], g[end:], b[end:]) for g, b, end in zip(good, bad, ends, strict=True)]


def add_patch(question: Question | str, second: Question | str) -> Question | str:
    """Add a second prefix, or return why the two prefixes can't be compared position by position.

    Args:
        question: The first prefix with its answers.
        second: The second prefix with the same answers.
    """
    if isinstance(question, str):
        return question
    if isinstance(second, str):
        return f"second prefix: {second}"
    if len(question.prompt) != len(second.prompt):
        return "second prefix of another length"
    if (question.right, question.wrong) != (second.right, second.wrong):
        return "other answers after the second prefix"
    return replace(question, patch=second.prompt)


def common_length(*sequences: Sequence[int]) -> int:
    """Return the number of tokens from the beginning that all sequences share."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _question(prompt: list[int], right: list[int], wrong: list[int]) -> Question | str:
    """Keep the first of two-token answers if they differ there; otherwise move it to the prompt."""
    if right == wrong:
        return "the same tokens"
    if len(right) != len(wrong):
        return "answers of different length"
    if len(right) > 2:
        return "answers of more than two tokens"
    if right[0] == wrong[0]:
        prompt, right, wrong = [*prompt, right[0]], right[1:], wrong[1:]
    return Question(prompt, right[0], wrong[0]) if prompt else "nothing before the answers"
