"""Made-up reports, built once for all tests of this folder."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from crosstime.report.build import build_report

CHOSEN = {
    2: ("step256", "step3786"),
    3: ("step256", "step1000", "step3786"),
    5: ("step64", "step256", "step512", "step1000", "step3786"),
}


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


@pytest.fixture(scope="session")
def reports(synthetic, tmp_path_factory) -> dict[int, Path]:
    """Number of checkpoints -> folder of a report without what a run need not have."""
    folders = {}
    for n, chosen in CHOSEN.items():
        folders[n] = tmp_path_factory.mktemp(f"report-{n}")
        build_report(synthetic.report_data(chosen, n_features=512), folders[n])
    return folders


@pytest.fixture(scope="session")
def whole_reports(synthetic, tmp_path_factory) -> dict[int, Path]:
    """Number of checkpoints -> folder of a report with everything that a run may have."""
    folders = {}
    for n in (2, 3, 8, 32):
        folders[n] = tmp_path_factory.mktemp(f"whole-report-{n}")
        data = synthetic.whole_data(CHOSEN.get(n) or synthetic.many(n), n_features=512 if n < 32 else 256)
        build_report(data, folders[n])
    return folders
