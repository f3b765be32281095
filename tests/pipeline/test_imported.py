"""A run on a crosscoder that exists already, from the command line, and what may not fit."""

import json
import shutil

import pytest
import torch

from crosstime import cli
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.text.positions import Positions
from users_run import ARTIFACTS, edit, write_inputs

NAMES, WIDTH, FEATURES, LAYER = ("step0", "step10", "step100"), 48, 40, 2
"""Of tests/conftest.py's `users_suite`, whose middle block is the default layer."""
STATED = ["--checkpoints", *NAMES, "--layer", str(LAYER), "--scale", "1.5", "1.0", "0.5"]


@pytest.fixture
def foreign(tmp_path):
    """A folder in ckkissane's layout, for the checkpoints of `users_suite`."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (3, WIDTH, FEATURES), "b_enc": (FEATURES,), "W_dec": (FEATURES, 3, WIDTH), "b_dec": (3, WIDTH)}
    weights = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(weights, folder / "cc_weights.pt")
    (folder / "cfg.json").write_text(json.dumps({"hook_point": f"blocks.{LAYER + 1}.hook_resid_pre"}))
    return folder


@pytest.fixture
def inputs(tmp_path, users_suite):
    return write_inputs(tmp_path, users_suite)


def _ours(folder, **changes):
    config = {"checkpoints": NAMES, "layer": LAYER, "width": WIDTH, "features": FEATURES} | changes
    Crosscoder(CrosscoderConfig(**config)).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore::crosstime.attribution.effects.CompletenessWarning")
def test_import_and_run_and_export(inputs, foreign, tmp_path, capfd):
    assert cli.main(["import", str(foreign), str(tmp_path / "ours"), *STATED]) == 0
    assert "40 features (rule l1) for the output of block 2, width 48, of step0, step10" in capfd.readouterr().out
    edit(inputs, "features = 64", 'from = "ours"')
    assert cli.main(["run", str(inputs)]) == 0
    assert "train: importing the crosscoder" in capfd.readouterr().err
    for name in ARTIFACTS:
        assert (inputs / name / "manifest.json").is_file(), name
    made = Crosscoder.from_pretrained(inputs / "crosscoder")
    assert made.scale.tolist() == [1.5, 1.0, 0.5]
    assert made.config.tokens == (0, 1000, 10_000)
    assert len(made.config.weights) == 3
    assert made.config.sources[0].endswith("step0")
    assert not (inputs / "training").exists()
    assert "Training tokens" not in (inputs / "report" / "index.html").read_text(encoding="utf-8")

    # It is up to date until other weights lie there.
    assert cli.main(["run", str(inputs), "--until", "train"]) == 0
    assert "train: up to date" in capfd.readouterr().err
    _ours(tmp_path / "ours")
    assert cli.main(["run", str(inputs), "--until", "train"]) == 0
    assert "crosscoder.from holds changed" in capfd.readouterr().err

    assert cli.main(["export", str(inputs), str(tmp_path / "columns"), "--format", "saelens"]) == 0
    assert [str(tmp_path / "columns" / name) for name in NAMES] == capfd.readouterr().out.splitlines()
    assert (tmp_path / "columns" / "step10" / "sae_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": ("step10", "step0", "step100")}, "reads ['step10', 'step0', 'step100'], in this order"),
        ({"width": 32}, "reads models of width 32; the suite's have 48"),
        ({"layer": 3}, "reads the output of block 3: set crosscoder.layer = 3"),
        ({"positions": Positions(bos=False)}, "set bos = false, encode_first = false in [positions]"),
        ({"weights": ("1", "2", "3")}, "was trained on other weights than those of checkpoint 'step0'"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(inputs, tmp_path, capfd, changes, message):
    _ours(tmp_path / "ours", **changes)
    edit(inputs, "features = 64", 'from = "ours"')
    assert cli.main(["run", str(inputs)]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert not (inputs / "survey").exists()


def test_checkpoints_must_be_named(inputs, tmp_path, capfd):
    _ours(tmp_path / "ours")
    edit(inputs, "features = 64", 'from = "ours"')
    edit(inputs, 'checkpoints = ["step0", "step10", "step100"]', "number = 3")
    assert cli.main(["run", str(inputs)]) == 2
    assert "selection.checkpoints names none: put the former there" in capfd.readouterr().err


def test_a_run_without_a_crosscoder_has_nothing_to_export(inputs, tmp_path, capfd):
    assert cli.main(["export", str(inputs), str(tmp_path / "columns")]) == 2
    assert f"{inputs} has no crosscoder yet: `crosstime run {inputs} --until train` trains it" in capfd.readouterr().err


def test_a_plan_looks_at_it(inputs, tmp_path, capfd):
    _ours(tmp_path / "ours")
    edit(inputs, "features = 64", 'from = "ours"')
    assert cli.main(["plan", str(inputs), "--no-measure"]) == 0
    assert "that of ours, 40 features; after block 2" in capfd.readouterr().out
    _ours(tmp_path / "ours", layer=3)
    assert cli.main(["plan", str(inputs), "--no-measure"]) == 2
    assert "set crosscoder.layer = 3" in capfd.readouterr().err
    edit(inputs, 'from = "ours"', 'from = "text ü.txt"')
    assert cli.main(["plan", str(inputs), "--no-measure"]) == 2
    assert "holds no crosscoder in a known format" in capfd.readouterr().err
    edit(inputs, 'from = "text ü.txt"', 'from = "owner/name"')
    assert cli.main(["plan", str(inputs), "--no-measure"]) == 0
    assert "that of owner/name, on the hub, not looked at; after" in capfd.readouterr().out


def test_mistakes_of_the_commands_are_one_line(foreign, tmp_path, capfd):
    assert cli.main(["import", str(foreign), str(tmp_path / "ours")]) == 2
    assert "the files lack `checkpoints` (3 values, one per checkpoint): pass it" in capfd.readouterr().err
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "run.toml").write_text("")
    assert cli.main(["import", str(foreign), str(tmp_path / "a run"), *STATED]) == 2
    assert "is a run folder: choose another one" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "a run").iterdir()] == ["run.toml"]
    assert cli.main(["import", str(tmp_path / "nothing"), str(tmp_path / "ours")]) == 2
    assert "is neither a local path nor a repository on the hub" in capfd.readouterr().err
    assert not (tmp_path / "ours").exists()
    assert cli.main(["import", str(foreign), str(tmp_path / "ours"), *STATED, "--bos", "False"]) == 0
    assert Crosscoder.from_pretrained(tmp_path / "ours").config.positions == Positions(bos=False)
    shutil.rmtree(tmp_path / "ours")
