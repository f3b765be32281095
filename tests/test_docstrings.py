"""Every public name has an example in its docstring, and all examples in docstrings run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import crosstime

SOURCE = Path(crosstime.__file__).parent
MODULES = [
    ".".join(["crosstime", *path.relative_to(SOURCE).with_suffix("").parts])
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
TO_DO = re.findall(r"\w+", """ContextsConfig DiagnosticsConfig EvaluationConfig PairSource SurveyConfig""")
"""Public names whose examples are still to be written."""


def test_every_public_name_has_an_example():
    without = [name for name in crosstime.__all__ if ">>> " not in (getattr(crosstime, name).__doc__ or "")]
    assert set(without) <= set(TO_DO)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0
