"""Dry runs: what can be told and found wrong without weights. The hub is ours, and holds none."""

import functools
import os
import subprocess
import sys
from collections import namedtuple

import pytest
from huggingface_hub import constants

import families
from crosstime import cli
from crosstime.models import hub
from crosstime.pipeline import config, preset
from crosstime.tasks.blimp import BlimpPairs
from users_run import edit, write_inputs

EACH = [(name, rule) for name, found in preset.PRESETS.items() for rule in found.rules]
THREE_WAY = "pythia-1b-1B-4B-286B"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with families.serve(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def server(served, cache, monkeypatch):
    served.serve_client(monkeypatch, cache)
    monkeypatch.setattr(hub, "RETRY_WAITS", (0.0, 0.0, 0.0))
    served.requests.clear()
    return served


@pytest.fixture(autouse=True, scope="module")
def sets_are_read_once():
    """Under the type checks of the tests, reading BLiMP takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(BlimpPairs.load)
        patch.setattr(BlimpPairs, "load", lambda self, folder: cached(self))  # noqa: ARG005 (the bundled sets)
        yield


@pytest.fixture
def dry_run(capfd):
    """Runs `crosstime run FOLDER --dry-run`, and gives its screen as lines by label, and what it says on stderr."""

    def run(folder, code=cli.OK):
        before = sorted(folder.rglob("*"))
        assert cli.main(["run", str(folder), "--dry-run"]) == code
        assert sorted(folder.rglob("*")) == before, "a dry run writes nothing"
        out, err = capfd.readouterr()
        screen = {}
        for line in out.splitlines():
            label = line[:14].strip() or label
            screen[label] = f"{screen.get(label, '')} {line[14:].strip()}".strip()
        return screen, err

    return run


@pytest.fixture
def error(dry_run):
    """Runs a dry run that must fail as bad input, and gives its one line."""

    def run(folder):
        screen, err = dry_run(folder, cli.BAD_INPUT)
        assert screen == {}
        (line,) = err.splitlines()
        return line

    return run


def new(folder, name=THREE_WAY, *options):
    assert cli.main(["new", name, str(folder), *options]) == cli.OK
    return folder


@pytest.fixture
def three_way(tmp_path, capfd):
    folder = new(tmp_path / "run")
    capfd.readouterr()
    return folder


@pytest.mark.parametrize(("name", "rule"), EACH)
def test_every_preset_passes(server, tmp_path, capfd, dry_run, name, rule):
    folder = new(tmp_path / "run", name, "--rule", rule, "--seed", "153")
    capfd.readouterr()
    screen, err = dry_run(folder)
    found = preset.PRESETS[name]
    assert all(checkpoint in screen["checkpoints"] for checkpoint in found.checkpoints)
    assert f"after block {found.layer} of 0 to {found.shape.layers - 1}" in screen["crosscoder"]
    assert rule in screen["crosscoder"]
    assert "seed 153" in screen["training"]
    assert "stages to do" in screen
    assert "Traceback" not in err
    assert not any("safetensors" in request or "pytorch_model" in request for request in server.requests)


@pytest.mark.usefixtures("server")
def test_the_screen_of_the_papers_three_way_crosscoder(three_way, dry_run):
    screen, err = dry_run(three_way)
    assert screen["checkpoints"] == (
        "step512 (1.1B), step2000 (4.2B), main (300B), by tokens seen, of EleutherAI/pythia-1b"
    )
    assert screen["model"].startswith("gpt_neox of 1B parameters, 16 blocks of width 2048")
    assert screen["compared"] == "step512, step2000, main"
    assert screen["crosscoder"].startswith("16,384 features, 201.3M weights, l1")
    assert screen["training"].startswith(
        "399,998,976 tokens in 97,656 steps, from 400M tokens of text in blocks of 1024"
    )
    assert screen["text"] == "monology/pile-uncopyrighted; document-start; at most 428M tokens"
    assert screen["stages to do"].split(", ")[0] == "suite"
    assert screen["time"].startswith("59 min of training: an estimate for one H100")
    assert screen["memory"].startswith("about 16.0 GiB")
    assert screen["download"].startswith("5.7 GiB of weights, into")
    assert [line for line in err.splitlines() if "no weights of step512, step2000, main" in line]


def test_the_command_as_users_type_it(served, tmp_path):
    folder = new(tmp_path / "run", "olmo-1b-4B-33B-3048B")
    environment = os.environ | {
        "HF_ENDPOINT": served.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-m", "crosstime", "run", str(folder), "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "olmo of 1.3B parameters" in done.stdout
    assert all(line.startswith("crosstime: warning: ") for line in done.stderr.splitlines())


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('revisions = ["step512"', 'revisions = ["step521"', "has no revision 'step521'; the nearest is 'step512'"),
        ('repo = "EleutherAI/pythia-1b"', 'repo = "EleutherAI/pythia-1"', "there is no repository EleutherAI/pythia-1"),
        ('checkpoints = ["step512"', 'checkpoints = ["step64"', "selection.checkpoints: the suite has no checkpoint"),
        ("layer = 8 ", "layer = 16 ", "crosscoder.layer is 16, out of range: the models have blocks 0 to 15"),
        ("layer = 8 ", "lyer = 8 ", "[crosscoder] unknown key `lyer`; the nearest is 'layer'"),
        ("context = 1024", "context = 4096", "text.context is 4096: the models have 2048 positions"),
        ('device = "auto"', 'device = "cuda"', "device cuda is not available"),
        ('pile-uncopyrighted"', 'pile"', "there is no repository monology/pile on the hub"),
        ('pile-uncopyrighted"', 'pile-uncopyrighted"\nsplit = "trian"', "has no split 'trian'; the nearest is 'train'"),
        ('sets = ["subject-verb"]', 'sets = ["subject-verbs"]', "there is no BLiMP set 'subject-verbs'"),
        ('rule = "l1"', 'rule = "l2"', "`rule` must be one of"),
        ("features = 16_384", "features = 0", "crosscoder.features must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(three_way, error, old, new, message):
    edit(three_way, old, new)
    assert message in error(three_way)


@pytest.mark.usefixtures("server")
def test_more_features_asked_for_than_there_are(tmp_path, capfd, error):
    folder = new(tmp_path / "run", THREE_WAY, "--rule", "batchtopk")
    capfd.readouterr()
    edit(folder, "features = 16_384", "features = 100")
    assert "sparsity.k (200) exceeds the number of features (100)" in error(folder)


def test_without_a_network(three_way, server, error, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(three_way / "empty cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = error(three_way)
    assert "EleutherAI/pythia-1b at 'step512' is not in the cache and the hub cannot be reached" in line
    assert server.requests == []


@pytest.mark.usefixtures("server")
def test_too_little_disk_and_memory_are_warnings(three_way, dry_run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(1_000_000_000))
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1_000_000)
    _, err = dry_run(three_way)
    assert "the run needs about 16.0 GiB, this machine (cpu) has 3.8 GiB" in err
    assert "5.7 GiB of weights are needed in" in err
    assert f"18.0 GiB at most are needed in {three_way}, where 954 MiB are free" in err


def test_a_users_own_run(tmp_path, users_suite, dry_run, error):
    folder = write_inputs(tmp_path, users_suite)
    screen, err = dry_run(folder)
    assert err == ""
    assert screen["text"] == "text ü.txt; packed"
    assert screen["task"].startswith("agreement of mine: 4 prompts from 4 pairs")
    assert screen["download"].startswith("0 MiB of weights")
    (folder / "text ü.txt").rename(folder / "elsewhere.txt")
    assert "there is no text file" in error(folder)


def test_a_folder_without_weights(tmp_path, users_suite, error):
    folder = write_inputs(tmp_path, users_suite)
    (folder / "my checkpoints" / "step10" / "model.safetensors").unlink()
    assert "step10 holds no weights: expected model.safetensors or" in error(folder)


def test_a_preset_is_chosen_by_name(tmp_path, capfd):
    assert cli.main(["new"]) == cli.OK
    listed = capfd.readouterr().out
    assert cli.main(["new", "--list"]) == cli.OK
    assert capfd.readouterr().out == listed == f"{preset.table()}\n"
    assert cli.main(["new", "pythia-1b-1B-4B-386B", str(tmp_path / "run")]) == cli.BAD_INPUT
    assert "there is no preset 'pythia-1b-1B-4B-386B'; the nearest is 'pythia-1b-1B-4B-286B'" in capfd.readouterr().err
    assert cli.main(["new", THREE_WAY]) == cli.BAD_INPUT
    assert f"name a new folder for the run: `crosstime new {THREE_WAY} RUN_DIR`" in capfd.readouterr().err
    new(tmp_path / "run", THREE_WAY, "--rule", "batchtopk", "--seed", "6582")
    (found,) = config.load(tmp_path / "run")
    assert (found.sparsity.rule, found.training.seed) == ("batchtopk", 6582)
