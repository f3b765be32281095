import json

import pytest

from crosstime.tasks.clams import ClamsPairs
from crosstime.tasks.task import Pair

TALL = Pair(" The author is tall", " The author are tall", " The author", " is", " are")
OLD = Pair(" The author is old", " The author are old", " The author", " is", " are")


@pytest.fixture
def folder(tmp_path):
    """English as published, French as JSONL."""
    lines = [
        "True\tthe author is tall",
        "False\tthe author are tall",
        "True\tthe author is old",
        "False\tthe author are old",
    ]
    (tmp_path / "en_evalset").mkdir()
    for name in ("simple_agrmt", "vp_coord"):
        (tmp_path / "en_evalset" / f"{name}.txt").write_text("\n".join(lines))
    record = {
        "sentence_good": "Les auteurs que les gardes aiment déménagent",
        "sentence_bad": "Les auteurs que les gardes aiment déménage",
        "clean_prefix": "Les auteurs que les gardes aiment démén",
        "clean_answer": "agent",
        "patch_answer": "age",
        "skip": False,
    }
    (tmp_path / "fr_simple_agrmt.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return tmp_path


def test_the_published_form_pairs_the_nth_true_with_the_nth_false_sentence(folder):
    task = ClamsPairs(str(folder), "en", ("simple_agrmt", "vp_coord")).load()
    assert task.pairs == (TALL, OLD) * 2
    assert task.set_names == ("en_simple_agrmt",) * 2 + ("en_vp_coord",) * 2
    (folder / "en_evalset" / "vp_coord.txt").write_text(
        "False\tThe author are tall\r\nFalse\tthe author are old\nTrue\tthe author is tall\nTrue\tthe author is old \n"
    )
    assert ClamsPairs(str(folder), "en", "vp_coord").load().pairs == (TALL, OLD)


def test_only_the_first_letter_is_made_a_capital(tmp_path):
    (tmp_path / "de_evalset").mkdir()
    (tmp_path / "de_evalset" / "subj_rel.txt").write_text("True\tder Autor lacht\nFalse\tder Autor lachen\n")
    assert ClamsPairs(str(tmp_path), "de", "subj_rel").load().pairs[0].sentences == (
        " Der Autor lacht",
        " Der Autor lachen",
    )


def test_jsonl_is_cut_at_words_not_at_the_pieces_of_one_tokenizer(folder):
    (pair,) = ClamsPairs(str(folder), "fr", "simple_agrmt").load().pairs
    assert (pair.prefix, pair.right, pair.wrong) == (" Les auteurs que les gardes aiment", " déménagent", " déménage")


def test_each_construction_comes_in_all_languages(folder):
    assert ClamsPairs(str(folder), constructions="simple_agrmt").load().set_names == ("en_simple_agrmt",) * 2 + (
        "fr_simple_agrmt",
    )


@pytest.mark.parametrize(
    ("language", "construction", "message"),
    [
        ("eng", "vp_coord", "no language 'eng'; the nearest is 'en'"),
        ("en", "vp_cord", "no construction 'vp_cord' in 'en'; the nearest is 'vp_coord'"),
        ("fr", "vp_coord", "no construction 'vp_coord' in 'fr'; the nearest is 'simple_agrmt'"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(folder, language, construction, message):
    with pytest.raises(ValueError, match=message):
        ClamsPairs(str(folder), language, construction).load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("True\tthe cat is\nFalsch\tthe cat are", r":2: expected True or False, a tab and a sentence, got 'Falsch"),
        ("True the cat is", r":1: expected True or False, a tab and a sentence"),
        ("True\tthe cat is\nTrue\tthe dog is\nFalse\tthe cat are", "2 true and 1 false sentences"),
        ("True\tthe cat is\nFalse\tThe cat is", "pair 1: both sentences are"),
    ],
)
def test_malformed_files_are_named(folder, text, message):
    path = folder / "en_evalset" / "vp_coord.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        ClamsPairs(str(folder), "en", "vp_coord").load()
    assert str(error.value).startswith(str(path))
    (folder / "fr_simple_agrmt.jsonl").write_text('{"sentence_good": "a"}')
    with pytest.raises(
        ValueError, match=r"fr_simple_agrmt.jsonl:1: there is no column 'sentence_bad' among 'sentence_good'"
    ):
        ClamsPairs(str(folder), "fr", "simple_agrmt").load()


def test_a_folder_without_sets_or_none_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"holds no CLAMS sets: expected files named like en_vp_coord\.jsonl"):
        ClamsPairs(str(tmp_path)).load()
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        ClamsPairs("none/x/y").load(tmp_path)
