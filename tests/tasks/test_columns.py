import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosstime.tasks.columns import ColumnPairs, JsonlPairs
from crosstime.tasks.task import Pair
from data_hub import serving

GOOD = '{"prefix": "The keys", "right": " are", "wrong": " is"}'


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prefix_and_answers_are_taken_as_they_are(tmp_path):
    task = JsonlPairs(str(write(tmp_path / "mine.jsonl", GOOD, "", GOOD.replace("keys", "cats")))).load()
    assert task.name == "mine"
    assert task.pairs == (Pair(None, None, "The keys", " are", " is"), Pair(None, None, "The cats", " are", " is"))


@pytest.mark.parametrize("keys", [("good", "bad"), ("sentence_good", "sentence_bad")])
def test_sentences_are_split_at_the_first_word_that_differs(tmp_path, keys):
    line = json.dumps(dict(zip(keys, ("The keys  are here.", "The keys  is here."), strict=True)))
    (pair,) = JsonlPairs(str(write(tmp_path / "a.jsonl", line))).load().pairs
    assert pair == Pair("The keys  are here.", "The keys  is here.", "The keys", "  are", "  is")


def test_sentences_of_which_one_only_ends_earlier_have_no_answers(tmp_path):
    (pair,) = (
        JsonlPairs(str(write(tmp_path / "a.jsonl", '{"good": "He sleeps", "bad": "He sleeps them"}'))).load().pairs
    )
    assert pair == Pair("He sleeps", "He sleeps them")


def test_both_forms_may_be_given(tmp_path):
    line = '{"good": "The keys are", "bad": "The keys is", "prefix": "Keys", "right": " are", "wrong": " is"}'
    (pair,) = JsonlPairs(str(write(tmp_path / "a.jsonl", line))).load().pairs
    assert pair == Pair("The keys are", "The keys is", "Keys", " are", " is")


def test_a_second_prefix_goes_with_either_form(tmp_path):
    lines = GOOD[:-1] + ', "patch": "The key"}', '{"good": "The keys are", "bad": "The keys is", "patch": "The key"}'
    first, second = JsonlPairs(str(write(tmp_path / "a.jsonl", *lines))).load().pairs
    assert first == Pair(None, None, "The keys", " are", " is", "The key")
    assert second == Pair("The keys are", "The keys is", "The keys", " are", " is", "The key")


def test_other_keys_windows_line_ends_and_separators_inside_strings_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    line = '{"prefix": "A\u2028\x85B", "right": " are", "wrong": " is", "note": [1, null]}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + (line * 2).encode())
    assert JsonlPairs(str(path)).load().pairs[1].prefix == "A\u2028\x85B"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prefix": "The keys", "right": " are"', "not JSON"),
        ("[1, 2]", r"expected a JSON object in {}, not \[1, 2\]"),
        ("null", "expected a JSON object in {}, not null"),
        ("{}", "found nothing"),
        ('{"prefx": "a", "rigt": "b"}', "expected `prefix`, `right` and `wrong`.*found `prefx`, `rigt`"),
        ('{"prefix": "a", "right": " b"}', "the key `wrong` is missing"),
        ('{"good": "a"}', "the key `bad` is missing"),
        ('{"prefix": "a", "right": 1, "wrong": " c"}', "`right` must be a string, not 1"),
        ('{"prefix": "a", "right": null, "wrong": " c"}', "`right` must be a string, not null"),
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
        JsonlPairs(path.name).load(tmp_path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert "\n" not in str(error.value)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        JsonlPairs("none.jsonl").load(tmp_path)
    with pytest.raises(ValueError, match="is empty"):
        JsonlPairs(str(write(tmp_path / "empty.jsonl"))).load()
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.replace("keys", "clés").encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8: byte 0xe9 at offset"):
        JsonlPairs(path.name).load(tmp_path)


ROWS = [
    {"yes": "The keys are here.", "no": "The keys is here.", "kind": "number", "id": 1},
    {"yes": 'He said "no", once.', "no": 'He says "no", once.', "kind": "tense", "id": 2},
    {"yes": "The cats are here.", "no": "The cats is here.", "kind": "number", "id": 3},
]
SENTENCES = {"good": "yes", "bad": "no"}


def write_table(path, rows=ROWS):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        write(path, *map(json.dumps, rows))
    else:
        plain = path.with_suffix("") if path.suffix == ".gz" else path
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter={".csv": ",", ".tsv": "\t"}[plain.suffix])
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.csv.gz", "a.parquet"])
def test_columns_of_any_table_are_pairs(tmp_path, name):
    write_table(tmp_path / name)
    task = ColumnPairs(name, **SENTENCES).load(tmp_path)
    assert task.set_names == ("a",) * 3
    assert task.pairs[0] == Pair(ROWS[0]["yes"], ROWS[0]["no"], "The keys", " are", " is")
    assert task.pairs[1].right == " said"
    task = ColumnPairs(name, **SENTENCES, group="kind", leading_space=True).load(tmp_path)
    assert task.set_names == ("number", "tense", "number")
    assert task.pairs[0].sentences == (" The keys are here.", " The keys is here.")
    assert task.pairs[0].prefix == " The keys"


def test_columns_of_answers(tmp_path):
    write_table(tmp_path / "a.csv", [{"p": "The keys", "r": " are", "w": " is", "other": "The key"}])
    (pair,) = ColumnPairs("a.csv", prefix="p", right="r", wrong="w", patch="other").load(tmp_path).pairs
    assert pair == Pair(None, None, "The keys", " are", " is", "The key")
    assert ColumnPairs(("a.csv", "a.csv"), prefix="p", right="r", wrong="w").load(tmp_path).set_names == ("a", "a")


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("a.csv", {"good": "yess", "bad": "no"}, "a.csv:2: there is no column 'yess' among .*; the nearest is 'yes'"),
        ("a.jsonl", {"good": "yess", "bad": "no"}, "a.jsonl:1: there is no column 'yess' among"),
        ("a.parquet", {"good": "yess", "bad": "no"}, "a.parquet: there is no column 'yess' among"),
        ("a.parquet", {"good": "yes", "bad": "id"}, "a.parquet, row 1: `id` must be a string, not 1"),
        ("a.csv", {"good": "yes", "bad": "yes"}, "a.csv:2: both sentences are"),
        ("none.csv", SENTENCES, "none.csv does not exist"),
        ("none.parquet", SENTENCES, "none.parquet does not exist"),
    ],
)
def test_a_bad_table_is_named(tmp_path, name, columns, message):
    if not name.startswith("none"):
        write_table(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        ColumnPairs(name, **columns).load(tmp_path)


def test_empty_cells_and_tables_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("yes,no\na b,a c\n,x\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: `yes` is empty"):
        ColumnPairs("a.csv", **SENTENCES).load(tmp_path)
    (tmp_path / "a.csv").write_text("yes,no\n")
    with pytest.raises(ValueError, match=r"a\.csv is empty"):
        ColumnPairs("a.csv", **SENTENCES).load(tmp_path)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A dataset with two configurations, each with a split for training and one for tests."""
    folder = tmp_path_factory.mktemp("hub")
    config = []
    for name, rows in (("number", ROWS[::2]), ("tense", ROWS[1:2])):
        (folder / name).mkdir()
        for split in ("train", "test"):
            pq.write_table(pa.Table.from_pylist(rows), folder / name / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in ("train", "test")]
        config.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(config)}\n---\n")
    return folder


@pytest.fixture
def hub(hub_folder, tmp_path):
    with serving("someone/pairs", {"main": hub_folder}, tmp_path / "cache") as server:
        yield server


def test_columns_of_a_dataset_on_the_hub(hub, tmp_path):
    pairs = ColumnPairs(repo="someone/pairs", config=("number", "tense"), split="test", **SENTENCES)
    task = pairs.load(tmp_path)
    assert task.set_names == ("number", "number", "tense")
    assert task.pairs[0].prefix == "The keys"
    hub.requests.clear()
    assert pairs.load(tmp_path) == task
    assert not any(".parquet" in request for request in hub.requests), "it is in the cache"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "numbr"}, "someone/pairs: there is no configuration 'numbr'; the nearest is 'number'"),
        ({"config": ()}, "someone/pairs: name one of its configurations: number, tense"),
        ({"split": "tset"}, "someone/pairs has no split 'tset'; the nearest is 'test'"),
        ({"good": "yess"}, "someone/pairs/number/train: there is no column 'yess' among .*; the nearest is 'yes'"),
        ({"bad": "id"}, "someone/pairs/number/train, row 1: `id` must be a string, not 1"),
        ({"repo": "someone/else"}, "someone/else cannot be read: .*doesn't exist on the Hub"),
    ],
)
def test_what_the_dataset_does_not_have_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ColumnPairs(**({"repo": "someone/pairs", "config": "number"} | SENTENCES | change)).load(tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_folder_wins_over_a_dataset_of_the_same_name(tmp_path):
    (tmp_path / "someone" / "pairs").mkdir(parents=True)
    write_table(tmp_path / "someone" / "pairs" / "train.csv", ROWS[:1])
    assert len(ColumnPairs(repo="someone/pairs", **SENTENCES).load(tmp_path)) == 1
