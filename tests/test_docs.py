"""The documentation holds: references are current, examples of run.toml load, commands exist, links lead somewhere."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import crosstime
from crosstime.cli import COMMANDS, GROUPS
from crosstime.crosscoder.sparsity.rules import BatchTopK
from crosstime.pipeline.config import interpret

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [*DOCS.glob("*.md"), ROOT / "README.md"]}
COMMON = {"suite": {"demo": True}, "text": {"demo": True}, "task": [{"name": "any", "pairs": {"source": "blimp"}}]}


def _blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def test_the_reference_of_run_toml_is_current():
    spec = importlib.util.spec_from_file_location("run_toml", DOCS / "run_toml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert PAGES["run-toml.md"] == module.page(), "run `python docs/run_toml.py`"


def test_every_public_name_is_in_the_api_reference_once():
    named = re.findall(r"^::: crosstime\.(\w+)$", PAGES["api.md"], flags=re.MULTILINE)
    assert sorted(named) == sorted(crosstime.__all__)


@pytest.mark.parametrize(
    ("page", "example"),
    [(page, block) for page in ("quickstart.md", "runs.md", "inputs.md") for block in _blocks(page, "toml")],
)
def test_every_example_of_run_toml_loads(page, example):
    table = tomllib.loads(example)
    assert interpret({**COMMON, **table}), page


def test_the_sweep_over_several_crosscoders_is_a_run():
    (sweep,) = [block for block in _blocks("runs.md", "toml") if "[[crosscoder]]" in block]
    found = interpret(COMMON | tomllib.loads(sweep))
    assert [each.crosscoder.name for each in found] == ["k64", "k64-153", "k64-6582", "k32"]
    assert [each.start_seed for each in found] == [124, 153, 6582, 124]
    assert [each.sparsity for each in found] == [BatchTopK(k=k) for k in (64, 64, 64, 32)]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_command_in_a_page_exists(page):
    lines = [line for block in _blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for words in (shlex.split(line, comments=True) for line in lines if line.startswith("crosstime ")):
        command = words[1]
        assert command in COMMANDS, f"{page}: {' '.join(words)}"
        if command in GROUPS:
            assert words[2] in GROUPS[command], f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_to_a_file(page):
    folder = ROOT if page == "README.md" else DOCS
    for link in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (folder / link).exists(), f"{page} links to {link}"
