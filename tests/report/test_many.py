"""Reports of many checkpoints, and of everything that a run may have."""

import dataclasses
import json
import re

import numpy as np
import pytest

from crosstime.report.build import build_report
from crosstime.report.features import class_group, class_words, pairs

MEGABYTE = 2**20


def page(folder) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def values(folder, name):
    """The value that a data script assigns."""
    text = (folder / "data" / name).read_text(encoding="utf-8")
    return json.loads(text[text.index(" = ") + 3 : text.rindex(";")])


def cards(folder) -> dict[int, dict]:
    """Every card of a report, by feature."""
    chunks = sorted((folder / "data").glob("cards-*.js"))
    return {int(key): card for chunk in chunks for key, card in values(folder, chunk.name).items()}


def sections(folder) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page(folder))


@pytest.mark.parametrize("n", [2, 3, 8, 32])
def test_a_whole_report_has_all_its_sections(whole_reports, n):
    assert sections(whole_reports[n]) == [
        *("accuracy", "carriers", "checkpoints", "crosscoder", "effects"),
        *(["trajectories"] if n > 3 else []),
        *("honesty", "features", "ablation", "notes"),
    ]


@pytest.mark.parametrize("n", [2, 3, 8, 32])
def test_every_figure_has_a_place_and_every_place_a_figure(whole_reports, n):
    html = page(whole_reports[n])
    assert set(re.findall(r'data-figure="([\w-]+)"', html)) == set(values(whole_reports[n], "figures.js"))
    places = set(re.findall(r'data-task-figure="([\w-]+)"', html))
    for task in range(3):
        assert places == set(values(whole_reports[n], f"task-{task}.js")["figures"])


@pytest.mark.parametrize("missing", ["diagnostics", "exact", "validation", "annotations"])
def test_what_a_run_does_not_have_is_left_out(synthetic, tmp_path, missing):
    data = synthetic.whole_data(synthetic.many(8), n_features=64)
    build_report(dataclasses.replace(data, **{missing: () if missing == "annotations" else None}), tmp_path)
    html, rows = page(tmp_path), values(tmp_path, "task-0.js")["rows"]
    assert ('id="honesty"' in html) == (missing != "diagnostics")
    assert ('id="plot-directions"' in html) == (missing != "diagnostics")
    assert ("Exact RelIE</h3>" in html) == (missing != "exact")
    assert ("Which measure tells" in html) == (missing != "validation")
    assert ("label" in rows) == (missing != "diagnostics")
    assert ("exact" in rows) == (missing != "exact")
    assert ("remarks" in rows) == (missing != "annotations")


def test_ablation_stands_for_itself_where_only_exact_effects_are_known(synthetic, tmp_path):
    build_report(dataclasses.replace(synthetic.whole_data(n_features=64), ablation=None), tmp_path)
    assert "ablation" in sections(tmp_path)


@pytest.mark.parametrize("n", [8, 32])
def test_tiles_follow_the_strongest_features(synthetic, whole_reports, n):
    table = synthetic.whole_data(synthetic.many(n), n_features=512 if n < 32 else 256).features
    task = values(whole_reports[n], "task-0.js")
    assert [tile["id"] for tile in task["tiles"]] == task["rows"]["id"][:12]
    tile = task["tiles"][0]
    name = "determiner-noun agreement" if n == 8 else values(whole_reports[n], "report.js")["tasks"][0]
    assert tile["ie"] == pytest.approx(table.array(name, "ie")[:, tile["id"]], rel=1e-3)
    assert tile["norm"] == pytest.approx(table.array(name, "decoder_norm")[:, tile["id"]], rel=1e-2)


def test_few_checkpoints_have_no_tiles(whole_reports):
    assert values(whole_reports[3], "task-0.js")["tiles"] == []
    assert values(whole_reports[3], "report.js")["frames"] == {}


def test_a_card_holds_what_is_known_of_its_feature(synthetic, whole_reports):
    data = synthetic.whole_data(synthetic.many(8), n_features=512)
    known = cards(whole_reports[8])
    card = known[sorted(data.contexts)[0]]
    feature = card["id"]
    assert card["label"] == data.diagnostics.label[feature]
    assert card["reference"] == data.chosen[data.diagnostics.reference[feature]]
    assert card["nu_reconstruction"] == pytest.approx(data.diagnostics.nu_reconstruction[:, feature], rel=1e-2)
    below = np.tril_indices(8, -1)
    assert card["cosine"] == pytest.approx((100 * data.diagnostics.cosine[..., feature][below]).round(), abs=0.5)
    assert [remark["annotator"] for remark in card["remarks"]] == ["Ada", "<b>Eve</b>"]
    assert len(card["promoted"]) == 8
    assert sum("rel_exact" in effects for card in known.values() for effects in card["tasks"].values()) == 120


def test_of_many_checkpoints_the_decoder_is_told_at_some(whole_reports):
    decoded = values(whole_reports[32], "report.js")["decoded"]
    assert (decoded[0], decoded[-1], len(decoded)) == (0, 31, 8)
    card = next(card for card in cards(whole_reports[32]).values() if "promoted" in card)
    assert len(card["promoted"]) == len(card["suppressed"]) == 8


def test_exact_shares_stand_beside_the_estimates(synthetic, whole_reports):
    rows = values(whole_reports[3], "task-0.js")["rows"]
    exact = synthetic.whole_data(n_features=512).exact.table.to_pylist()
    wanted = [
        row["rel_exact"]
        for row in exact
        if row["task"] == "determiner-noun agreement" and row["feature"] == rows["id"][0]
    ]
    assert rows["exact"][0] == pytest.approx(wanted, rel=1e-2)
    assert None in rows["exact"]


def test_the_turning_point_is_told(whole_reports):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page(whole_reports[8])))
    assert "Features point most elsewhere from step512 on" in text


def test_the_validation_begins_with_the_means(whole_reports):
    table = page(whole_reports[8]).split('class="tight validation"')[1].split("</table>")[0]
    places = re.findall(r'<th scope="row">([^<]+)</th>\s*<td>(.*?)</td>', table, re.DOTALL)
    assert places[0] == ("Mean", "all pairs")
    assert [task for task, _ in places[1:8]] == ["Mean"] * 7
    assert len(places) == 1 + 7 + 14


def test_thirty_two_checkpoints_stay_within_the_budget(synthetic, tmp_path):
    build_report(synthetic.whole_data(synthetic.many(32), n_features=4096), tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert sizes.pop("plotly.min.js") < 6 * MEGABYTE
    assert sizes["index.html"] < 0.25 * MEGABYTE
    assert max(sizes.values()) < 1 * MEGABYTE
    assert sum(size for name, size in sizes.items() if name.startswith("cards-")) < 12 * MEGABYTE


def test_hostile_annotations_stay_text(whole_reports):
    for script in (whole_reports[8] / "data").iterdir():
        assert "<" not in script.read_text(encoding="utf-8")


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
