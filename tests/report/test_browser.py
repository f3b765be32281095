"""The report in a real browser, from the file system. Skipped where no Chromium is installed."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from crosstime.report.build import build_report

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

    def __init__(self, browser, folder: Path, fragment: str = "", width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self._keep(message) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append("a token ran as a script"), dialog.dismiss()))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.goto((folder / "index.html").as_uri() + fragment)

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

    def open_page(folder: Path, fragment: str = "", width: int = 1280) -> Visit:
        visits.append(Visit(browser, folder, fragment, width))
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
    assert "with at least .10 of RelIE" in page.inner_text("#card .card-words")
    assert page.locator("#card .contexts .peak").count() == 12
    page.click('#card [aria-label="Next feature of the table"]')
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


def test_an_unknown_feature_is_said_to_be_unknown(visit, reports):
    page = visit(reports[3], "#feature-999999").page
    page.wait_for_selector("#card[open]", timeout=SETTLE)
    assert "not among the features listed" in page.inner_text("#card")


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


def test_a_report_without_effects_still_works(visit, synthetic, tmp_path):
    data = synthetic.report_data(n_features=64)
    build_report(dataclasses.replace(data, features=None, tasks=(), contexts={}, ablation=None), tmp_path)
    page = visit(tmp_path).page
    page.wait_for_selector("#plot-accuracy-0 .main-svg", timeout=SETTLE, state="attached")
