import json

import pytest

from crosstime.data.blimp import GROUPS, load_blimp
from crosstime.data.jsonl import load_jsonl
from crosstime.data.task import Pair

GOOD = '{"prefix": "The keys", "right": " are", "wrong": " is"}'


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prefix_and_answers_are_taken_as_they_are(tmp_path):
    task = load_jsonl(write(tmp_path / "mine.jsonl", GOOD, "", GOOD.replace("keys", "cats")))
    assert task.name == "mine"
    assert task.pairs == (Pair(None, None, "The keys", " are", " is"), Pair(None, None, "The cats", " are", " is"))


@pytest.mark.parametrize("keys", [("good", "bad"), ("sentence_good", "sentence_bad")])
def test_sentences_are_split_at_the_first_word_that_differs(tmp_path, keys):
    line = json.dumps(dict(zip(keys, ("The keys  are here.", "The keys  is here."), strict=True)))
    (pair,) = load_jsonl(write(tmp_path / "a.jsonl", line)).pairs
    assert pair == Pair("The keys  are here.", "The keys  is here.", "The keys", "  are", "  is")


def test_sentences_of_which_one_only_ends_earlier_have_no_answers(tmp_path):
    (pair,) = load_jsonl(write(tmp_path / "a.jsonl", '{"good": "He sleeps", "bad": "He sleeps them"}')).pairs
    assert pair == Pair("He sleeps", "He sleeps them")


def test_both_forms_may_be_given(tmp_path):
    line = '{"good": "The keys are", "bad": "The keys is", "prefix": "Keys", "right": " are", "wrong": " is"}'
    (pair,) = load_jsonl(write(tmp_path / "a.jsonl", line)).pairs
    assert pair == Pair("The keys are", "The keys is", "Keys", " are", " is")


def test_other_keys_windows_line_ends_and_separators_inside_strings_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    line = '{"prefix": "A\u2028\x85B", "right": " are", "wrong": " is", "note": [1, null]}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + (line * 2).encode())
    assert load_jsonl(path, "named").pairs[1].prefix == "A\u2028\x85B"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prefix": "The keys", "right": " are"', "not JSON"),
        ("[1, 2]", "expected a JSON object in {}, got a list"),
        ("null", "got null"),
        ("{}", "found nothing"),
        ('{"prefx": "a", "rigt": "b"}', "expected `prefix`, `right` and `wrong`.*found `prefx`, `rigt`"),
        ('{"prefix": "a", "right": " b"}', "the key `wrong` is missing"),
        ('{"good": "a"}', "the key `bad` is missing"),
        ('{"prefix": "a", "right": 1, "wrong": " c"}', "`right` must be a string, got a number"),
        ('{"prefix": "a", "right": null, "wrong": " c"}', "`right` must be a string, got null"),
        ('{"prefix": "a", "right": " b", "wrong": " b"}', "both answers are ' b'"),
        ('{"good": "a b", "bad": "a b"}', "both sentences"),
        ('{"prefix": "a", "right": "", "wrong": " b"}', "`right` is empty"),
        ('{"prefix": "a", "right": " \\ud800", "wrong": " b"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", GOOD, "", line)
    with pytest.raises(ValueError, match=message) as error:
        load_jsonl(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert "\n" not in str(error.value)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is empty"):
        load_jsonl(write(tmp_path / "empty.jsonl"))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.replace("keys", "clés").encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8: byte 0xe9 at offset"):
        load_jsonl(path)


ONE_PREFIX = {
    "sentence_good": "Paula references Robert.",
    "sentence_bad": "Paula reference Robert.",
    "one_prefix_prefix": "Paula",
    "one_prefix_word_good": "references",
    "one_prefix_word_bad": "reference",
    "UID": "x",
    "pairID": "0",
}
TWO_PREFIX = {"sentence_good": "The women meet.", "sentence_bad": "The woman meet.", "two_prefix_word": "meet"}


@pytest.fixture
def blimp_folder(tmp_path):
    for group in ("plain-subject-verb", "distractor"):
        for name in GROUPS[group]:
            write(tmp_path / f"{name}.jsonl", json.dumps(TWO_PREFIX if name.endswith("_2") else ONE_PREFIX))
    return tmp_path


def test_blimp_records_are_read_after_a_space(blimp_folder):
    (pair,) = load_blimp(blimp_folder, "regular_plural_subject_verb_agreement_1").pairs
    assert pair == Pair(" Paula references Robert.", " Paula reference Robert.", " Paula", " references", " reference")
    (pair,) = load_blimp(blimp_folder, "regular_plural_subject_verb_agreement_2").pairs
    assert pair == Pair(" The women meet.", " The woman meet.")


def test_a_group_joins_its_sets(blimp_folder):
    task = load_blimp(blimp_folder, "subject-verb")
    assert task.name == "subject-verb"
    assert task.sources == GROUPS["subject-verb"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("distractor_agrement_relational_nouns", "distractor_agreement_relational_noun"), ("distractors", "distractor")],
)
def test_an_unknown_set_is_refused_with_the_nearest(blimp_folder, name, nearest):
    with pytest.raises(ValueError, match=f"no BLiMP set '{name}'.*'{nearest}'"):
        load_blimp(blimp_folder, name)


def test_a_malformed_blimp_file_is_named(blimp_folder):
    name = "distractor_agreement_relational_noun"
    path = write(blimp_folder / f"{name}.jsonl", json.dumps(ONE_PREFIX), '{"sentence_good": "a"}')
    with pytest.raises(ValueError, match="`sentence_bad` is missing") as error:
        load_blimp(blimp_folder, name)
    assert str(error.value).startswith(f"{path}:2: ")
    with pytest.raises(ValueError, match="holds no BLiMP sets"):
        load_blimp(blimp_folder / "none", name)
