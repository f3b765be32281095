import dataclasses
import json
import re

import numpy as np
import pytest

from crosstime.attribution.features import FeatureTable
from crosstime.attribution.relative import LIFECYCLES
from crosstime.report.build import build_report
from crosstime.report.data import ReportData, RunFacts
from crosstime.report.features import LIFECYCLE_WORDS

MEGABYTE = 2**20


def page(folder) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def values(folder, name) -> object:
    """The value that a data script assigns."""
    text = (folder / "data" / name).read_text(encoding="utf-8")
    return json.loads(text[text.index(" = ") + 3 : text.rindex(";")])


def sections(folder) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page(folder))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_report_has_all_its_sections_and_files(reports, n):
    folder = reports[n]
    assert sections(folder) == [
        *("accuracy", "carriers", "checkpoints", "crosscoder", "effects"),
        *(["trajectories"] if n > 3 else []),
        *("features", "ablation", "notes"),
    ]
    for path in re.findall(r'(?:src|href)="((?:assets|data)/[^"]+)"', page(folder)):
        assert (folder / path).is_file()
    assert {path.name for path in folder.iterdir()} == {"index.html", "assets", "data"}
    assert len(re.findall(r'data-checkpoint="\d"', page(folder))) == n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_drawn_figure_has_a_place_and_every_place_a_figure(reports, n):
    places = set(re.findall(r'data-figure="([\w-]+)"', page(reports[n])))
    assert places == set(values(reports[n], "figures.js"))


@pytest.mark.parametrize(("n", "kind"), [(2, "scatter"), (3, "scatterternary"), (5, "heatmap")])
def test_relative_effects_are_drawn_to_suit_the_number_of_checkpoints(reports, n, kind):
    figure = values(reports[n], "task-0.js")["figures"]["relative"]
    assert {trace["type"] for trace in figure["variants"][0]["data"]} == {kind}


@pytest.mark.parametrize(("n", "least"), [(2, ".15"), (3, ".10")])
def test_class_and_lifecycle_are_told_apart_in_the_notes(reports, n, least):
    notes = page(reports[n]).split('id="notes"')[1]
    assert f"a feature is present at one that holds at least .3/M of its RelIE, here {least}." in notes
    assert "Two measures: the class says where most of the effect lies" in notes


def test_every_lifecycle_has_words():
    assert tuple(LIFECYCLE_WORDS) == LIFECYCLES
    assert all(words.startswith(f"{kind}: ") for kind, words in LIFECYCLE_WORDS.items())


def test_the_story_is_on_the_first_page(reports):
    text = re.sub(r"<[^>]+>", "", page(reports[3]))
    text = re.sub(r"\s+", " ", text)
    assert "Determiner-noun agreement emerges mostly between step256 and step1000 (.60 → .86)" in text
    assert "Distractor agreement first falls below chance" in text
    assert "Carried most by feature" in text


def test_text_from_data_cannot_become_markup(synthetic, tmp_path):
    data = synthetic.report_data(n_features=256)
    hostile = "<script>alert(1)</script>"
    table = data.features.table.slice(0, 3 * 256)
    features = FeatureTable(table.set_column(0, "task", [[hostile] * len(table)]))
    data = dataclasses.replace(data, title=hostile, features=features, ablation=None)
    build_report(data, tmp_path)
    html = page(tmp_path)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "<img src=x" not in html
    for script in (tmp_path / "data").iterdir():
        text = script.read_text(encoding="utf-8")
        assert "<" not in text
        assert "\u2028" not in text


def test_hover_texts_are_escaped_twice_once_for_plotly_once_for_the_script(reports):
    task = values(reports[3], "task-0.js")
    hover = [text for trace in task["figures"]["relative"]["variants"][0]["data"] for text in trace["text"]]
    assert any("&lt;img src=x" in text for text in hover)
    assert not any("<img" in text for text in hover)


def test_cards_hold_every_listed_feature_and_are_found_by_their_chunk(reports):
    folder = reports[3]
    starts = values(folder, "report.js")["chunks"]
    listed = {feature for i in range(3) for feature in values(folder, f"task-{i}.js")["rows"]["id"]}
    cards = [values(folder, f"cards-{i}.js") for i in range(len(starts))]
    assert [min(map(int, chunk)) for chunk in cards] == starts
    assert listed <= {int(feature) for chunk in cards for feature in chunk}
    card = next(card for chunk in cards for card in chunk.values() if "contexts" in card)
    assert len(card["promoted"]) == 3
    assert set(card["tasks"]) == {"0", "1", "2"}


def test_tables_agree_with_the_data(synthetic, reports):
    data = synthetic.report_data(n_features=512)
    rows = values(reports[3], "task-0.js")["rows"]
    assert values(reports[3], "report.js")["tasks"][0] == "determiner-noun agreement"
    ie = data.features.array("determiner-noun agreement", "ie")
    for m in range(3):
        assert rows["ie"][m][0] == pytest.approx(ie[m, rows["id"][0]], rel=1e-3)
    strengths = np.abs(np.array(rows["ie"])).max(0)
    assert (np.diff(strengths) <= 1e-12).all()


def test_ten_thousand_features_stay_within_the_budget(synthetic, tmp_path):
    build_report(synthetic.report_data(n_features=10_000), tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert sizes["index.html"] < 0.25 * MEGABYTE
    assert sizes.pop("plotly.min.js") < 6 * MEGABYTE
    assert max(sizes.values()) < 1 * MEGABYTE
    assert sum(size for name, size in sizes.items() if name.startswith("cards-")) < 12 * MEGABYTE


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"survey": None, "proposal": None, "groups": ()}, {"accuracy", "checkpoints"}),
        ({"proposal": None}, set()),
        ({"quality": None, "training": ()}, set()),
        (
            {"quality": None, "training": (), "features": None, "tasks": ()},
            {"carriers", "crosscoder", "effects", "features"},
        ),
        ({"ablation": None}, {"ablation"}),
        ({"contexts": {}}, set()),
        ({"groups": ()}, set()),
        ({"tasks": ()}, set()),
    ],
)
def test_what_is_missing_is_left_out(synthetic, tmp_path, missing, gone):
    whole = {"accuracy", "carriers", "checkpoints", "crosscoder", "effects", "features", "ablation", "notes"}
    build_report(dataclasses.replace(synthetic.report_data(n_features=128), **missing), tmp_path)
    assert set(sections(tmp_path)) == whole - gone
    places = set(re.findall(r'data-figure="([\w-]+)"', page(tmp_path)))
    assert places == set(values(tmp_path, "figures.js"))


def test_a_report_of_next_to_nothing(tmp_path):
    data = ReportData("bare", RunFacts("a folder", 3, 16, 0, 0), ["only"])
    build_report(data, tmp_path)
    assert sections(tmp_path) == ["notes"]


def test_unknown_tokens_and_unmeasured_tasks_are_drawn(synthetic, tmp_path):
    data = synthetic.report_data(n_features=128)
    survey = dataclasses.replace(
        data.survey,
        tokens=[None, *data.survey.tokens[1:]],
        n_prompts=[0] * 7,
        token_accuracy=np.full((8, 7), np.nan),
        logit_difference=np.full((8, 7), np.nan),
        perplexity=np.array([np.inf, *data.survey.perplexity[1:]]),
    )
    build_report(dataclasses.replace(data, survey=survey), tmp_path)
    figure = values(tmp_path, "figures.js")["accuracy-0"]
    names = {variant["name"]: variant for variant in figure["variants"]}
    assert names["Whole sentences"]["layout"]["xaxis"]["title"]["text"] == "checkpoint"
    assert "gives a prompt" in json.dumps(names["Next word"]["layout"]["annotations"])


def test_zero_tokens_stand_at_the_left_edge_of_the_log_axis(reports):
    layout = values(reports[3], "figures.js")["accuracy-0"]["variants"][0]["layout"]["xaxis"]
    assert layout["ticktext"][0] == "0"
    assert layout["tickvals"] == sorted(layout["tickvals"])
    assert "2M" in layout["ticktext"]


def test_a_gap_above_the_limit_is_marked(reports):
    html = page(reports[3])
    assert re.search(r'<td class="number warn"[^>]*>7\.02', html)
    assert re.search(r'<div class="warn"><dt>Completeness gap', html)


def test_the_folder_must_be_there_and_empty(synthetic, tmp_path):
    data = synthetic.report_data(n_features=16)
    with pytest.raises(ValueError, match="existing, empty folder"):
        build_report(data, tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="existing, empty folder"):
        build_report(data, tmp_path)


def test_features_of_other_checkpoints_are_refused(synthetic):
    with pytest.raises(ValueError, match="the features are of step256, step1000, step3786, not of the chosen"):
        dataclasses.replace(synthetic.report_data(n_features=16), chosen=["step256", "step999"])


def test_groups_must_be_of_surveyed_tasks(synthetic):
    data = synthetic.report_data(n_features=16)
    with pytest.raises(ValueError, match="the survey has no task"):
        dataclasses.replace(data, groups=(dataclasses.replace(data.groups[0], tasks=("nothing",)),))
