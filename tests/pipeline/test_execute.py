"""Runs from Python: `crosstime.run`, its lock and its settings."""

import os
import re
import signal
import subprocess
import sys
import tomllib

import pytest

import crosstime
from crosstime import cli
from crosstime.base import artifact
from crosstime.pipeline.execute import locked
from users_run import ARTIFACTS, edit, write_inputs

HOLD = """
import sys
from pathlib import Path
from crosstime.pipeline.execute import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_which_the_first_is(tmp_path, holder):
    with (
        pytest.raises(ValueError, match=rf"another run \(process {holder.pid}\) is working in {tmp_path}"),
        locked(tmp_path),
    ):
        pass


def test_death_lets_go(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_an_end_lets_go(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            pass


@pytest.fixture
def inputs(tmp_path, users_suite):
    return write_inputs(tmp_path, users_suite)


def done(folder):
    return [name for name in ARTIFACTS if artifact.read_manifest(folder / name)]


def test_a_run_stops_after_a_stage_and_computes_only_what_that_reads(inputs, capfd):
    (run,) = crosstime.run(inputs, until="select")
    assert done(inputs) == ["suite", "selection"]  # run.toml names the checkpoints, so the survey isn't read
    assert run.folder_of("selection") == inputs / "selection"
    out, err = capfd.readouterr()
    assert out == ""
    assert "crosstime: select: choosing checkpoints" in err


def test_an_unknown_stage_is_refused_before_any_work(inputs):
    with pytest.raises(
        ValueError, match=r"unknown stage 'evalute': choose one of suite, .*; the nearest is 'evaluate'"
    ):
        crosstime.run(inputs, until="evalute")
    assert not (inputs / "resolved.toml").exists()


def test_settings_replace_those_of_the_file_for_one_run(inputs, capfd):
    before = (inputs / "run.toml").read_text()
    settings = {"text.limit_tokens": 3000, "selection.checkpoints": ("step0", "step100"), "task.max_pairs": 3}
    (run,) = crosstime.run(inputs, until="tokens", settings=settings)
    assert (run.config.text.limit_tokens, run.config.selection.size, run.config.task[0].max_pairs) == (3000, 2, 3)
    assert (inputs / "run.toml").read_text() == before
    text = (inputs / "resolved.toml").read_text()
    assert (
        "# Set for this run, in place of run.toml: text.limit_tokens, selection.checkpoints, task.max_pairs.\n" in text
    )
    assert tomllib.loads(text)["text"]["limit_tokens"] == 3000
    arguments = ["--set", "text.limit_tokens=3_000", "--set", 'selection.checkpoints=["step0", "step100"]']
    arguments += ["--set", "task.max_pairs = 3", "--set", "compute.device=cpu"]
    capfd.readouterr()
    assert cli.main(["show", str(inputs), *arguments]) == 0
    assert "tokens     done" in capfd.readouterr().out
    assert cli.main(["show", str(inputs)]) == 0
    assert "tokens     stale: text.limit_tokens changed" in capfd.readouterr().out
    assert cli.main(["run", str(inputs), "--until", "tokens", *arguments]) == 0
    assert "crosstime: tokens: up to date" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.lrr=1", r"run.toml with training.lrr: \[training\] unknown key `lrr`; the nearest is 'lr'"),
        ("trainig.lr=1", r"with trainig.lr: unknown section `trainig`; the nearest is 'training'"),
        ("training.lr=fast", r"\[training\] `lr` must be a finite number, not \"fast\""),
        ("training.lr.x=1", r"`lr` isn't a section, so it can't hold `x`"),
        ("training.lr", r"--set training.lr: write --set SECTION.KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named(inputs, capfd, setting, message):
    assert cli.main(["run", str(inputs), "--set", setting]) == cli.BAD_INPUT
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert not (inputs / "suite").exists()


def test_a_section_is_replaced_and_one_of_several_is_named(inputs):
    edit(inputs, "[crosscoder]\nfeatures = 64", '[[crosscoder]]\nname = "a.1"\n[[crosscoder]]\nname = "b"')
    settings = {"crosscoder.features": 32, "crosscoder.a.1.features": 48, "sparsity": {"rule": "topk", "k": 5}}
    one, two = (run.config for run in crosstime.run(inputs, until="suite", settings=settings))
    assert (one.crosscoder.features, two.crosscoder.features) == (48, 32)
    assert (one.sparsity.rule, two.sparsity.rule) == ("topk", "topk")


def test_a_bug_leaves_its_traceback_in_the_run_folder(inputs, monkeypatch):
    def break_down(*_args, **_kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr("crosstime.pipeline.execute.bring_up_to_date", break_down)
    with pytest.raises(KeyError) as error:
        crosstime.run(inputs)
    assert error.value.__notes__ == [f"traceback in {inputs / 'error.log'}"]
    assert "break_down" in (inputs / "error.log").read_text()
