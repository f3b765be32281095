"""Plans: what is checked and predicted without weights, from a hub of ours that holds none; and the measured table."""

import functools
import json
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
from huggingface_hub import constants

import crosstime as ct
import families
from crosstime import cli
from crosstime.base.errors import OutOfMemory
from crosstime.models import hub
from crosstime.pipeline import config, plan, preset
from crosstime.pipeline.engine import Stage
from crosstime.pipeline.measure import Timing
from crosstime.pipeline.run import runs
from crosstime.pipeline.stages import stages
from crosstime.tasks.blimp import BlimpPairs
from users_run import edit, write_inputs

EACH = [(name, rule) for name, found in preset.PRESETS.items() for rule in found.rules]
THREE_WAY = "pythia-1b-1B-4B-286B"
MEASURED = ["survey", "train", "evaluate", "diagnose", "attribute", "ablate", "contexts"]


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
def check(capfd):
    """Run `crosstime plan FOLDER`; return its facts by label, and stderr."""

    def run(folder, *options, code=cli.OK):
        before = sorted(folder.rglob("*"))
        assert cli.main(["plan", str(folder), *options]) == code
        assert sorted(folder.rglob("*")) == before, "a plan writes nothing"
        out, err = capfd.readouterr()
        facts = {}
        for line in out.split("\n\n")[0].splitlines():
            label = line[:14].strip() or label
            facts[label] = f"{facts.get(label, '')} {line[14:].strip()}".strip()
        return facts, err

    return run


@pytest.fixture
def error(check):
    """Run a plan that must fail as bad input; return its one line."""

    def run(folder):
        facts, err = check(folder, code=cli.BAD_INPUT)
        assert facts == {}
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


@pytest.fixture
def folder(tmp_path, users_suite):
    return write_inputs(tmp_path, users_suite)


# ---------------------------------------------------------------------------------------------------- without weights


@pytest.mark.parametrize(("name", "rule"), EACH)
def test_every_preset_passes(server, tmp_path, capfd, check, name, rule):
    folder = new(tmp_path / "run", name, "--rule", rule, "--seed", "153")
    capfd.readouterr()
    facts, err = check(folder, "--no-measure")
    found = preset.PRESETS[name]
    assert all(checkpoint in facts["checkpoints"] for checkpoint in found.checkpoints)
    assert f"after block {found.layer} of 0 to {found.shape.layers - 1}" in facts["crosscoder"]
    assert rule in facts["crosscoder"]
    assert "seed 153" in facts["training"]
    assert "stages to do" in facts
    assert "Traceback" not in err
    assert not any("safetensors" in request or "pytorch_model" in request for request in server.requests)


def test_the_facts_of_the_papers_three_way_crosscoder(server, three_way, check):
    facts, err = check(three_way)
    assert facts["checkpoints"] == (
        "step512 (1.1B), step2000 (4.2B), main (300B), by tokens seen, of EleutherAI/pythia-1b"
    )
    assert facts["model"].startswith("gpt_neox of 1B parameters, 16 blocks of width 2048")
    assert facts["selected"] == "step512, step2000, main"
    assert facts["crosscoder"].startswith("16,384 features, 201.3M weights, l1")
    assert facts["training"].startswith("399,998,976 tokens in 97,656 steps, out of 400M read in blocks of 1024")
    assert facts["text"] == "monology/pile-uncopyrighted; document-start; at most 428M tokens"
    assert facts["stages to do"].split(", ")[0] == "suite"
    assert facts["time"].startswith("59 min to train on one H100")
    assert 21 < float(facts["memory"].split()[0]) < 25  # what the process itself holds counts too
    assert facts["download"].startswith("5.7 GiB of weights, into")
    assert facts["time here"] == "not measured: the checkpoints aren't on this machine yet"
    assert [line for line in err.splitlines() if "no weights of step512, step2000, main" in line]
    assert not any("safetensors" in request or "pytorch_model" in request for request in server.requests)


def test_the_command_as_users_type_it(served, tmp_path):
    folder = new(tmp_path / "run", "olmo-1b-4B-33B-3048B")
    environment = os.environ | {
        "HF_ENDPOINT": served.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-m", "crosstime", "plan", str(folder), "--no-measure"],
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
def test_too_little_disk_and_memory_are_warnings(three_way, check, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(1_000_000_000))
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1_000_000)
    _, err = check(three_way)
    assert "GiB, this machine (cpu) has 3.8 GiB" in err
    assert "5.7 GiB of weights are needed in" in err
    assert f"18.0 GiB at most are needed in {three_way}, where 954 MiB are free" in err


def test_a_users_own_run(folder, check, error):
    facts, err = check(folder, "--no-measure")
    assert err == ""
    assert facts["text"] == "text ü.txt; packed"
    assert facts["task"].startswith("agreement of mine: 4 prompts from 4 pairs")
    assert facts["download"].startswith("0 MiB of weights")
    assert "time here" not in facts
    (folder / "text ü.txt").rename(folder / "elsewhere.txt")
    assert "there is no text file" in error(folder)


def test_a_folder_without_weights(folder, error):
    (folder / "my checkpoints" / "step10" / "model.safetensors").unlink()
    assert "step10 holds no weights: expected model.safetensors or" in error(folder)


# -------------------------------------------------------------------------------------------------------- with weights


@pytest.fixture
def timings(monkeypatch):
    """Let `measure` find that each stage takes a second, and training ten."""
    found = {name: Timing(1.0, 2.0, f"less {name}") for name in MEASURED}
    found["train"] = Timing(10.0, 20.0, "fewer tokens")
    monkeypatch.setattr(plan, "measure", lambda _, __, done: {k: v for k, v in found.items() if k not in done})
    return found


@pytest.mark.usefixtures("timings")
def test_the_table_of_a_users_run(folder, capfd):
    assert cli.main(["plan", str(folder)]) == cli.OK
    out, err = capfd.readouterr()
    assert err == ""
    _, table, advice = out.rstrip().split("\n\n")
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [stage.name for stage in stages(config.load(folder)[0])]
    assert lines[0].split() == ["stage", "work", "time", "CPU", "time", "memory"]
    assert [line.split()[1:] for line in lines if line.startswith(("suite", "report"))] == [["not", "predicted"]] * 2
    (evaluate,) = (line for line in lines if line.startswith("evaluate"))
    assert evaluate.split()[1:7] == ["4", "blocks", "1.0", "s", "2.0", "s"]
    assert lines[-1].split()[:6] == ["all", "measured", "16", "s", "32", "s"]
    assert advice == "Limited by the stage train, 62% of the time; it gets shorter with fewer tokens."
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.usefixtures("timings")
def test_json_has_every_figure(folder, capfd):
    assert cli.main(["plan", str(folder), "--json"]) == cli.OK
    found = json.loads(capfd.readouterr().out)
    measured = {stage["name"]: stage for stage in found["stages"] if stage["status"] == "measured"}
    assert list(measured) == MEASURED
    assert found["seconds"] == sum(stage["seconds"] for stage in measured.values()) == 16.0
    assert all(stage["memory"] > 2**20 for stage in measured.values())
    assert found["memory"] == max(stage["memory"] for stage in measured.values())
    assert 0 < found["estimate"]["disk"] < found["disk_free"]
    assert found["estimate"]["tokens"] == 4096
    assert found["facts"]["task"] == ["agreement of mine: 4 prompts from 4 pairs"]


def test_without_measuring_no_stage_has_a_time(folder, capfd):
    assert cli.main(["plan", str(folder), "--no-measure", "--json"]) == cli.OK
    found = json.loads(capfd.readouterr().out)
    assert found["seconds"] is None
    assert {stage["status"] for stage in found["stages"]} == {"not measured", "not predicted"}
    assert found["advice"] == ""


@pytest.mark.usefixtures("timings")
def test_a_stage_without_a_workload_is_listed_as_not_predicted(folder, monkeypatch):
    mine = Stage("mine", "mine", "doing mine", settings=(), inputs=("crosscoder",), work=lambda _, __: None)
    monkeypatch.setattr(plan, "stages", lambda given: (*stages(given), mine))
    found = plan.plan(runs(folder, config.load(folder)))
    (stage,) = (stage for stage in found.stages if stage.name == "mine")
    assert (stage.status, stage.seconds, stage.memory) == ("not predicted", None, None)
    assert "mine" in found.facts["stages to do"]


@pytest.mark.usefixtures("timings")
def test_a_stage_with_a_workload_is_predicted_wherever_it_comes_from(folder, monkeypatch, timings):
    like = next(stage for stage in stages(config.load(folder)[0]) if stage.name == "evaluate")
    mine = replace(like, name="mine", folder="mine")
    timings["mine"] = Timing(100.0, 100.0, "less of mine")
    monkeypatch.setattr(plan, "stages", lambda given: (*stages(given), mine))
    found = plan.plan(runs(folder, config.load(folder)))
    (stage,) = (stage for stage in found.stages if stage.name == "mine")
    assert (stage.status, stage.work, stage.seconds) == ("measured", "4 blocks", 100.0)
    assert found.advice.endswith("it gets shorter with less of mine")


@pytest.mark.usefixtures("timings")
def test_stages_that_are_up_to_date_take_no_time(folder):
    ct.run(folder, until="evaluate")
    found = plan.plan(runs(folder, config.load(folder)))
    status = {stage.name: stage.status for stage in found.stages}
    assert [name for name in status if status[name] == "up to date"] == [
        *("suite", "tokens", "select", "train", "evaluate")
    ]
    assert found.seconds == 5.0
    assert found.facts["stages to do"] == "survey, diagnose, attribute, ablate, contexts, report"


def test_memory_that_runs_out_while_measuring_is_told(folder, monkeypatch):
    def measure(*_):
        raise OutOfMemory("train: there is not enough memory for one block")

    monkeypatch.setattr(plan, "measure", measure)
    found = plan.plan(runs(folder, config.load(folder)))
    assert found.facts["time here"] == "not measured: train: there is not enough memory for one block"
    assert found.seconds is None


@pytest.mark.usefixtures("timings")
def test_memory_and_disk_limit_before_time_does(folder, monkeypatch):
    edit(folder, "buffer_tokens = 1024", "buffer_tokens = 1_000_000_000")
    with pytest.warns(UserWarning, match="the run needs about|are needed in"):
        found = plan.plan(runs(folder, config.load(folder)))
    assert found.advice.startswith("memory: train takes ")
    assert found.advice.endswith("most of it for the activation buffer (training.buffer_tokens)")
    edit(folder, "buffer_tokens = 1_000_000_000", "buffer_tokens = 1024")
    monkeypatch.setattr(plan, "free_bytes", lambda _: 1)
    with pytest.warns(UserWarning, match="are needed in"):
        found = plan.plan(runs(folder, config.load(folder)))
    assert found.advice.startswith("disk: lower training.buffer_tokens or crosscoder.features")


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
