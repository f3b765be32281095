import json

import pytest

from crosstime.tasks.jsonl import load_jsonl
from crosstime.tasks.task import Pair

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


def test_a_second_prefix_goes_with_either_form(tmp_path):
    lines = GOOD[:-1] + ', "patch": "The key"}', '{"good": "The keys are", "bad": "The keys is", "patch": "The key"}'
    first, second = load_jsonl(write(tmp_path / "a.jsonl", *lines)).pairs
    assert first == Pair(None, None, "The keys", " are", " is", "The key")
    assert second == Pair("The keys are", "The keys is", "The keys", " are", " is", "The key")


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
        ('{"prefix": "a", "right": " b", "wrong": " c", "patch": ""}', "`patch` is empty"),
        ('{"prefix": "a", "right": " b", "wrong": " c", "patch": "a"}', "both prefixes are 'a'"),
        ('{"good": "He sleeps", "bad": "He sleeps them", "patch": "She"}', "`patch` is a second prefix"),
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
