"""Annotation: which features are shown, sheets to and from spreadsheets of all kinds, and Cohen's kappa."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstime.attribution.features import FeatureTable, long_table
from crosstime.evaluation.contexts import Context, FeatureContexts
from crosstime.report.annotation import (
    CONTEXTS,
    Agreement,
    Annotation,
    agreements,
    cohens_kappa,
    features_to_annotate,
    guard,
    read_sheets,
    unguard,
    write_sheet,
)


def _task(task, ie):
    """Four features whose effects at two checkpoints are given; feature n has its larger decoder at step1 + n % 2."""
    columns = {
        "class": [f"class {n}" for n in range(4)],
        "ie": np.array(ie, dtype=np.float32),
        "rel_ie": np.float32([[0.25, 0.5, 1.0, np.nan], [0.75, 0.5, 0.0, np.nan]]),
        "decoder_norm": np.float32([[2, 1, 2, 1], [1, 2, 1, 2]]),
    }
    return long_table(task, ["step1", "step2"], np.arange(4), columns)


@pytest.fixture
def features():
    one = _task("one", [[5, 0, -1, 0], [0, 0, 0, 0]])
    two = _task("two", [[0, 0, 0, 0], [-9, 0, 2, 1]])
    return FeatureTable(pa.concat_tables([one, two]))


@pytest.fixture
def contexts():
    def of(feature, n):
        tokens = ["The", f" key {n}", "\nto", " it"]
        promoted = {"step1": [(" are", 2.0), (" is", 1.0)], "step2": [(" late", 1.0)]}
        return FeatureContexts(feature, [Context(tokens, [0.0, 2.0, 1.0, 0.0], 1)] * n, promoted, {}, 2.0)

    return {0: of(0, 1), 2: of(2, 7)}


def test_the_union_over_tasks_and_checkpoints_by_size_of_effect(features, contexts):
    assert [row["feature_id"] for row in features_to_annotate(features, contexts, top=1)] == [0]
    assert [row["feature_id"] for row in features_to_annotate(features, contexts, top=2)] == [0, 2]
    # Feature 1 has no effect anywhere, so it is never shown.
    assert [row["feature_id"] for row in features_to_annotate(features, contexts, top=4)] == [0, 2, 3]


def test_what_is_shown(features, contexts):
    zero, two, three = features_to_annotate(features, contexts, top=4)
    assert zero == {
        "feature_id": 0,
        "contexts": "The «key 1»↵to it",
        "promoted": "“ are”, “ is”",
        "task": "two",
        "class": "class 0",
        "rel_ie": "step1 0.25, step2 0.75",
    }
    assert two["contexts"].count("\n") == CONTEXTS - 1
    assert (three["contexts"], three["promoted"]) == ("", "")


def test_blind_hides_and_shuffles_the_same_way_each_time(features, contexts):
    blind = features_to_annotate(features, contexts, top=4, blind=True, seed=1)
    assert all(list(row) == ["feature_id", "contexts", "promoted"] for row in blind)
    assert "step" not in str(blind)
    assert blind == features_to_annotate(features, contexts, top=4, blind=True, seed=1)
    orders = {
        tuple(row["feature_id"] for row in features_to_annotate(features, contexts, top=4, blind=True, seed=seed))
        for seed in range(20)
    }
    assert len(orders) > 1
    assert all(sorted(order) == [0, 2, 3] for order in orders)


def test_top_must_be_positive(features, contexts):
    with pytest.raises(ValueError, match="top must be at least 1"):
        features_to_annotate(features, contexts, top=0)


ROWS = [
    {"feature_id": 3, "contexts": "=1+1\nsecond «line»", "promoted": "“ are”"},
    {"feature_id": 5, "contexts": "ein «Schlüssel», 鍵", "promoted": "-er"},
]
HEADER = "feature_id,contexts,description,languages,category,annotator"


def _write(tmp_path, text, name="sheet.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def _fill(path, **cells):
    """Fills in every row of a sheet as a spreadsheet would."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([{**row, **cells} for row in rows])


def test_out_and_back(tmp_path):
    path = tmp_path / "sheet.csv"
    write_sheet(path, ROWS)
    assert path.read_bytes().startswith(b"\xef\xbb\xbffeature_id,contexts,promoted,description,")
    assert read_sheets([path], 8) == []  # nobody has written anything yet
    _fill(path, description=" plural nouns ", languages="fr; en,fr", category="noun", annotator="Ann")
    expected = [Annotation(feature, "Ann", "plural nouns", ("en", "fr"), "noun") for feature in (3, 5)]
    assert read_sheets([path], 8) == expected


def test_json_out_and_back(tmp_path):
    path = tmp_path / "sheet.json"
    write_sheet(path, ROWS)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows[0]["contexts"] == ROWS[0]["contexts"]  # JSON runs nothing
    rows[1] |= {"description": "=x", "languages": ["fr", "en"], "annotator": ""}
    path.write_text(json.dumps(rows))
    assert read_sheets([path], 8) == [Annotation(5, "sheet", "=x", ("en", "fr"), "")]


def test_a_spreadsheet_runs_nothing_and_text_comes_back(tmp_path):
    path = tmp_path / "sheet.csv"
    write_sheet(path, ROWS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'=1+1\nsecond «line»" in cells
    assert "'-er" in cells
    assert not [cell for cell in cells if cell[:1] in set("=+-@")]
    _fill(path, description="'-s, not -er", category="'@x")
    assert {(a.description, a.category) for a in read_sheets([path], 8)} == {("-s, not -er", "@x")}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_spreadsheet(tmp_path, delimiter, newline):
    lines = [HEADER.replace(",", delimiter), delimiter.join(["5", '"a, b; c"', "what", "en", "noun", "Ann"]), ""]
    path = _write(tmp_path, "\ufeff" + newline.join(lines))
    assert read_sheets([path], 8) == [Annotation(5, "Ann", "what", ("en",), "noun")]


def test_without_a_name_the_annotator_is_the_file(tmp_path):
    mary = _write(tmp_path, f"{HEADER}\n5,,what,,noun,\n", "mary.csv")
    ann = _write(tmp_path, f"{HEADER}\n5,,that,,noun,\n", "ann.csv")
    assert [a.annotator for a in read_sheets([mary, ann], 8)] == ["mary", "ann"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{HEADER}\n3,"two\nlines",x,,,\n9,,x,,,\n', r"sheet.csv:4: there is no feature 9: .* features 0 to 7"),
        (f"{HEADER}\nx3,,x,,,\n", r"sheet.csv:2: feature_id must be the number of a feature, not 'x3'"),
        (f"{HEADER}\n3,,x,,,A\n\n3,,y,,,A\n", r"sheet.csv:4: 'A' already annotated feature 3, at .*sheet.csv:2"),
        (HEADER.replace("category", "kategory"), r":1: there is no column `category`; the nearest is 'kategory'"),
        (f"{HEADER},category\n", r"sheet.csv:1: there are two columns `category`"),
        (f"{HEADER}\n3,,x,,,,,,\n", r"sheet.csv:2: 9 cells, but the header has 6"),
        (f'{HEADER}\n3,"x\n', r"sheet.csv:2: not a row of a CSV file"),
        ("", r"sheet.csv:1: the file is empty"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sheets([_write(tmp_path, text)], 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "sheet.json:1: invalid JSON"),
        ("{}", "expected a list of objects"),
        ('[{"feature_id": 1}]', "object 1: there is no column `description`"),
    ],
)
def test_mistakes_in_json(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sheets([_write(tmp_path, text, "sheet.json")], 8)


def test_the_same_sheet_twice_and_files_of_another_kind(tmp_path):
    path = _write(tmp_path, f"{HEADER}\n3,,x,,,A\n")
    with pytest.raises(ValueError, match="'A' already annotated feature 3"):
        read_sheets([path, path], 8)
    with pytest.raises(ValueError, match=r"sheet.xlsx: the name of a sheet must end in .csv or .json"):
        read_sheets([_write(tmp_path, "", "sheet.xlsx")], 8)
    with pytest.raises(ValueError, match=r"isn't UTF-8 at byte .*: save it as CSV UTF-8"):
        read_sheets([_write(tmp_path, f"{HEADER}\n3,,é,,,\n", "latin.csv", encoding="latin-1")], 8)
    with pytest.raises(ValueError, match="there is nothing to annotate"):
        write_sheet(tmp_path / "empty.csv", [])


def test_a_separator_of_another_alphabet_within_a_cell_cuts_nothing(tmp_path):
    path = _write(tmp_path, f"{HEADER}\n3,,a\u2028b\x0bc\x85d,,,A\n")
    assert read_sheets([path], 8) == [Annotation(3, "A", "a\u2028b\x0bc\x85d")]


@pytest.mark.parametrize("text", ["=1+1", "+49", "-er", "@home", "'=1", "''-x", "\t=1"])
def test_what_a_spreadsheet_would_run_is_text(text):
    assert guard(text) == f"'{text}"
    assert unguard(guard(text)) == text


@pytest.mark.parametrize("text", ["", "plain", "'tis", "a=b", "'", "«=»"])
def test_other_text_stays_as_it_is(text):
    assert guard(text) == unguard(text) == text


@given(st.text(alphabet="'=+-@\t\rab"))
def test_guarding_is_undone(text):
    assert unguard(guard(text)) == text
    assert guard(text)[:1] not in set("=+-@\t\r")


@pytest.mark.parametrize(
    ("a", "b", "kappa"),
    [
        # 50 grant proposals: both yes 20, both no 15, a alone yes 5, b alone yes 10.
        # p = 35/50, q = (25/50)(30/50) + (25/50)(20/50) = 1/2; kappa = 0.2 / 0.5.
        ("y" * 20 + "y" * 5 + "n" * 10 + "n" * 15, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15, 0.4),
        # p = 1/4; q = (2/4)(1/4) + (1/4)(2/4) + (1/4)(1/4) = 5/16; kappa = (-1/16) / (11/16).
        ("xxyz", "yyxz", -1 / 11),
        ("abca", "abca", 1.0),
        # p = 0; q = 2 (1/2)(1/2); kappa = -1.
        ("ab", "ba", -1.0),
        # One annotator knows one category only: p = q = 1/2, nothing beyond chance.
        ("aaaa", "aabb", 0.0),
        ("aaa", "aaa", None),
        ("", "", None),
    ],
)
def test_kappa(a, b, kappa):
    assert cohens_kappa(list(a), list(b)) == (kappa if kappa is None else pytest.approx(kappa, abs=1e-12))


def test_every_two_annotators_on_what_they_share():
    def say(annotator, **categories):
        return [Annotation(int(key[1:]), annotator, category=category) for key, category in categories.items()]

    found = agreements(
        [
            *say("Mary", f1="verb", f2="noun", f3="Verb", f4=""),
            *say("Ann", f1="verb", f2="verb", f3="verb", f4="verb"),
            *say("Zoe", f3="noun", f9="noun"),
            *say("Eve", f7="noun"),
        ]
    )
    # Ann and Mary: p = 2/3, q = 1 (2/3), for Ann always says verb. Case does not matter.
    assert found == [
        Agreement(("Ann", "Mary"), 3, 2 / 3, 0.0),
        Agreement(("Ann", "Zoe"), 1, 0.0, 0.0),
        Agreement(("Mary", "Zoe"), 1, 0.0, 0.0),
    ]
