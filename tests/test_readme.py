"""The README's commands and its example do what it says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from users_run import edit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
EXAMPLES = [block for language, block in BLOCKS if language == "python"]


def _crosstime(command, folder):
    words = shlex.split(command)
    assert words[0] == "crosstime"
    done = subprocess.run(
        [sys.executable, "-m", "crosstime", *words[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _make_small(run_dir):
    """What a reader in a hurry would do: edit run.toml, which the README invites to."""
    for old, new in (
        ("tokens = 1_000_000", "tokens = 30_000\ncalibration_blocks = 16"),
        ("features = 4096", "features = 256"),
        ("buffer_tokens = 65_536", "buffer_tokens = 8192"),
        ("max_pairs = 400 ", "max_pairs = 10 "),
        ("max_pairs = 400\n", "max_pairs = 10\n"),
        ("blocks = 64 ", "blocks = 4 "),
        ("blocks = 512 ", "blocks = 16 "),
        ("bootstrap = 1000", "bootstrap = 20"),
    ):
        edit(run_dir, old, new)


def test_the_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}: .*\n\t", makefile, flags=re.MULTILINE)
    assert "crosstime demo --out runs/demo" in makefile


def test_the_commands_lead_from_a_preset_to_a_report(tmp_path):
    new, run, show = (command for command in COMMANDS if command.startswith("crosstime "))
    _crosstime(new, tmp_path)
    _make_small(tmp_path / "runs" / "mine")
    printed = _crosstime(run, tmp_path)
    report = tmp_path / "runs" / "mine" / "report" / "index.html"
    assert report.is_file()
    assert str(report) in printed
    assert json.loads(_crosstime(show, tmp_path))["report"] == str(report)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_ends_with_its_table_and_report(tmp_path):
    printed = _crosstime("crosstime demo", tmp_path)
    assert (tmp_path / "runs" / "demo" / "report" / "index.html").is_file()
    found = json.loads(_crosstime("crosstime show runs/demo --json", tmp_path))
    assert found["l0"] <= 40
    assert found["dead_fraction"] <= 0.02
    assert min(found["loss_recovered"].values()) >= 0.93
    assert found["completeness_gap"] <= 0.005
    assert "index.html" in printed


def test_the_example_runs(tmp_path, capsys, monkeypatch):
    (example,) = EXAMPLES
    monkeypatch.chdir(tmp_path)
    # Fewer tokens: the test checks that the example runs, not what it learns.
    shorter = example.replace("tokens=150_000", "tokens=20_000").replace("limit_tokens=200_000", "limit_tokens=30_000")
    assert shorter != example
    exec(compile(shorter, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "loss recovered" in printed
    assert printed.count("RelIE") == 5
    assert (tmp_path / "agreement-crosscoder" / "model.safetensors").is_file()


def test_linked_files_are_there():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
