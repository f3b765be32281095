"""The report in a real browser, from the file system. Skipped where no Chromium is installed."""

import dataclasses
import os
import shutil

import pytest

CHROMIUM = os.environ.get("CROSSTIME_CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
SETTLE = 15_000
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-sync", "--no-first-run"])
        yield found
        found.close()


class Visit:
    """A page, and everything that went wrong on it."""

    def __init__(self, browser, report, fragment: str = "", width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self._keep(message) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append("a token ran as a script"), dialog.dismiss()))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.goto(report.index.as_uri() + fragment)

    def _keep(self, message) -> None:
        self.wrong.append(message.text)

    def _check(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(f"asked the network for {url}")

    def ready(self) -> "Visit":
        self.page.wait_for_selector("#feature-table tbody tr", timeout=SETTLE)
        return self

    def ids(self) -> list[int]:
        return [int(text) for text in self.page.locator("#feature-table tbody th").all_inner_texts()]


@pytest.fixture
def visit(browser):
    visits = []

    def open_page(report, fragment: str = "", width: int = 1280) -> Visit:
        visits.append(Visit(browser, report, fragment, width))
        return visits[-1]

    yield open_page
    for one in visits:
        one.page.close()
        assert one.wrong == []


@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_figure_is_drawn(visit, reports, n):
    page = visit(reports[n]).ready().page
    places = page.locator("[data-figure], [data-task-figure]")
    for i in range(places.count()):
        places.nth(i).scroll_into_view_if_needed()
        places.nth(i).locator(".main-svg").first.wait_for(state="attached", timeout=SETTLE)
    assert page.locator(".notice").count() == 0


def test_the_table_sorts_and_filters(visit, reports):
    one = visit(reports[3]).ready()
    page, before = one.page, one.ids()
    page.click('[data-sort="id"]')
    assert one.ids() == sorted(one.ids())
    page.click('[data-sort="id"]')
    assert one.ids() == sorted(one.ids(), reverse=True)
    page.click('[data-checkpoint-switch] [data-checkpoint="0"]')
    texts = page.locator("#feature-table tbody td:nth-child(2)").all_inner_texts()
    sizes = [float(text.removeprefix("\u2212")) for text in texts]
    assert sizes == sorted(sizes, reverse=True)
    page.click('[data-checkpoint-switch] [data-checkpoint="-1"]')
    assert one.ids() == before
    page.fill("#find", "children")
    kept = page.locator("#feature-table tbody tr").all_inner_texts()
    assert kept
    assert all("children" in text for text in kept)
    page.fill("#find", "")
    page.select_option("#class-filter", label="specific to step1000")
    rows = page.locator("#feature-table tbody tr").all_inner_texts()
    assert rows
    assert all("specific to step1000" in text for text in rows)


def test_a_row_opens_its_card_and_the_address_keeps_it(visit, reports):
    one = visit(reports[3]).ready()
    page = one.page
    page.locator("#feature-table tbody tr").nth(2).click()
    page.wait_for_selector("#card[open] .contexts li", timeout=SETTLE)
    feature = one.ids()[2]
    assert page.inner_text("#card-title") == f"Feature {feature}"
    assert page.evaluate("location.hash") == f"#feature-{feature}"
    assert page.locator("#card .gauges tbody tr").count() == 3
    assert "has a RelIE of at least .10" in page.inner_text("#card .card-words")
    assert page.locator("#card .contexts .peak").count() == 12
    page.click('#card [aria-label="Next feature in the table"]')
    page.wait_for_function(f"document.querySelector('#card-title').textContent === 'Feature {one.ids()[3]}'")
    page.keyboard.press("Escape")
    page.wait_for_selector("#card:not([open])", state="attached")
    assert page.evaluate("location.hash") == ""


def test_a_card_opens_from_its_address_and_hostile_tokens_stay_text(visit, reports):
    features = visit(reports[3]).ready().ids()[:8]
    page = visit(reports[3], f"#feature-{features[0]}").page
    for feature in features:
        page.evaluate(f"location.hash = 'feature-{feature}'")
        page.wait_for_function(f"document.querySelector('#card-title')?.textContent === 'Feature {feature}'")
        assert page.locator("#card[open] .contexts li").count() == 12
        assert page.locator("img, #card script").count() == 0
    assert "</script>" in page.inner_text("#card")


def test_an_unknown_feature_has_a_message(visit, reports):
    page = visit(reports[3], "#feature-999999").page
    page.wait_for_selector("#card[open]", timeout=SETTLE)
    assert "isn't listed for any task" in page.inner_text("#card")


def test_the_task_switch_changes_table_and_figure(visit, reports):
    one = visit(reports[3]).ready()
    before = one.ids()
    one.page.locator('[data-task-switch] [data-task="1"]').last.click()
    one.page.wait_for_function("crosstime.tasks[1] && crosstime.order[0] === crosstime.tasks[1].rows.id[0]")
    assert one.ids() != before
    pressed = one.page.locator('[data-task-switch] [data-task="1"]')
    assert [pressed.nth(i).get_attribute("aria-pressed") for i in range(pressed.count())] == ["true", "true"]


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_page_is_never_wider_than_the_screen(visit, reports, width):
    page = visit(reports[5], width=width).ready().page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("n", [2, 3, 8, 32])
def test_every_figure_of_a_whole_report_is_drawn(visit, whole_reports, n):
    page = visit(whole_reports[n]).ready().page
    places = page.locator("[data-figure], [data-task-figure], #tiles .plot")
    assert page.locator("#tiles .plot").count() == (12 if n > 3 else 0)
    for i in range(places.count()):
        places.nth(i).scroll_into_view_if_needed()
        places.nth(i).locator(".main-svg").first.wait_for(state="attached", timeout=SETTLE)
    assert page.locator(".notice").count() == 0


def test_the_card_of_a_feature_over_many_checkpoints(visit, whole_reports):
    one = visit(whole_reports[8]).ready()
    page = one.page
    feature = one.ids()[0]
    page.evaluate(f"location.hash = 'feature-{feature}'")
    page.wait_for_selector("#card[open] .courses .main-svg", timeout=SETTLE)
    page.wait_for_function("document.querySelectorAll('#card .courses .js-plotly-plot').length === 3")
    band, effect, norm = page.evaluate("document.querySelector('#card .courses .plot').data.map((trace) => trace.y)")
    tile = page.evaluate("crosstime.tasks[0].tiles[0]")
    assert (tile["id"], effect, norm) == (feature, tile["ie"], pytest.approx(tile["norm"], rel=1e-2))
    assert band == [*tile["ie_high"], *reversed(tile["ie_low"])]
    maps = page.evaluate("[...document.querySelectorAll('#card .courses .plot')].slice(1).map((p) => p.data[0].z)")
    for rows in maps:
        assert all(rows[i][j] is None for i in range(8) for j in range(i, 8))
    pair = abs(effect[5]) / (abs(effect[5]) + abs(effect[2]))
    assert maps[0][5][2] == pytest.approx(pair, rel=1e-6)
    cosine = page.evaluate(f"crosstime.loadCard({feature}).then((card) => card.cosine)")
    assert maps[1][5][2] == pytest.approx(cosine[5 * 4 // 2 + 2] / 100)
    page.click("#card summary")
    assert page.locator("#card .gauges tbody tr").count() == 8
    assert "Decoder label" in page.inner_text("#card .card-words")


def test_the_card_of_few_checkpoints_has_their_pairs(visit, whole_reports):
    one = visit(whole_reports[3]).ready()
    page, feature = one.page, one.ids()[0]
    page.evaluate(f"location.hash = 'feature-{feature}'")
    page.wait_for_selector("#card[open] .pairs", timeout=SETTLE)
    heads = page.locator("#card .pairs thead th").all_inner_texts()
    assert heads[1:] == ["step1000 against step256", "step3786 against step1000", "step3786 against step256"]
    rows = page.locator("#card .pairs tbody th").all_inner_texts()
    assert rows == ["RelIE", "Exact RelIE", "RelDec", "Cosine of decoders"]
    effects = page.evaluate(f"crosstime.loadCard({feature}).then((card) => card.tasks[0].ie)")
    shown = page.locator("#card .pairs tbody tr").first.locator("td").all_inner_texts()
    assert float(shown[0]) == pytest.approx(abs(effects[1]) / (abs(effects[0]) + abs(effects[1])), abs=0.006)


def test_annotations_are_shown_found_and_stay_text(visit, whole_reports):
    one = visit(whole_reports[3]).ready()
    page = one.page
    page.fill("#find", "plural nouns")
    ids = one.ids()
    assert ids
    assert all("plural nouns" in text for text in page.locator("#feature-table tbody tr").all_inner_texts())
    assert page.locator("#features b, #features img").count() == 0
    page.evaluate(f"location.hash = 'feature-{ids[0]}'")
    page.wait_for_selector("#card[open] .remarks li", timeout=SETTLE)
    assert "Ada" in page.inner_text("#card .remarks")
    assert "en, fr" in page.inner_text("#card .remarks")
    assert page.locator("#card .remarks b, #card .remarks img").count() == 0


def test_the_table_of_many_checkpoints_scrolls_beside_the_features(visit, whole_reports):
    one = visit(whole_reports[32]).ready()
    page = one.page
    assert page.locator("#feature-table thead th").count() > 32
    page.evaluate("document.querySelector('#features .scroll').scrollLeft = 2000")
    box = page.locator("#feature-table tbody th").first.bounding_box()
    frame = page.locator("#features .scroll").bounding_box()
    assert box["x"] == pytest.approx(frame["x"], abs=1)
    page.select_option("#rank", "31")
    strongest = page.evaluate("crosstime.order[0]")
    rows = page.evaluate("crosstime.tasks[0].rows")
    last = [abs(value) for value in rows["ie"][31]]
    assert last[rows["id"].index(strongest)] == max(last)
    assert one.ids()[0] == strongest
    page.select_option("#class-filter", label="shared by 2 to 8 checkpoints")
    assert one.ids()


def test_tiles_and_task_figures_follow_the_task(visit, whole_reports):
    page = visit(whole_reports[8]).ready().page
    before = page.locator("#tiles figcaption a").all_inner_texts()
    page.locator('[data-task-switch] [data-task="1"]').first.click()
    page.wait_for_function("crosstime.tasks[1]")
    first = page.evaluate("crosstime.tasks[1].tiles[0].id")
    page.wait_for_function(f"document.querySelector('#tiles a').textContent === 'Feature {first}'")
    assert page.locator("#tiles figcaption a").all_inner_texts() != before


def test_a_switch_of_many_checkpoints_is_a_list(visit, whole_reports):
    page = visit(whole_reports[32]).ready().page
    page.locator("#plot-overlap-10").scroll_into_view_if_needed()
    page.locator("#plot-overlap-10 .main-svg").first.wait_for(state="attached", timeout=SETTLE)
    page.select_option('[data-switch="overlap-10 overlap-100"] select', "31")
    wanted = page.evaluate("JSON.stringify(crosstime.figures.effects['overlap-10'].variants[31].data[0].z)")
    page.wait_for_function(f"JSON.stringify(document.getElementById('plot-overlap-10').data[0].z) === {wanted!r}")


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_a_page_of_everything_is_never_wider_than_the_screen(visit, whole_reports, width):
    page = visit(whole_reports[32], width=width).ready().page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_report_without_effects_still_works(visit, synthetic, build):
    data = synthetic.report_data(n_features=64)
    page = visit(build(dataclasses.replace(data, features=None, totals=(), contexts={}, ablation=None))).page
    page.wait_for_selector("#plot-accuracy-0 .main-svg", timeout=SETTLE, state="attached")
