"""A run of several crosscoders, which train on the same activations, as users see it."""

import json
import shutil
import subprocess
import sys

import pytest

from crosstime import cli
from crosstime.pipeline import config
from crosstime.pipeline.run import runs
from crosstime.pipeline.stages import report_data
from crosstime.training.log import read_log
from users_run import ARTIFACTS, edit, write_inputs

SHARED, OWN = ARTIFACTS[:4], ARTIFACTS[4:]

ONE = """[crosscoder]
features = 64
"""
FIRST = """[[crosscoder]]
name = "l1"
features = 64
"""
AGAIN = """[[crosscoder]]
name = "again"
features = 64
seed = 7
"""
FEW = """[[crosscoder]]
name = "few"
features = 48
[crosscoder.sparsity]
rule = "batchtopk"
k = 6
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, users_suite):
    """A finished run of two crosscoders. Copy it before changing it."""
    folder = write_inputs(tmp_path_factory.mktemp("several"), users_suite)
    edit(folder, ONE, FIRST + FEW)
    assert cli.main(["run", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def train_alone(copy, entry):
    """The weights and the manifest of a run of its own: the same run.toml with only one of the crosscoders."""
    for name in ("l1", "few", "training"):
        shutil.rmtree(copy / name)
    edit(copy, FIRST + FEW, entry.replace("[[crosscoder]]", "[crosscoder]").replace('name = "', '# name = "'))
    assert cli.main(["run", str(copy), "--until", "train"]) == 0
    return of_crosscoder(copy)


def of_crosscoder(folder):
    manifest = json.loads((folder / "crosscoder" / "manifest.json").read_text())
    return (folder / "crosscoder" / "model.safetensors").read_bytes(), manifest["settings"], manifest["inputs"]


def said(capfd):
    lines = [line.removeprefix("crosstime: ") for line in capfd.readouterr().err.splitlines()]
    return dict(line.split(": ", 1) for line in lines)


def test_every_crosscoder_has_a_folder_of_its_own_beside_what_they_share(finished):
    for name in SHARED:
        assert (finished / name / "manifest.json").is_file(), name
    for crosscoder in ("l1", "few"):
        for name in OWN:
            assert (finished / crosscoder / name / "manifest.json").is_file(), name
        assert not any((finished / crosscoder / name).exists() for name in SHARED)
        assert (finished / crosscoder / "resolved.toml").is_file()
    assert not any((finished / name).exists() for name in OWN)
    assert not (finished / "training" / "state").exists()
    assert not [path.name for path in finished.rglob(".*") if path.name != ".lock"]
    assert [record["crosscoder"] for record in read_log(finished / "training" / "log.jsonl")] == ["l1", "few"] * 4


@pytest.mark.parametrize(("name", "entry"), [("l1", FIRST), ("few", FEW)])
def test_each_is_what_a_run_of_its_own_makes_it(finished, copy, name, entry):
    assert train_alone(copy, entry) == of_crosscoder(finished / name)


def test_each_report_shows_the_training_of_its_own_crosscoder(finished):
    log = read_log(finished / "training" / "log.jsonl")
    for run in runs(finished, config.load(finished)):
        data = report_data(run)
        assert data.title == f"{finished.name}: {run.name}"
        assert [point.loss for point in data.training] == [r["loss"] for r in log if r["crosscoder"] == run.name]


def test_a_second_run_has_nothing_to_do(finished, capfd):
    assert cli.main(["run", str(finished)]) == 0
    out, err = capfd.readouterr()
    assert {line.rsplit(": ", 1)[1] for line in err.splitlines()} == {"up to date"}
    assert err.count("crosstime: suite: ") == 1
    assert "crosstime: report few: up to date" in err
    assert out.splitlines()[0].split() == ["l1", "few"]
    assert str(finished / "few" / "report" / "index.html") in out


def test_what_is_shown_of_several_and_of_one(finished, capfd):
    def show(place):
        assert cli.main(["show", str(place), "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    found = show(finished)
    assert list(found) == ["crosscoders"]
    assert list(found["crosscoders"]) == ["l1", "few"]
    assert found["crosscoders"]["few"] == show(finished / "few")
    assert set(found["crosscoders"]["few"]["stages"].values()) == {"done"}
    assert found["crosscoders"]["few"]["report"] == str(finished / "few" / "report" / "index.html")
    assert cli.main(["show", str(finished)]) == 0
    assert "train      done\n" in capfd.readouterr().out


def test_one_that_is_added_is_trained_alone_to_the_weights_that_it_would_have_had(finished, copy, tmp_path, capfd):
    edit(copy, FEW, AGAIN + FEW)
    assert cli.main(["run", str(copy), "--until", "evaluate"]) == 0
    words = said(capfd)
    assert {stage for stage, told in words.items() if told != "up to date"} == {"train again", "evaluate again"}
    assert [record["crosscoder"] for record in read_log(copy / "training" / "log.jsonl")] == [
        *(["l1", "few"] * 4),
        *(["again"] * 4),
    ]
    alone = shutil.copytree(finished, tmp_path / "alone")
    assert of_crosscoder(copy / "again") == train_alone(alone, AGAIN)
    assert of_crosscoder(copy / "again")[0] != of_crosscoder(finished / "l1")[0]
    capfd.readouterr()
    assert cli.main(["table", str(copy), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["seeds"] == [124, 7]


def test_only_what_a_change_reaches_is_done_again(copy, capfd):
    edit(copy, "k = 6", "k = 5")
    assert cli.main(["show", str(copy)]) == 0
    out = capfd.readouterr().out
    assert "train      l1: done; few: stale: sparsity.k changed\n" in out
    assert cli.main(["run", str(copy), "--until", "train"]) == 0
    assert {stage for stage, told in said(capfd).items() if told != "up to date"} == {"train few"}


KILL = """
import os, signal, sys
from crosstime import cli
from crosstime.training.resume import ResumeFolder
save = ResumeFolder.save
def then_signal(self, step, tensors):
    save(self, step, tensors)
    if step == 6: os.kill(os.getpid(), signal.SIGINT)
ResumeFolder.save = then_signal
sys.exit(cli.main(['run', sys.argv[1], '--until', 'train']))
"""


@pytest.fixture
def interrupted(copy):
    """A copy whose training was interrupted in the middle."""
    for name in ("l1", "few", "training"):
        shutil.rmtree(copy / name)
    edit(copy, "save_seconds = 300", "save_seconds = 0")
    done = subprocess.run([sys.executable, "-c", KILL, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == cli.INTERRUPTED, done.stderr
    assert not (copy / "few" / "crosscoder").exists()
    return copy


def test_an_interrupted_training_goes_on_to_the_same_weights(finished, interrupted):
    edit(interrupted, "save_seconds = 0", "save_seconds = 300")
    assert cli.main(["run", str(interrupted), "--until", "train"]) == 0
    for name in ("l1", "few"):
        assert of_crosscoder(interrupted / name) == of_crosscoder(finished / name)
    assert not (interrupted / "training" / "state").exists()
    steps = [record["step"] for record in read_log(interrupted / "training" / "log.jsonl")]
    assert steps == [4, 4, 8, 8, 12, 12, 16, 16]


def test_an_unfinished_training_takes_no_other_in_and_goes_on_with_fewer(finished, interrupted, capfd):
    edit(interrupted, FEW, AGAIN + FEW)
    assert cli.main(["run", str(interrupted), "--until", "train"]) == cli.BAD_INPUT
    assert "again: finish it first and train that afterwards" in capfd.readouterr().err
    edit(interrupted, AGAIN, "")
    edit(interrupted, "k = 6", "k = 5")
    assert cli.main(["run", str(interrupted), "--until", "train"]) == cli.BAD_INPUT
    assert "few/sparsity.k was 6, now 5" in capfd.readouterr().err
    edit(interrupted, "k = 5", "k = 6")
    # As if the process had been killed after one was in its place, before the other was.
    shutil.copytree(finished / "l1" / "crosscoder", interrupted / "l1" / "crosscoder")
    edit(interrupted, "save_seconds = 0", "save_seconds = 300")
    assert cli.main(["run", str(interrupted), "--until", "train"]) == 0
    assert of_crosscoder(interrupted / "few") == of_crosscoder(finished / "few")
    assert [r["step"] for r in read_log(interrupted / "training" / "log.jsonl") if r["crosscoder"] == "few"] == [
        *(4, 8, 12, 16)
    ]


def test_commands_on_one_crosscoder_want_its_name(copy, tmp_path, capfd):
    sheet = tmp_path / "sheet.json"
    for command in (["annotate", "export", str(copy), str(sheet)], ["export", str(copy), str(tmp_path / "out")]):
        assert cli.main(command) == cli.BAD_INPUT
        assert f"has several crosscoders: name one (l1, few), as in {copy}/l1" in capfd.readouterr().err
    assert cli.main(["export", str(copy / "fw"), str(tmp_path / "out")]) == cli.BAD_INPUT
    assert "has no crosscoder 'fw'; the nearest is 'few'" in capfd.readouterr().err
    assert cli.main(["export", str(copy / "few"), str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert cli.main(["export", str(copy / "few" / "crosscoder"), str(tmp_path / "too")]) == 0
    assert cli.main(["annotate", "export", str(copy / "few"), str(sheet), "--top", "2"]) == 0
    rows = json.loads(sheet.read_text(encoding="utf-8"))
    sheet.write_text(json.dumps([{**row, "description": "noun", "category": "x"} for row in rows]), encoding="utf-8")
    assert cli.main(["annotate", "import", str(copy / "few"), str(sheet)]) == 0
    assert f"`crosstime run {copy}` adds them to the report" in capfd.readouterr().out
    assert cli.main(["run", str(copy), "--until", "report"]) == 0
    out, err = capfd.readouterr()
    assert all(str(copy / name / "report" / "index.html") in out for name in ("l1", "few"))
    assert "crosstime: report l1: up to date" in err
    assert "crosstime: report few: writing the pages (annotations changed)" in err
    assert cli.main(["run", str(copy / "few")]) == cli.BAD_INPUT
    assert "is a part of a run, whose stages are done together" in capfd.readouterr().err


def test_a_plan_lists_all(copy, capfd):
    edit(copy, FEW, AGAIN + FEW)
    assert cli.main(["plan", str(copy), "--no-measure"]) == 0
    out = capfd.readouterr().out
    told = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("crosscoder ")]
    assert [line.split(":")[0] for line in told] == ["l1", "again", "few"]
    assert "again: 64 features, 0.0M weights, l1, initialised with seed 7" in told[1]
    assert "stages to do  train, evaluate," in out
    assert not (copy / "again").exists()
