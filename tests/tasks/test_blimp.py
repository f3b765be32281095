import json

import pytest

from crosstime.tasks.blimp import DISTRACTOR, GROUPS, BlimpPairs
from crosstime.tasks.task import Pair

ONE_PREFIX = {
    "sentence_good": "Paula references Robert.",
    "sentence_bad": "Paula reference Robert.",
    "one_prefix_prefix": "Paula",
    "one_prefix_word_good": "references",
    "one_prefix_word_bad": "reference",
    "one_prefix_method": False,
    "UID": "x",
    "pairID": "0",
}
TWO_PREFIX = {
    "sentence_good": "The women reference Robert.",
    "sentence_bad": "The woman reference Robert.",
    "two_prefix_prefix_good": "The women",
    "two_prefix_prefix_bad": "The woman",
    "two_prefix_word": " reference",
}
"""BLiMP writes a space before some of these words."""


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    for group in ("plain-subject-verb", "distractor"):
        for name in GROUPS[group]:
            write(tmp_path / f"{name}.jsonl", TWO_PREFIX if name.endswith("_2") else ONE_PREFIX)
    return tmp_path


def test_records_are_read_after_a_space_whatever_they_say_of_the_method(folder):
    (pair,) = BlimpPairs("regular_plural_subject_verb_agreement_1", str(folder)).load().pairs
    assert pair == Pair(" Paula references Robert.", " Paula reference Robert.", " Paula", " references", " reference")
    (pair,) = BlimpPairs("regular_plural_subject_verb_agreement_2", str(folder)).load().pairs
    assert pair == Pair(" The women reference Robert.", " The woman reference Robert.")


def test_two_prefixes_with_the_other_form_of_the_word_are_a_counterfactual(folder):
    task = BlimpPairs("plain-subject-verb", str(folder), counterfactual=True).load()
    pairs = dict(zip(task.set_names, task.pairs, strict=True))
    assert pairs["regular_plural_subject_verb_agreement_2"] == Pair(
        *(TWO_PREFIX[key].join((" ", "")) for key in ("sentence_good", "sentence_bad")),
        prefix=" The women",
        right=" reference",
        wrong=" references",
        patch=" The woman",
    )
    assert pairs["regular_plural_subject_verb_agreement_1"].patch is None


def test_the_other_form_is_the_most_frequent_one_of_the_group(folder):
    odd = {**ONE_PREFIX, "one_prefix_word_good": "referenced", "one_prefix_word_bad": "reference"}
    write(folder / "irregular_plural_subject_verb_agreement_1.jsonl", ONE_PREFIX, odd)
    write(folder / f"{DISTRACTOR[0]}.jsonl", *[odd] * 9)
    (pair,) = BlimpPairs("regular_plural_subject_verb_agreement_2", str(folder), counterfactual=True).load().pairs
    assert pair.wrong == " references"


def test_a_word_of_which_no_other_form_is_known_gives_sentences(folder):
    name = "regular_plural_subject_verb_agreement_2"
    write(folder / f"{name}.jsonl", {**TWO_PREFIX, "two_prefix_word": "meet"})
    (pair,) = BlimpPairs(name, str(folder), counterfactual=True).load().pairs
    assert pair == Pair(" The women reference Robert.", " The woman reference Robert.")


def test_records_with_one_sentence_twice_are_left_out(folder):
    name = DISTRACTOR[0]
    write(folder / f"{name}.jsonl", {**ONE_PREFIX, "sentence_bad": ONE_PREFIX["sentence_good"]}, ONE_PREFIX)
    assert len(BlimpPairs(name, str(folder)).load()) == 1


def test_a_group_joins_its_sets(folder):
    task = BlimpPairs("subject-verb", str(folder)).load()
    assert task.name == "subject-verb"
    assert task.set_names == GROUPS["subject-verb"]
    every = BlimpPairs(location=str(folder)).load()
    assert every.set_names == tuple(sorted(GROUPS["subject-verb"]))
    two = BlimpPairs(("distractor", GROUPS["plain-subject-verb"][0]), folder.name).load(folder.parent)
    assert two.set_names == (*GROUPS["distractor"], GROUPS["plain-subject-verb"][0])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("distractor_agrement_relational_nouns", "distractor_agreement_relational_noun"), ("distractors", "distractor")],
)
def test_an_unknown_set_is_refused_with_the_nearest(folder, name, nearest):
    with pytest.raises(ValueError, match=f"no BLiMP set '{name}'.*'{nearest}'"):
        BlimpPairs(name, str(folder)).load()


def test_a_malformed_file_is_named(folder):
    name = "distractor_agreement_relational_noun"
    path = write(folder / f"{name}.jsonl", ONE_PREFIX, {"sentence_good": "a"})
    with pytest.raises(ValueError, match="`sentence_bad` is missing") as error:
        BlimpPairs(name, str(folder)).load()
    assert str(error.value).startswith(f"{path}:2: ")
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        BlimpPairs(name, str(folder / "none")).load()
    path = write(folder / "regular_plural_subject_verb_agreement_1.jsonl", {"one_prefix_prefix": "a"})
    with pytest.raises(ValueError, match=f"{path}:1: the key `one_prefix_word_good` is missing"):
        BlimpPairs("irregular_plural_subject_verb_agreement_2", str(folder), counterfactual=True).load()
