"""Synthetic reports, built once for all tests of this folder."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from crosstime.report.build import build_report
from crosstime.report.data import ReportData

CHECKPOINTS = {
    2: ("step256", "step3786"),
    3: ("step256", "step1000", "step3786"),
    5: ("step64", "step256", "step512", "step1000", "step3786"),
}


class Report:
    """A report that was built from data."""

    def __init__(self, data: ReportData, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.index = build_report(data, folder)

    @property
    def html(self) -> str:
        return self.index.read_text(encoding="utf-8")

    @property
    def text(self) -> str:
        """The page without its markup, in one line."""
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", self.html))

    @property
    def sections(self) -> list[str]:
        return re.findall(r'<section id="([\w-]+)"', self.html)

    def values(self, name: str):
        """The value that a data script assigns."""
        text = (self.folder / "data" / name).read_text(encoding="utf-8")
        return json.loads(text[text.index(" = ") + 3 : text.rindex(";")])

    @property
    def figures(self) -> dict[str, dict]:
        """All figures that don't change with the task, by key."""
        files = sorted((self.folder / "data").glob("figures-*.js"))
        return {key: figure for file in files for key, figure in self.values(file.name).items()}

    @property
    def cards(self) -> dict[int, dict]:
        """All cards, by feature."""
        files = sorted((self.folder / "data").glob("cards-*.js"))
        return {int(key): card for file in files for key, card in self.values(file.name).items()}

    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        return {path.name: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}

    def check_places(self) -> None:
        """Every figure has a place on the page, and every place a figure."""
        assert set(re.findall(r'data-figure="([\w-]+)"', self.html)) == set(self.figures)
        places = set(re.findall(r'data-task-figure="([\w-]+)"', self.html))
        for file in sorted((self.folder / "data").glob("task-*.js")):
            assert places == set(self.values(file.name)["figures"])


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module that makes up a report's input."""
    spec = importlib.util.spec_from_file_location("crosstime_report_synthetic", Path(__file__).parent / "synthetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(tmp_path):
    """Build a report in a temporary folder."""
    return lambda data: Report(data, tmp_path)


@pytest.fixture(scope="session")
def reports(synthetic, tmp_path_factory) -> dict[int, Report]:
    """Number of checkpoints -> a report without the optional parts of a run."""
    return {
        n: Report(synthetic.report_data(names, n_features=512), tmp_path_factory.mktemp(f"report-{n}"))
        for n, names in CHECKPOINTS.items()
    }


@pytest.fixture(scope="session")
def whole_reports(synthetic, tmp_path_factory) -> dict[int, Report]:
    """Number of checkpoints -> a report with everything that a run may have."""
    names = {n: CHECKPOINTS.get(n) or synthetic.many(n) for n in (2, 3, 8, 32)}
    return {
        n: Report(
            synthetic.whole_data(names[n], n_features=512 if n < 32 else 256),
            tmp_path_factory.mktemp(f"whole-report-{n}"),
        )
        for n in names
    }
