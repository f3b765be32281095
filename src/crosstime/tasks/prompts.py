"""Prompts: a task's pairs as token ids that end where the next token decides between two answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.text.tokens import common_length, encode

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
    strip_prefix, split = _CUTS[cut]
    if strip_prefix:
        prefixes = [prefix.lstrip() for prefix in prefixes]
    return [_question(*parts) for parts in split(tokenizer, prefixes, rights, wrongs)]


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


_Parts = Iterable[tuple[list[int], list[int], list[int]]]
"""Token ids of prompts, right answers and wrong answers."""


def _split_strings(
    tokenizer: PreTrainedTokenizerBase, prefixes: Sequence[str], rights: Sequence[str], wrongs: Sequence[str]
) -> _Parts:
    """Tokenise prefixes and answers apart."""
    return zip(*(encode(tokenizer, texts) for texts in (prefixes, rights, wrongs)), strict=True)


def _split_shared(
    tokenizer: PreTrainedTokenizerBase, prefixes: Sequence[str], rights: Sequence[str], wrongs: Sequence[str]
) -> _Parts:
    """Split both whole texts where they differ from each other or from the prefix alone."""
    for prefix, (prompt, right, wrong) in zip(
        encode(tokenizer, prefixes), _split_tokens(tokenizer, prefixes, rights, wrongs), strict=True
    ):
        end = common_length(prefix, prompt)
        yield prompt[:end], prompt[end:] + right, prompt[end:] + wrong


def _split_tokens(
    tokenizer: PreTrainedTokenizerBase, prefixes: Sequence[str], rights: Sequence[str], wrongs: Sequence[str]
) -> _Parts:
    """Split both whole texts at the first token that differs."""
    good = encode(tokenizer, [prefix + right for prefix, right in zip(prefixes, rights, strict=True)])
    bad = encode(tokenizer, [prefix + wrong for prefix, wrong in zip(prefixes, wrongs, strict=True)])
    for g, b in zip(good, bad, strict=True):
        end = common_length(g, b)
        yield g[:end], g[end:], b[end:]


_Split = Callable[[PreTrainedTokenizerBase, Sequence[str], Sequence[str], Sequence[str]], _Parts]

_CUTS: dict[Cut, tuple[bool, _Split]] = {
    "shared": (False, _split_shared),
    "string": (True, _split_strings),
    "token": (True, _split_tokens),
}
"""Whether spaces before the prefix are dropped, and how the tokens are split into prompt and answers."""
