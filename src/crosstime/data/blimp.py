"""BLiMP: minimal pairs of English grammar (Warstadt et al. 2020), from a folder with one JSONL file a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crosstime.data.jsonl import read_records, text_fields
from crosstime.data.task import Pair, Task
from crosstime.lm.nearest import nearest

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


def load_blimp(folder: Path | str, name: str) -> Task:
    """One BLiMP set, or a group of them as one task.

    A space stands before each sentence, as lm-evaluation-harness scores BLiMP. Sets of the two-prefix method (the
    answer is the same word after different prefixes) have sentences only, no prefix.

    Args:
        folder: holds `{set}.jsonl` as BLiMP publishes them; keys that are not read may be missing.
        name: of a set, or of a group (`GROUPS`).

    Raises:
        ValueError: there is no such set or group (the nearest is named), or a file is malformed (file and line).
    """
    folder = Path(folder)
    if name in GROUPS:
        return Task.join(name, [load_blimp(folder, part) for part in GROUPS[name]])
    known = sorted(path.stem for path in folder.glob("*.jsonl"))
    if not known:
        raise ValueError(f"{folder} holds no BLiMP sets: expected files named like {PLAIN[0]}.jsonl")
    if name not in known:
        valid = [*known, *(group for group, parts in GROUPS.items() if set(parts) <= set(known))]
        raise ValueError(f"there is no BLiMP set {name!r} in {folder}{nearest(name, valid)}")
    pairs = []
    for where, record in read_records(folder / f"{name}.jsonl"):
        try:
            pairs.append(_pair(record))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Task.from_pairs(name, pairs)


def _pair(record: dict[str, Any]) -> Pair:
    good, bad = text_fields(record, ("sentence_good", "sentence_bad"))
    if "one_prefix_prefix" not in record:
        return Pair(f" {good}", f" {bad}")
    prefix, right, wrong = text_fields(record, ("one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad"))
    return Pair(f" {good}", f" {bad}", f" {prefix.strip()}", f" {right}", f" {wrong}")
