"""The sections of the page follow from the registry."""

import dataclasses
import re

import plotly.graph_objects as go
import pytest

from crosstime.report.data import ReportData, RunFacts
from crosstime.report.plots.style import Figure
from crosstime.report.sections import SECTIONS, Section, shown_sections

BARE = ReportData("bare", RunFacts("a folder", 3, 16, 0, 0), ["only"])


@pytest.fixture
def plugin(monkeypatch):
    """Register a section for one test, as a plugin would."""
    monkeypatch.setattr(SECTIONS, "_values", dict(SECTIONS._values))

    def add(**fields) -> Section:
        section = Section(**{"name": "mine", "label": "Mine", "title": "My section", "template": ""} | fields)
        return SECTIONS.add(section)

    return add


def navigation(report):
    return re.findall(r'<a href="#([\w-]+)">', report.html.split('class="toc"')[1].split("</nav>")[0])


@pytest.mark.parametrize("n", [2, 3, 8, 32])
def test_page_and_navigation_have_the_registered_sections(whole_reports, n):
    report = whole_reports[n]
    expected = [section.name for section in shown_sections(report.data)]
    assert report.sections == navigation(report) == expected
    report.check_places()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_report_without_optional_parts_has_all_its_sections_and_files(reports, n):
    report = reports[n]
    assert report.sections == navigation(report) == [section.name for section in shown_sections(report.data)]
    report.check_places()
    for path in re.findall(r'(?:src|href)="((?:assets|data)/[^"]+)"', report.html):
        assert (report.folder / path).is_file()
    assert {path.name for path in report.folder.iterdir()} == {"index.html", "assets", "data"}
    assert len(re.findall(r'data-checkpoint="\d"', report.html)) == n


def test_every_section_is_shown_in_a_report_of_everything(whole_reports):
    assert set(whole_reports[8].sections) == set(SECTIONS.names)


def test_a_report_of_next_to_nothing(build):
    assert build(BARE).sections == [section.name for section in SECTIONS if section.present(BARE)]


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"survey": None, "proposal": None, "groups": ()}, {"accuracy", "checkpoints"}),
        ({"proposal": None}, set()),
        ({"quality": None, "training": ()}, set()),
        (
            {"quality": None, "training": (), "features": None, "totals": (), "exact": None},
            {"top-features", "crosscoder", "effects", "diagnostics", "features"},
        ),
        ({"ablation": None, "exact": None, "validation": None}, {"ablation"}),
        ({"contexts": {}}, set()),
        ({"groups": ()}, set()),
        ({"totals": ()}, set()),
        ({"diagnostics": None}, {"diagnostics"}),
        ({"annotations": ()}, set()),
    ],
)
def test_what_is_missing_is_left_out(synthetic, build, missing, gone):
    data = synthetic.whole_data(n_features=64)
    before = {section.name for section in shown_sections(data)}
    report = build(dataclasses.replace(data, **missing))
    assert gone <= before
    assert gone.isdisjoint(report.sections)
    # Nothing else is lost; a section of which this test does not know may need the missing part, too.
    assert report.sections == [section.name for section in SECTIONS if section.present(report.data)]
    known = {"accuracy", "top-features", "checkpoints", "crosscoder", "effects", "features", "ablation", "notes"}
    assert known - gone <= set(report.sections)
    report.check_places()


def test_ablation_is_shown_if_only_exact_effects_are_known(synthetic, build):
    report = build(dataclasses.replace(synthetic.whole_data(n_features=64), ablation=None, validation=None))
    assert "ablation" in report.sections
    report.check_places()


@pytest.mark.parametrize("form", ["source", "file"])
def test_a_plugin_adds_a_section(plugin, build, tmp_path_factory, form):
    template = "{{ m.head(section) }}<p>{{ text }}</p>{{ m.plot(figures.drawn[0]) }}"
    if form == "file":
        path = tmp_path_factory.mktemp("plugin") / "mine.html.j2"
        path.write_text(template, encoding="utf-8")
        template = path
    others = [section.name for section in shown_sections(BARE)]
    plugin(
        template=template,
        figures=lambda _: {"drawn": [Figure("my-figure", "A figure", {"": go.Figure()}, 200)]},
        values=lambda data: {"text": f"<{data.title}>"},
        order=1,
    )
    report = build(dataclasses.replace(BARE, title="a & b"))
    assert report.sections == navigation(report) == ["mine", *others]
    assert "<h2>My section</h2>" in report.html
    assert "<p>&lt;a &amp; b&gt;</p>" in report.html
    assert list(report.values("figures-mine.js")) == ["my-figure"]
    assert '<script src="data/figures-mine.js">' in report.html
    report.check_places()


def test_a_plugin_draws_figures_by_task(plugin, synthetic, build):
    plugin(
        template="{{ m.task_plot(task_figures.mine) }}",
        task_figures=lambda features: [Figure("mine", features.name, {"": go.Figure()}, 200)],
    )
    report = build(synthetic.report_data(n_features=64))
    report.check_places()
    titles = [report.values(f"task-{i}.js")["figures"]["mine"]["title"] for i in range(3)]
    assert titles == report.values("report.js")["tasks"]
    assert report.sections.index("mine") == len(report.sections) - 2  # before the notes


def test_an_absent_section_computes_nothing(plugin, build):
    def fail(_):
        raise AssertionError

    plugin(present=lambda _: False, figures=fail, values=fail)
    assert "mine" not in build(BARE).sections


def test_mistakes_in_a_section_are_named(plugin, build):
    with pytest.raises(ValueError, match="name must consist of lower-case letters, digits and hyphens, not 'My one'"):
        plugin(name="My one")
    with pytest.raises(ValueError, match="there is already a section of the report 'notes'"):
        plugin(name="notes")
    figure = Figure("twice", "A figure", {"": go.Figure()}, 200)
    plugin(figures=lambda _: {"drawn": [figure, figure]})
    with pytest.raises(ValueError, match="two figures of the report have the key 'twice'"):
        build(BARE)
