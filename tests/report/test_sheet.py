"""Sheets go out, come back from spreadsheets of all kinds, and mistakes in them are named by file and line."""

import csv
import json

import pytest

from crosstime.report.annotation import Annotation
from crosstime.report.sheet import read_sheets, write_sheet

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
        (f"{HEADER}\n3,,x,,,A\n\n3,,y,,,A\n", r"sheet.csv:4: 'A' has annotated feature 3 already, at .*sheet.csv:2"),
        (HEADER.replace("category", "kategory"), r":1: there is no column `category`; the nearest is 'kategory'"),
        (f"{HEADER},category\n", r"sheet.csv:1: there are two columns `category`"),
        (f"{HEADER}\n3,,x,,,,,,\n", r"sheet.csv:2: 9 cells under a header of 6"),
        (f'{HEADER}\n3,"x\n', r"sheet.csv:2: this is no row of a CSV file"),
        ("", r"sheet.csv:1: the file is empty"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sheets([_write(tmp_path, text)], 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "sheet.json:1: this is not JSON"),
        ("{}", "must be a list of objects"),
        ('[{"feature_id": 1}]', "object 1: there is no column `description`"),
    ],
)
def test_mistakes_in_json(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sheets([_write(tmp_path, text, "sheet.json")], 8)


def test_the_same_sheet_twice_and_files_of_another_kind(tmp_path):
    path = _write(tmp_path, f"{HEADER}\n3,,x,,,A\n")
    with pytest.raises(ValueError, match="'A' has annotated feature 3 already"):
        read_sheets([path, path], 8)
    with pytest.raises(ValueError, match=r"sheet.xlsx must be called .csv or .json"):
        read_sheets([_write(tmp_path, "", "sheet.xlsx")], 8)
    with pytest.raises(ValueError, match=r"is not UTF-8 at byte .*: save it as CSV UTF-8"):
        read_sheets([_write(tmp_path, f"{HEADER}\n3,,é,,,\n", "latin.csv", encoding="latin-1")], 8)
    with pytest.raises(ValueError, match="there is nothing to annotate"):
        write_sheet(tmp_path / "empty.csv", [])


def test_a_separator_of_another_alphabet_within_a_cell_cuts_nothing(tmp_path):
    path = _write(tmp_path, f"{HEADER}\n3,,a\u2028b\x0bc\x85d,,,A\n")
    assert read_sheets([path], 8) == [Annotation(3, "A", "a\u2028b\x0bc\x85d")]
