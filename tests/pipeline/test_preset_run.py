"""A preset of the paper runs whole: text, tasks and checkpoints from a hub of ours, the model a tiny random one."""

import json

import pytest

import families
import tiny
from crosstime import cli, demo
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.survey import Survey
from crosstime.models import hub
from crosstime.models.tokenizer import load_tokenizer
from hub_server import HubServer
from users_run import ARTIFACTS, edit

NAME = "pythia-1b-1B-4B-286B"
STEPS = {"step512": 512, "step2000": 2000, "main": 143_000}

LESS = (
    ("context = 1024", "context = 32"),
    ("min_tokens = 1024", "min_tokens = 32"),
    ("limit_tokens = 428_032_000", "limit_tokens = 3840"),
    ("heldout_share = 0.043", "heldout_share = 0.2"),
    ("tokens = 400_000_000", "tokens = 4096\nmodel_batch_blocks = 4\ncalibration_blocks = 8"),
    ("batch_size = 4096", "batch_size = 256"),
    ("buffer_tokens = 524_288", "buffer_tokens = 1024"),
    ("features = 16_384", "features = 64"),
    ("layer = 8 ", "layer = 2 "),
    ("max_pairs = 400 ", "max_pairs = 10 "),
    ("blocks = 64", "blocks = 4"),
    ("blocks = 512", "blocks = 8"),
    ("bootstrap = 1000", "bootstrap = 20"),
    ("steps = 16", "steps = 4"),
    ("top_k = 10", "top_k = 2"),
    ('prefix = "string" ', 'prefix = "string"\nmax_pairs = 40 '),
    ("[report]", "[contexts]\nblocks = 8\nper_feature = 2\ntop_k = 2\n[report]"),
)
"""What a user with little time would change."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(demo.SUITE / "step64")
    config = tiny.neox_config(vocab_size=len(tokenizer))
    folder = tiny.write_suite(tmp_path / "checkpoints", list(STEPS.values()), config, tokenizer)
    revisions = {name: folder / f"step{step}" for name, step in STEPS.items()}
    datasets = tuple(families.datasets(tmp_path / "datasets"))
    with HubServer("EleutherAI/pythia-1b", revisions, others=datasets) as running:
        running.serve_client(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(hub, "RETRY_WAITS", (0.0,))
        yield running


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("rule", ["l1", "batchtopk"])
def test_a_preset_runs_from_its_name_to_its_report(tmp_path, capfd, rule):
    folder = tmp_path / "run"
    assert cli.main(["new", NAME, str(folder), "--rule", rule]) == cli.OK
    for old, new in LESS:
        edit(folder, old, new)
    if rule == "batchtopk":
        edit(folder, "k = 200 ", "k = 8 ")
    assert cli.main(["plan", str(folder), "--no-measure"]) == cli.OK
    assert {path.name for path in folder.iterdir()} == {"run.toml"}
    assert cli.main(["run", str(folder)]) == cli.OK
    capfd.readouterr()
    for name in ARTIFACTS:
        assert (folder / name / "manifest.json").is_file(), name
    crosscoder = Crosscoder.from_pretrained(folder / "crosscoder").config
    assert crosscoder.checkpoints == tuple(STEPS)
    assert crosscoder.sparsity.rule == rule
    assert (crosscoder.positions.bos, crosscoder.positions.first_trained) == (False, 1)
    assert Survey.load(folder / "survey").checkpoints == list(STEPS)
    tasks = json.loads((folder / "effects" / "tasks.json").read_text())
    assert [task["task"] for task in tasks] == ["subject-verb agreement"]
    assert cli.main(["plan", str(folder), "--no-measure"]) == cli.OK
    screen = capfd.readouterr().out
    assert "stages to do  none" in screen
    assert "download      0 MiB of weights" in screen
