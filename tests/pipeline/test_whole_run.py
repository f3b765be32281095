"""`crosstime run` on a user's own checkpoints, text and minimal pairs, and what may go wrong on the way."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import tiny
from crosstime import cli
from crosstime.attribution.exact import Exact
from crosstime.attribution.features import FeatureTable
from crosstime.pipeline.execute import locked
from crosstime.pipeline.summary import LIFECYCLES
from users_run import ARTIFACTS, edit, write_inputs


@pytest.fixture(scope="module")
def finished(tmp_path_factory, users_suite):
    """A finished run. Copy it before changing it."""
    folder = write_inputs(tmp_path_factory.mktemp("a run"), users_suite)
    assert cli.main(["run", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def inputs(tmp_path, users_suite):
    return write_inputs(tmp_path, users_suite)


def stages(err):
    """What was said of each stage."""
    said = [line.removeprefix("crosstime: ") for line in err.splitlines() if line.startswith("crosstime: ")]
    return dict(line.split(": ", 1) for line in said)


def test_every_artifact_is_there(finished):
    for name in ARTIFACTS:
        assert (finished / name / "manifest.json").is_file(), name
    assert (finished / "report" / "index.html").stat().st_size > 0
    assert (finished / "training" / "log.jsonl").is_file()
    assert not (finished / "training" / "state").exists()
    assert not [path.name for path in finished.rglob(".*") if path.name != ".lock"]


def test_exact_effects_stand_beside_the_estimates(finished):
    exact = Exact.load(finished / "ablation")
    assert exact.checkpoints == ["step0", "step10", "step100"]
    (task,) = exact.tasks
    estimates = FeatureTable.load(finished / "effects").array(task, "ie")
    np.testing.assert_allclose(exact.array(task, "ie"), estimates[:, exact.features(task)])
    assert np.isfinite(exact.array(task, "exact")[2]).sum() >= 12
    validation = pq.read_table(finished / "ablation" / "validation.parquet").to_pylist()
    assert {(row["first"], row["top_k"]) for row in validation} == {("step0", 10), ("step10", 10), (None, 10)}


def test_a_second_run_has_nothing_to_do(finished, capfd):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    assert cli.main(["run", str(finished)]) == 0
    out, err = capfd.readouterr()
    assert set(stages(err).values()) == {"up to date"}
    assert str(finished / "report" / "index.html") in out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}


def test_show_json_is_one_object_on_a_clean_stdout(finished, capfd):
    assert cli.main(["show", str(finished), "--json"]) == 0
    out, _ = capfd.readouterr()

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(out, parse_constant=refuse)
    assert found["checkpoints"] == [
        {"name": "step0", "tokens": 0},
        {"name": "step10", "tokens": 1000},
        {"name": "step100", "tokens": 10_000},
    ]
    for key in ("explained_variance", "loss_recovered", "delta_ce"):
        assert list(found[key]) == ["step0", "step10", "step100"]
    assert sum(found["features"][kind] for kind in LIFECYCLES) == sum(found["features"]["classes"].values()) == 64
    assert found["l0"] >= 0
    assert 0 <= found["dead_fraction"] <= 1
    assert found["completeness_gap"] >= 0
    assert set(found["exact_correlation"]) == {"ie", "rel_ie"}
    assert found["validation"]["top_k"] == 10
    assert set(found["seconds"]) == set(found["stages"])
    assert set(found["stages"].values()) == {"done"}
    assert found["report"] == str(finished / "report" / "index.html")


def test_only_what_a_change_reaches_is_done_again(copy, capfd):
    edit(copy, "top_k = 2", "top_k = 1")
    assert cli.main(["show", str(copy)]) == 0
    assert "ablation.top_k changed" in capfd.readouterr().out
    assert cli.main(["run", str(copy)]) == 0
    said = stages(capfd.readouterr().err)
    assert {name for name, words in said.items() if words != "up to date"} == {"ablate", "report"}


def test_two_seeds_make_a_table(finished, copy, capfd):
    edit(copy, "save_seconds = 300", "save_seconds = 300\nseed = 5")
    assert cli.main(["run", str(copy), "--until", "evaluate"]) == 0
    capfd.readouterr()
    assert cli.main(["table", str(finished), str(copy), "--json", "--match"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["seeds"] == [124, 5]
    assert found["l0"]["std"] > 0
    assert list(found["explained_variance"]) == ["step0", "step10", "step100"]


def test_a_changed_text_trains_again(copy, capfd):
    with (copy / "text ü.txt").open("a", encoding="utf-8") as text:
        text.write("\n\nThe dogs are here.")
    assert cli.main(["show", str(copy), "--json"]) == 0
    statuses = json.loads(capfd.readouterr().out)["stages"]
    assert statuses["suite"] == "done"
    assert statuses["train"] == "stale"


def flip_weights(folder):
    path = next((folder / "my checkpoints" / "step10").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_config(folder):
    path = folder / "my checkpoints" / "step10" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 0.1}))


def other_tokenizer(folder):
    """In every checkpoint, so that they still fit together."""
    for path in folder.glob("my checkpoints/*/tokenizer.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}))


def flip_artifact(folder):
    path = folder / "crosscoder" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_weights, "weights of checkpoint 'step10'"),
        (other_config, "the config.json of checkpoint 'step10'"),
        (other_tokenizer, "the tokenizer.json of checkpoint 'step0'"),
        (flip_artifact, "model.safetensors is altered or damaged: delete the folder"),
    ],
)
def test_damage_and_changes_are_found_in_a_finished_run(copy, capfd, damage, message):
    damage(copy)
    assert cli.main(["run", str(copy)]) == cli.BAD_INPUT
    assert message in capfd.readouterr().err


def redone(folder, capfd):
    assert cli.main(["run", str(folder)]) == 0
    return {name for name, words in stages(capfd.readouterr().err).items() if words != "up to date"}


def test_corrected_tokens_reach_the_report_and_train_nothing(copy, capfd):
    edit(copy, "tokens = [0, 1000, 10_000]", "tokens = [0, 2000, 30_000_000]")
    assert redone(copy, capfd) == {"suite", "select", "report"}
    assert cli.main(["show", str(copy), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert [checkpoint["tokens"] for checkpoint in shown["checkpoints"]] == [0, 2000, 30_000_000]
    assert "30M tokens" in (copy / "report" / "data" / "figures-accuracy.js").read_text(encoding="utf-8")


def test_checkpoints_may_move(copy, capfd):
    (copy / "my checkpoints").rename(copy / "elsewhere")
    folders = 'folders = ["my checkpoints/step0", "my checkpoints/step10", "my checkpoints/step100"]'
    edit(copy, folders, 'folder = "elsewhere"')
    assert redone(copy, capfd) == {"suite", "select", "report"}


def test_other_checkpoints_in_the_folder_are_named(inputs, capfd):
    edit(inputs, 'folders = ["my checkpoints/step0", "my checkpoints/step10", "my checkpoints/step100"]', "")
    edit(inputs, "tokens = [0, 1000, 10_000]", 'folder = "my checkpoints"')
    edit(inputs, 'checkpoints = ["step0", "step10", "step100"]', "number = 2")
    assert cli.main(["run", str(inputs), "--until", "survey"]) == 0
    (inputs / "my checkpoints" / "step10").rename(inputs / "my checkpoints" / "step20")
    capfd.readouterr()
    assert cli.main(["run", str(inputs), "--until", "survey"]) == cli.BAD_INPUT
    err = capfd.readouterr().err
    assert "(new: step20; gone: step10): delete" in err
    shutil.rmtree(inputs / "suite")
    assert cli.main(["run", str(inputs), "--until", "survey"]) == 0


def spoil(path, content):
    def change(folder):
        (folder / path).write_text(content)

    return change


def no_step100(folder):
    edit(folder, ', "my checkpoints/step100"', "")
    edit(folder, ", 10_000", "")


def only_one(folder):
    edit(folder, ', "my checkpoints/step10", "my checkpoints/step100"', "")
    edit(folder, "tokens = [0, 1000, 10_000]", "")
    edit(folder, 'checkpoints = ["step0", "step10", "step100"]', "number = 2")


def nan_weights(folder):
    path = next((folder / "my checkpoints" / "step10").glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.0" in name)
    tensors[name].fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})


def duplicate(folder):
    shutil.rmtree(folder / "my checkpoints" / "step10")
    shutil.copytree(folder / "my checkpoints" / "step0", folder / "my checkpoints" / "step10")


def other_width(folder):
    shutil.rmtree(folder / "my checkpoints" / "step10")
    tiny.write_suite(folder / "my checkpoints", [10], tiny.neox_config(width=16))


def truncated(folder):
    path = next((folder / "my checkpoints" / "step10").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "text ü.txt").unlink(), "text ü.txt"),
        (spoil("text ü.txt", ""), "is empty"),
        (spoil("text ü.txt", "\n\n \n"), "text ü.txt"),
        (spoil("pairs.jsonl", '{"prefix": "a", "right": " b", "wrong": " c"}\n{oops\n'), "pairs.jsonl:2"),
        (spoil("pairs.jsonl", '{"good": "The a", "bad": "The unforgettable"}\n'), "single-token answers"),
        (lambda folder: edit(folder, '"step10", ', '"step11", '), "no checkpoint 'step11'"),
        (no_step100, "no checkpoint 'step100'"),
        (only_one, "at least 2"),
        (lambda folder: edit(folder, "features = 64", "features = 64\nlayer = 5"), "out of range"),
        (lambda folder: edit(folder, 'my checkpoints/step10"', 'my checkpoints/step11"'), "step11"),
        (nan_weights, "step10"),
        (duplicate, "same weights"),
        (other_width, "width"),
        (truncated, "step10"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_bad_input_exits_2_with_one_line_and_nothing_half_written(inputs, capfd, change, message):
    change(inputs)
    assert cli.main(["run", str(inputs)]) == cli.BAD_INPUT
    out, err = capfd.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("crosstime: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
    assert not [path for path in inputs.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert not (inputs / "report").exists()


def test_a_second_run_in_the_folder_is_refused(copy, capfd):
    with locked(copy):
        assert cli.main(["run", str(copy)]) == cli.BAD_INPUT
    assert f"another run (process {os.getpid()})" in capfd.readouterr().err


def test_an_interrupted_training_goes_on_to_the_same_weights(finished, copy):
    for name in ("crosscoder", "evaluation", "diagnostics", "effects", "ablation", "contexts", "report"):
        shutil.rmtree(copy / name)
    shutil.rmtree(copy / "training")
    edit(copy, "save_seconds = 300", "save_seconds = 0")
    # The signal comes with the sixth save, so the training is cut in the middle.
    script = (
        "import os, signal, sys\n"
        "from crosstime import cli\n"
        "from crosstime.training.resume import ResumeFolder\n"
        "save = ResumeFolder.save\n"
        "def then_signal(self, step, tensors):\n"
        "    save(self, step, tensors)\n"
        "    if step == 6: os.kill(os.getpid(), signal.SIGINT)\n"
        "ResumeFolder.save = then_signal\n"
        "sys.exit(cli.main(['run', sys.argv[1], '--until', 'train']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == cli.INTERRUPTED, done.stderr
    assert done.stderr.splitlines()[-1] == "crosstime: interrupted: run the same command again to resume"
    assert not (copy / "crosscoder").exists()
    # As if the first process had taken long.
    log = copy / "training" / "log.jsonl"
    (record,) = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text(json.dumps(record | {"tokens_per_second": record["tokens"] / 5000}) + "\n")
    assert cli.main(["run", str(copy), "--until", "train"]) == 0
    before, after = (folder / "crosscoder" / "model.safetensors" for folder in (finished, copy))
    assert before.read_bytes() == after.read_bytes()
    assert json.loads((copy / "crosscoder" / "manifest.json").read_text())["seconds"] > 5000
    assert not (copy / "training" / "state").exists()


def test_annotations_go_out_and_into_a_new_report(copy, tmp_path, capfd):
    sheet = tmp_path / "sheet.json"
    assert cli.main(["annotate", "export", str(copy), str(sheet), "--top", "2"]) == 0
    rows = json.loads(sheet.read_text(encoding="utf-8"))
    assert all(row["contexts"] for row in rows)
    assert all(row["class"] for row in rows)
    sheet.write_text(json.dumps([{**row, "description": "noun", "category": "x"} for row in rows]), encoding="utf-8")
    assert cli.main(["annotate", "import", str(copy), str(sheet)]) == 0
    capfd.readouterr()
    assert cli.main(["run", str(copy), "--until", "report"]) == 0
    said = stages(capfd.readouterr().err)
    assert said["report"].startswith("writing the pages (annotations changed)")
    assert set(said.values()) - {said["report"]} == {"up to date"}
