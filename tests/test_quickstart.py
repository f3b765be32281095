"""The quickstart explains every key of run.toml."""

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from crosstime.crosscoder.sparsity.rules import BatchTopK
from crosstime.pipeline.config import RunConfig, RunFile
from crosstime.pipeline.toml import build
from crosstime.tasks.pair_source import PairSource
from crosstime.training.config import TrainConfig

QUICKSTART = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text(encoding="utf-8")
SECTIONS = {
    section: next(part for part in (kind, *get_args(kind)) if is_dataclass(part))
    for section, kind in get_type_hints(RunConfig).items()
}


@pytest.mark.parametrize("section", [section for section in SECTIONS if section != "training"])
def test_every_key_stands_in_the_row_of_its_section(section):
    (row,) = re.findall(rf"^\| `\[+{section}\]+` \| (.*) \|$", QUICKSTART, flags=re.MULTILINE)
    keys = {field.name.removesuffix("_") for field in fields(SECTIONS[section])}
    assert keys <= set(re.findall(r"`(\w+)(?: = \w+)?`", row))


@pytest.mark.parametrize(
    "name", [name for name, kind in PairSource.variants().items() if "crosstime" in kind.__module__]
)
def test_every_key_of_a_source_of_pairs_stands_in_its_row(name):
    (row,) = re.findall(rf'^\| "{name}" \| (.*) \|$', QUICKSTART, flags=re.MULTILINE)
    keys = {field.name for field in fields(PairSource.variants()[name])} - {"source"}
    assert keys <= set(re.findall(r"`(\w+)(?: = \w+)?`", row))


def test_the_sweep_over_several_crosscoders_is_a_run():
    (sweep,) = [
        block for block in re.findall(r"```toml\n(.*?)```", QUICKSTART, flags=re.DOTALL) if "[[crosscoder]]" in block
    ]
    common = {
        "suite": {"demo": True},
        "text": {"demo": True},
        "task": [{"name": "any", "pairs": {"source": "jsonl", "files": "pairs.jsonl"}}],
    }
    found = build(RunFile, common | tomllib.loads(sweep)).each()
    assert [each.crosscoder.name for each in found] == ["k64", "k64-153", "k64-6582", "k32"]
    assert [each.start_seed for each in found] == [124, 153, 6582, 124]
    assert [each.sparsity for each in found] == [BatchTopK(k=k) for k in (64, 64, 64, 32)]


def test_every_key_of_training_has_a_row_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", QUICKSTART, flags=re.MULTILINE))
    assert set(rows) == {field.name for field in fields(TrainConfig)}
    stated = {key: value.strip() for key, value in rows.items()}
    defaults = tomllib.loads("\n".join(f"{key} = {value}" for key, value in stated.items() if value != "-"))
    assert TrainConfig(**{**defaults, "loggers": tuple(defaults["loggers"])}) == TrainConfig()
    unset = {key for key, value in stated.items() if value == "-"}
    assert all(getattr(TrainConfig(), key) is None for key in unset)
