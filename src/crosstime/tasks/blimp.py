"""BLiMP: minimal pairs of English grammar (Warstadt et al. 2020), as JSONL files, one per set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosstime import demo
from crosstime.base.errors import InputError, nearest
from crosstime.tasks.pair_source import PairSource, PublishedFiles, as_tuple
from crosstime.tasks.task import Pair, Task
from crosstime.text.files import errors_at, read_records, text_fields

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
"""Names for several sets together."""


@dataclass(frozen=True)
class BlimpPairs(PairSource):
    """BLiMP sets, of which the agreement sets are bundled with crosstime.

    Each sentence gets a space before it, as lm-evaluation-harness scores BLiMP. Sets with one prefix and two answers
    give prompts, whatever their `one_prefix_method` is; all others give sentences only. The few records whose two
    sentences are equal are left out.

    Sets with two prefixes (the answer is one word, right after the first and wrong after the second) have no wrong
    answer, which every metric here needs. With `counterfactual`, those of the groups "plain-subject-verb" and
    "determiner-noun" get it from the one-prefix sets of their group: the form most often paired with the word there.
    Such a pair has a second prefix, after which the wrong answer is right. Words without such a form
    give sentences only.

    Example:
        >>> import crosstime as ct
        >>> ct.BlimpPairs("subject-verb").load()
        Task('subject-verb', 6000 pairs from 6 sets)
    """

    source: str = field(default="blimp", init=False)
    sets: str | tuple[str, ...] = ()
    """Names of sets or groups: "subject-verb", "plain-subject-verb", "distractor", "determiner-noun"; default: all."""
    location: str = ""
    """A folder, or a dataset repository on the hub, with `{set}.jsonl` as published; default: the bundled sets."""
    counterfactual: bool = False
    """Give the pairs of two-prefix agreement sets their second prefix."""

    def load(self, folder: Path = Path()) -> Task:
        """Load the pairs; see `PairSource.load`."""
        files = PublishedFiles(self.location or str(demo.BLIMP), folder)
        names = as_tuple(self.sets) or _set_names(files)
        names_of_sets = [set_name for name in names for set_name in GROUPS.get(name, (name,))]
        tasks = [self._load_set(files, name) for name in names_of_sets]
        return Task.join(names[0] if len(names) == 1 else "blimp", tasks)

    def _load_set(self, files: PublishedFiles, name: str) -> Task:
        path = files.find(f"{name}.jsonl")
        if path is None:
            known = _set_names(files)
            groups = (group for group, sets in GROUPS.items() if set(sets) <= set(known))
            raise InputError(f"there is no BLiMP set {name!r} in {files}{nearest(name, [*known, *groups])}")
        other_forms = _other_forms(files, name) if self.counterfactual else {}
        pairs = []
        for record in read_records(path):
            with errors_at(record.where):
                good, bad = text_fields(record.values, ("sentence_good", "sentence_bad"))
                if good != bad:
                    pairs.append(_pair(f" {good}", f" {bad}", record.values, other_forms))
        return Task.from_pairs(name, pairs)


def _set_names(files: PublishedFiles) -> list[str]:
    names = [name.removesuffix(".jsonl") for name in files.names() if name.endswith(".jsonl") and "/" not in name]
    if not names:
        raise InputError(f"{files} holds no BLiMP sets: expected files named like {PLAIN[0]}.jsonl")
    return names


def _pair(good: str, bad: str, record: dict[str, Any], other_forms: Mapping[str, str]) -> Pair:
    """Make a pair of a record.

    Args:
        other_forms: For words of a two-prefix set, the other form.
    """
    if "one_prefix_prefix" in record:
        return Pair(good, bad, *(f" {text}" for text in _one_prefix(record)))
    if other_forms and "two_prefix_word" in record:
        keys = ("two_prefix_prefix_good", "two_prefix_word", "two_prefix_prefix_bad")
        prefix, word, patch = (text.strip() for text in text_fields(record, keys))
        if word in other_forms:
            return Pair(good, bad, f" {prefix}", f" {word}", f" {other_forms[word]}", f" {patch}")
    return Pair(good, bad)


def _one_prefix(record: dict[str, Any]) -> list[str]:
    """Return prefix, right answer and wrong answer."""
    keys = ("one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad")
    return [text.strip() for text in text_fields(record, keys)]


def _other_forms(files: PublishedFiles, name: str) -> dict[str, str]:
    """For each answer in the one-prefix sets of a set's group, return the word most often paired with it."""
    paired: dict[str, Counter[str]] = defaultdict(Counter)
    for group in (PLAIN, DETERMINER_NOUN):
        for right, wrong in _answers(files, group) if name in group else ():
            paired[right][wrong] += 1
            paired[wrong][right] += 1
    return {word: counts.most_common(1)[0][0] for word, counts in paired.items()}


def _answers(files: PublishedFiles, group: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in filter(None, (files.find(f"{name}.jsonl") for name in group)):
        for record in read_records(path):
            if "one_prefix_prefix" in record.values:
                with errors_at(record.where):
                    _, right, wrong = _one_prefix(record.values)
                yield right, wrong
