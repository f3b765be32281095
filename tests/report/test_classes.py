"""Classes, lifecycles and decoder labels in words."""

import pytest

from crosstime.attribution.relative import LIFECYCLES
from crosstime.evaluation.diagnostics import LABELS
from crosstime.report.classes import LABEL_WORDS, LIFECYCLE_WORDS, class_group, class_words, pairs

CHOSEN = ["step256", "step1000", "step3786"]


def test_every_lifecycle_and_label_has_words():
    assert tuple(LIFECYCLE_WORDS) == LIFECYCLES
    assert all(words.startswith(f"{kind}: ") for kind, words in LIFECYCLE_WORDS.items())
    assert set(LABEL_WORDS) == set(LABELS)


def test_classes_in_words():
    assert class_words("specific:step256", CHOSEN) == "specific to step256"
    assert class_words("shared:step256+step1000", CHOSEN) == "shared by step256 and step1000"
    assert class_words("shared:" + "+".join(CHOSEN), CHOSEN) == "shared by all checkpoints"
    assert class_words("shared:a+b+c", ["a+b", "c"]) == "shared by a+b and c"
    assert class_words("undefined", CHOSEN) == "no effect"


@pytest.mark.parametrize(
    ("members", "words", "group"),
    [
        ("c", "specific to c", "specific to c"),
        ("a+b", "shared by a and b", "shared by 2 checkpoints"),
        ("b+c+d", "shared from b to d", "shared by 3 checkpoints"),
        ("a+c+d", "shared by 3 checkpoints, a to d", "shared by 3 checkpoints"),
        ("a+b+c+d+e", "shared by all checkpoints", "shared by all checkpoints"),
    ],
)
def test_classes_of_many_checkpoints_are_short(members, words, group):
    label = f"{'shared' if '+' in members else 'specific'}:{members}"
    assert class_words(label, "abcde") == words
    assert class_group(label, "abcde").words == group


def test_groups_of_very_many_checkpoints_are_quarters():
    names = [f"s{i:02}" for i in range(32)]
    labels = ["shared:" + "+".join(names[:k]) for k in range(2, 33)] + [f"specific:{name}" for name in names]
    groups = [group.words for group in sorted({class_group(label, names) for label in labels})]
    assert groups[:32] == [f"specific to {name}" for name in names]
    assert groups[32:] == [
        *("shared by 2 to 8 checkpoints", "shared by 9 to 16 checkpoints", "shared by 17 to 24 checkpoints"),
        *("shared by 25 to 31 checkpoints", "shared by all checkpoints"),
    ]


def test_all_pairs_of_three_and_the_neighbours_of_more():
    assert pairs(1) == []
    assert pairs(2) == [(0, 1)]
    assert pairs(3) == [(0, 1), (1, 2), (0, 2)]
    assert pairs(5) == [(0, 1), (1, 2), (2, 3), (3, 4)]
