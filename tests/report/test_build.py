"""The files of a report: figures, tables and cards agree with the data, stay small, and contain no markup."""

import dataclasses
import json
import re

import numpy as np
import pytest

from crosstime.attribution.features import FeatureTable

MEGABYTE = 2**20


@pytest.mark.parametrize(("n", "kind"), [(2, "scatter"), (3, "scatterternary"), (5, "heatmap")])
def test_relative_effects_are_drawn_to_suit_the_number_of_checkpoints(reports, n, kind):
    figure = reports[n].values("task-0.js")["figures"]["relative"]
    assert {trace["type"] for trace in figure["variants"][0]["data"]} == {kind}


@pytest.mark.parametrize(("n", "least"), [(2, ".15"), (3, ".10")])
def test_the_notes_distinguish_class_and_lifecycle(reports, n, least):
    notes = reports[n].html.split('id="notes"')[1]
    assert f"a feature is present where its RelIE is at least .3/M, here {least}." in notes
    assert "Two different measures: the class gives the checkpoints with most of the effect" in notes


def test_the_story_is_on_the_first_page(reports):
    text = reports[3].text
    assert "Determiner-noun agreement emerges mostly between step256 and step1000 (.60 → .86)" in text
    assert "Distractor agreement first falls below chance" in text
    assert "Top features: " in text


def test_text_from_data_cannot_become_markup(synthetic, build):
    data = synthetic.report_data(n_features=256)
    hostile = "<script>alert(1)</script>"
    table = data.features.table.slice(0, 3 * 256)
    features = FeatureTable(table.set_column(0, "task", [[hostile] * len(table)]))
    report = build(dataclasses.replace(data, title=hostile, features=features, ablation=None))
    assert "<script>alert" not in report.html
    assert "&lt;script&gt;alert(1)" in report.html
    assert "<img src=x" not in report.html
    for script in (report.folder / "data").iterdir():
        text = script.read_text(encoding="utf-8")
        assert "<" not in text
        assert "\u2028" not in text


def test_hostile_annotations_stay_text(whole_reports):
    for script in (whole_reports[8].folder / "data").iterdir():
        assert "<" not in script.read_text(encoding="utf-8")


def test_hover_texts_are_escaped_twice_once_for_plotly_once_for_the_script(reports):
    task = reports[3].values("task-0.js")
    hover = [text for trace in task["figures"]["relative"]["variants"][0]["data"] for text in trace["text"]]
    assert any("&lt;img src=x" in text for text in hover)
    assert not any("<img" in text for text in hover)


def test_cards_hold_every_listed_feature_and_are_found_by_their_chunk(reports):
    report = reports[3]
    starts = report.values("report.js")["chunks"]
    listed = {feature for i in range(3) for feature in report.values(f"task-{i}.js")["rows"]["id"]}
    chunks = [report.values(f"cards-{i}.js") for i in range(len(starts))]
    assert [min(map(int, chunk)) for chunk in chunks] == starts
    assert listed <= set(report.cards)
    card = next(card for card in report.cards.values() if "contexts" in card)
    assert len(card["promoted"]) == 3
    assert set(card["tasks"]) == {"0", "1", "2"}


def test_tables_agree_with_the_data(synthetic, reports):
    data = synthetic.report_data(n_features=512)
    rows = reports[3].values("task-0.js")["rows"]
    assert reports[3].values("report.js")["tasks"][0] == "determiner-noun agreement"
    ie = data.features.array("determiner-noun agreement", "ie")
    for m in range(3):
        assert rows["ie"][m][0] == pytest.approx(ie[m, rows["id"][0]], rel=1e-3)
    strengths = np.abs(np.array(rows["ie"])).max(0)
    assert (np.diff(strengths) <= 1e-12).all()


def test_ten_thousand_features_stay_within_the_budget(synthetic, build):
    sizes = build(synthetic.report_data(n_features=10_000)).sizes()
    assert sizes["index.html"] < 0.25 * MEGABYTE
    assert sizes.pop("plotly.min.js") < 6 * MEGABYTE
    assert max(sizes.values()) < 1 * MEGABYTE
    assert sum(size for name, size in sizes.items() if name.startswith("cards-")) < 12 * MEGABYTE


def test_thirty_two_checkpoints_stay_within_the_budget(synthetic, build):
    sizes = build(synthetic.whole_data(synthetic.many(32), n_features=4096)).sizes()
    assert sizes.pop("plotly.min.js") < 6 * MEGABYTE
    assert sizes["index.html"] < 0.25 * MEGABYTE
    assert max(sizes.values()) < 1 * MEGABYTE
    assert sum(size for name, size in sizes.items() if name.startswith("cards-")) < 12 * MEGABYTE


def test_unknown_tokens_and_unmeasured_tasks_are_drawn(synthetic, build):
    data = synthetic.report_data(n_features=128)
    survey = dataclasses.replace(
        data.survey,
        tokens=[None, *data.survey.tokens[1:]],
        n_prompts=[0] * 7,
        token_accuracy=np.full((8, 7), np.nan),
        logit_difference=np.full((8, 7), np.nan),
        perplexity=np.array([np.inf, *data.survey.perplexity[1:]]),
    )
    figure = build(dataclasses.replace(data, survey=survey)).figures["accuracy-0"]
    names = {variant["name"]: variant for variant in figure["variants"]}
    assert names["Whole sentences"]["layout"]["xaxis"]["title"]["text"] == "checkpoint"
    assert "gives a prompt" in json.dumps(names["Next word"]["layout"]["annotations"])


def test_zero_tokens_are_at_the_left_edge_of_the_log_axis(reports):
    layout = reports[3].figures["accuracy-0"]["variants"][0]["layout"]["xaxis"]
    assert layout["ticktext"][0] == "0"
    assert layout["tickvals"] == sorted(layout["tickvals"])
    assert "2M" in layout["ticktext"]


def test_a_gap_above_the_limit_is_marked(reports):
    html = reports[3].html
    assert re.search(r'<td class="number warn"[^>]*>7\.02', html)
    assert re.search(r'<div class="warn"><dt>Completeness gap', html)


def test_the_folder_must_exist_and_be_empty(synthetic, build, tmp_path):
    from crosstime.report.build import build_report

    data = synthetic.report_data(n_features=16)
    with pytest.raises(ValueError, match="existing, empty folder"):
        build_report(data, tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="existing, empty folder"):
        build(data)


@pytest.mark.parametrize("missing", ["diagnostics", "exact", "validation", "annotations"])
def test_the_pages_mention_only_what_a_run_has(synthetic, build, missing):
    data = synthetic.whole_data(synthetic.many(8), n_features=64)
    report = build(dataclasses.replace(data, **{missing: () if missing == "annotations" else None}))
    html, rows = report.html, report.values("task-0.js")["rows"]
    assert ('id="plot-directions"' in html) == (missing != "diagnostics")
    assert ("Exact RelIE</h3>" in html) == (missing != "exact")
    assert ("Which measure predicts" in html) == (missing != "validation")
    assert ("label" in rows) == (missing != "diagnostics")
    assert ("exact" in rows) == (missing != "exact")
    assert ("remarks" in rows) == (missing != "annotations")


@pytest.mark.parametrize("n", [8, 32])
def test_tiles_follow_the_strongest_features(whole_reports, n):
    report = whole_reports[n]
    table, task = report.data.features, report.values("task-0.js")
    assert [tile["id"] for tile in task["tiles"]] == task["rows"]["id"][:12]
    tile = task["tiles"][0]
    name = "determiner-noun agreement" if n == 8 else report.values("report.js")["tasks"][0]
    assert tile["ie"] == pytest.approx(table.array(name, "ie")[:, tile["id"]], rel=1e-3)
    assert tile["norm"] == pytest.approx(table.array(name, "decoder_norm")[:, tile["id"]], rel=1e-2)


def test_few_checkpoints_have_no_tiles(whole_reports):
    assert whole_reports[3].values("task-0.js")["tiles"] == []
    assert whole_reports[3].values("report.js")["frames"] == {}


def test_a_card_holds_what_is_known_of_its_feature(whole_reports):
    data, cards = whole_reports[8].data, whole_reports[8].cards
    card = cards[sorted(data.contexts)[0]]
    feature = card["id"]
    assert card["label"] == data.diagnostics.label[feature]
    assert card["reference"] == data.checkpoints[data.diagnostics.reference[feature]]
    assert card["nu_reconstruction"] == pytest.approx(data.diagnostics.nu_reconstruction[:, feature], rel=1e-2)
    below = np.tril_indices(8, -1)
    assert card["cosine"] == pytest.approx((100 * data.diagnostics.cosine[..., feature][below]).round(), abs=0.5)
    assert [remark["annotator"] for remark in card["remarks"]] == ["Ada", "<b>Eve</b>"]
    assert len(card["promoted"]) == 8
    assert sum("rel_exact" in effects for card in cards.values() for effects in card["tasks"].values()) == 120


def test_with_many_checkpoints_promoted_tokens_are_listed_at_some(whole_reports):
    decoded = whole_reports[32].values("report.js")["decoded"]
    assert (decoded[0], decoded[-1], len(decoded)) == (0, 31, 8)
    card = next(card for card in whole_reports[32].cards.values() if "promoted" in card)
    assert len(card["promoted"]) == len(card["suppressed"]) == 8


def test_exact_shares_are_in_the_table(whole_reports):
    rows = whole_reports[3].values("task-0.js")["rows"]
    exact = whole_reports[3].data.exact.table.to_pylist()
    wanted = [
        row["rel_exact"]
        for row in exact
        if row["task"] == "determiner-noun agreement" and row["feature"] == rows["id"][0]
    ]
    assert rows["exact"][0] == pytest.approx(wanted, rel=1e-2)
    assert None in rows["exact"]


def test_the_turn_of_the_directions_is_in_the_text(whole_reports):
    assert "Directions change most at step512" in whole_reports[8].text


def test_the_validation_begins_with_the_means(whole_reports):
    table = whole_reports[8].html.split('class="tight validation"')[1].split("</table>")[0]
    places = re.findall(r'<th scope="row">([^<]+)</th>\s*<td>(.*?)</td>', table, re.DOTALL)
    assert places[0] == ("Mean", "all pairs")
    assert [task for task, _ in places[1:8]] == ["Mean"] * 7
    assert len(places) == 1 + 7 + 14


def test_features_of_other_checkpoints_are_refused(synthetic):
    with pytest.raises(ValueError, match="the features are of the checkpoints step256, step1000, step3786, but"):
        dataclasses.replace(synthetic.report_data(n_features=16), checkpoints=["step256", "step999"])


def test_groups_must_be_of_surveyed_tasks(synthetic):
    data = synthetic.report_data(n_features=16)
    with pytest.raises(ValueError, match="the survey has no task"):
        dataclasses.replace(data, groups=(dataclasses.replace(data.groups[0], tasks=("nothing",)),))
