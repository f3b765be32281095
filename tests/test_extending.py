"""The examples of docs/extending.md run as they stand, one after another."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import crosstime as ct
from crosstime.pipeline.toml import build
from crosstime.report.build import build_report
from crosstime.report.data import ReportData, RunFacts
from crosstime.report.sections import SECTIONS as REPORT_SECTIONS
from crosstime.tasks.pair_source import PairSource

EXTENDING = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", EXTENDING, flags=re.MULTILINE | re.DOTALL))


def run(section):
    """The names that the examples of a section define."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.DOTALL):
        exec(compile(block, f"docs/extending.md: {section}", "exec"), names)
    return names


def test_every_section_has_an_example():
    assert "A new source of pairs" in SECTIONS
    assert all("```python" in text for text in SECTIONS.values())


def test_a_new_source_of_pairs(capsys):
    names = run("A new source of pairs")
    printed = capsys.readouterr().out
    assert "4 prompts, skipped: {}" in printed
    assert "There, on the table, she met one | <|endoftext|> There, on the table, she met two" in printed
    assert names["found"].token_accuracy.shape == (2, 1)
    own = build(PairSource, {"source": "counting", "places": ["at home"]}, "task 1.pairs")
    assert own == names["CountingPairs"](("at home",))
    assert len(own.load()) == 2


def test_a_new_sparsity_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("A new sparsity rule")
    crosscoder = names["crosscoder"]
    rows = torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0)) * 10
    fires = (crosscoder.encode(rows) > 0).unflatten(-1, (-1, 16)).sum(-1)
    assert fires.max() == 1, "one feature of a group"
    assert fires.sum() > 5
    with pytest.raises(ValueError, match="size 16 does not divide 100"):
        names["GroupMax"](size=16).check(100)


def test_a_new_architecture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run("A new architecture")
    assert "torch.Size([1, 5, 32]) torch.Size([1, 5, 4096])" in capsys.readouterr().out
    whole = names["AutoModelForCausalLM"].from_pretrained("own-run/step2")
    torch.testing.assert_close(names["model"].upper(names["residual"]), whole(names["tokens"]).logits)


def test_a_new_section_of_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(REPORT_SECTIONS, "_values", dict(REPORT_SECTIONS._values))
    run("A new section of the report")
    frequency = np.array([0.0, 0.05, 0.2, 0.3])
    losses = {name: np.ones(1) for name in ("explained_variance", "ce_clean", "ce_spliced", "ce_zero")}
    quality = ct.Quality(["only"], n_tokens=1000, l0=1.0, dead=1, frequency=frequency, **losses)
    data = ReportData("title", RunFacts("a folder", 3, 4, 0, 0), ["only"], quality=quality)
    page = build_report(data, tmp_path).read_text(encoding="utf-8")
    assert "2 of 4 features fire on more than 10\u202f% of the tokens" in page
    assert (tmp_path / "data" / "figures-dense.js").is_file()
