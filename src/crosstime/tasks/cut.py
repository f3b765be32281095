"""Where a prompt ends and its two answers begin: tokens of a text can differ from those of its parts near the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from crosstime.text.tokens import common_length, encode

Cut = Literal["shared", "string", "token"]
"""How a prefix and its answers become tokens.

"shared": the prefix is tokenised alone and with each answer, and what all three share is the prompt; so answers are
what the tokenizer makes of them after the prefix. Texts are taken as they are, leading spaces included.
"string": prefix and answers are tokenised apart, as for the published results of arXiv 2509.05291.
"token": what the tokens of both whole texts share is the prompt, as in the public code of that paper. This too is
without spaces before the prefix, and keeps pairs whose answers share more than their first token.
"""


@dataclass(frozen=True)
class Asked:
    """A prompt and what may come next."""

    prompt: list[int]
    right: int
    wrong: int
    patch: list[int] | None = None
    """The tokens of the second prefix, as many as the prompt's."""


def cut(
    how: Cut, tokenizer: PreTrainedTokenizerBase, prefixes: Sequence[str], rights: Sequence[str], wrongs: Sequence[str]
) -> list[Asked | str]:
    """The prompt, right token and wrong token of each prefix with its answers; or in words why there is none.

    No tokens are decoded and encoded again: the bytes of a character may be spread over several, none of which is text.
    """
    if how == "string":
        parts = zip(
            encode(tokenizer, [prefix.lstrip() for prefix in prefixes]),
            encode(tokenizer, rights),
            encode(tokenizer, wrongs),
            strict=True,
        )
        return [_ask(*part) for part in parts]
    if how == "token":
        prefixes = [prefix.lstrip() for prefix in prefixes]
    good = encode(tokenizer, [prefix + right for prefix, right in zip(prefixes, rights, strict=True)])
    bad = encode(tokenizer, [prefix + wrong for prefix, wrong in zip(prefixes, wrongs, strict=True)])
    alone = encode(tokenizer, prefixes) if how == "shared" else good
    ends = [common_length(*texts) for texts in zip(alone, good, bad, strict=True)]
    return [_ask(g[:end], g[end:], b[end:]) for g, b, end in zip(good, bad, ends, strict=True)]


def beside(first: Asked | str, second: Asked | str) -> Asked | str:
    """A prompt with its second prefix, or in words why the two cannot be compared position by position.

    Args:
        second: the second prefix with the same answers.
    """
    if isinstance(first, str):
        return first
    if isinstance(second, str):
        return f"second prefix: {second}"
    if len(first.prompt) != len(second.prompt):
        return "second prefix of another length"
    if (first.right, first.wrong) != (second.right, second.wrong):
        return "other answers after the second prefix"
    return replace(first, patch=second.prompt)


def _ask(prompt: list[int], right: list[int], wrong: list[int]) -> Asked | str:
    """Of answers of two tokens the first are kept where they differ; else they move to the prompt."""
    if right == wrong:
        return "the same tokens"
    if len(right) != len(wrong):
        return "answers of different length"
    if len(right) > 2:
        return "answers of more than two tokens"
    if right[0] == wrong[0]:
        prompt, right, wrong = [*prompt, right[0]], right[1:], wrong[1:]
    return Asked(prompt, right[0], wrong[0]) if prompt else "nothing before the answers"
