"""BLiMP: minimal pairs of English grammar (Warstadt et al. 2020), from a folder with one JSONL file a set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crosstime.base.errors import InputError, nearest
from crosstime.tasks.task import Pair, Task
from crosstime.text.records import read_records, text_fields

PLAIN = (
    "regular_plural_subject_verb_agreement_1",
    "regular_plural_subject_verb_agreement_2",
    "irregular_plural_subject_verb_agreement_1",
    "irregular_plural_subject_verb_agreement_2",
)
DISTRACTOR = ("distractor_agreement_relational_noun", "distractor_agreement_relative_clause")
DETERMINER_NOUN = (
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_2",
    "determiner_noun_agreement_irregular_1",
    "determiner_noun_agreement_irregular_2",
    "determiner_noun_agreement_with_adjective_1",
    "determiner_noun_agreement_with_adj_2",
    "determiner_noun_agreement_with_adj_irregular_1",
    "determiner_noun_agreement_with_adj_irregular_2",
)
GROUPS: dict[str, tuple[str, ...]] = {
    "subject-verb": PLAIN + DISTRACTOR,
    "plain-subject-verb": PLAIN,
    "distractor": DISTRACTOR,
    "determiner-noun": DETERMINER_NOUN,
}
"""Sets that go by one name."""


def load_blimp(folder: Path | str, name: str, *, counterfactual: bool = False) -> Task:
    """One BLiMP set, or a group of them as one task.

    A space stands before each sentence, as lm-evaluation-harness scores BLiMP. Sets with one prefix and two answers
    give prefix and answers, whatever their `one_prefix_method` says; all others give sentences only. The few records
    whose two sentences are the same are left out.

    Sets with two prefixes (the answer is one word, right after the first and wrong after the second) have no wrong
    answer, which every metric here needs. With `counterfactual`, those of the groups "plain-subject-verb" and
    "determiner-noun" get it from their group's sets with one prefix: the form that stands most often beside this word
    there. Such a pair has a second prefix, after which the wrong answer is right. Words without such a form give
    sentences only.

    Args:
        folder: holds `{set}.jsonl` as BLiMP publishes them; keys that are not read may be missing.
        name: of a set, or of a group (`GROUPS`).
        counterfactual: give pairs of two-prefix sets their second prefix.

    Raises:
        InputError: there is no such set or group (the nearest is named), or a file is malformed (file and line).
    """
    folder = Path(folder)
    if name in GROUPS:
        return Task.join(name, [load_blimp(folder, part, counterfactual=counterfactual) for part in GROUPS[name]])
    known = blimp_sets(folder)
    if name not in known:
        valid = [*known, *(group for group, parts in GROUPS.items() if set(parts) <= set(known))]
        raise InputError(f"there is no BLiMP set {name!r} in {folder}{nearest(name, valid)}")
    others = _other_forms(folder, name) if counterfactual else {}
    pairs = []
    for where, record in read_records(folder / f"{name}.jsonl"):
        try:
            good, bad = text_fields(record, ("sentence_good", "sentence_bad"))
            if good != bad:
                pairs.append(_pair(record, others))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
    return Task.from_pairs(name, pairs)


def blimp_sets(folder: Path | str) -> list[str]:
    """The names of the sets in a folder.

    Raises:
        InputError: there are none.
    """
    known = sorted(path.stem for path in Path(folder).glob("*.jsonl"))
    if not known:
        raise InputError(f"{folder} holds no BLiMP sets: expected files named like {PLAIN[0]}.jsonl")
    return known


def _pair(record: dict[str, Any], others: Mapping[str, str]) -> Pair:
    """A record as a pair.

    Args:
        others: of the words of a two-prefix set, the other form.
    """
    good, bad = (f" {text}" for text in text_fields(record, ("sentence_good", "sentence_bad")))
    if "one_prefix_prefix" in record:
        return Pair(good, bad, *(f" {text}" for text in _one_prefix(record)))
    if others and "two_prefix_word" in record:
        keys = ("two_prefix_prefix_good", "two_prefix_word", "two_prefix_prefix_bad")
        prefix, word, patch = (text.strip() for text in text_fields(record, keys))
        if word in others:
            return Pair(good, bad, f" {prefix}", f" {word}", f" {others[word]}", f" {patch}")
    return Pair(good, bad)


def _one_prefix(record: dict[str, Any]) -> list[str]:
    """Prefix, right answer and wrong answer."""
    keys = ("one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad")
    return [text.strip() for text in text_fields(record, keys)]


def _other_forms(folder: Path, name: str) -> dict[str, str]:
    """The word that stands most often beside each answer in the one-prefix sets of the group that a set belongs to."""
    beside: dict[str, Counter[str]] = defaultdict(Counter)
    for group in (PLAIN, DETERMINER_NOUN):
        for right, wrong in _answers(folder, group) if name in group else ():
            beside[right][wrong] += 1
            beside[wrong][right] += 1
    return {word: counts.most_common(1)[0][0] for word, counts in beside.items()}


def _answers(folder: Path, group: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in (folder / f"{name}.jsonl" for name in group):
        for where, record in read_records(path) if path.is_file() else ():
            if "one_prefix_prefix" in record:
                try:
                    _, right, wrong = _one_prefix(record)
                except ValueError as error:
                    raise InputError(f"{where}: {error}") from None
                yield right, wrong
