"""A plan: what a run will take on this machine, measured for a moment and put together."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import BloomConfig, Gemma2Config, GPTNeoXConfig

from crosstime import cli
from crosstime.models.split import SplitLM
from crosstime.pipeline import config, plan, speed
from crosstime.pipeline.plan import Plan, StagePlan
from crosstime.pipeline.run import runs
from crosstime.pipeline.speed import Speeds, StepTime, short_model
from users_run import edit, write_inputs

STAGES = ["survey", "train", "evaluate", "diagnose", "attribute", "ablate", "contexts"]
SPEEDS = Speeds(
    peak=1e12,
    load=0.0,
    collection=1.0,
    mixing=0.0,
    steps=(StepTime(fixed=2.0, rows=3.0, flop=2.5e12),),
    read=0.25,
    asked=0.0,
    evaluated=5.0,
    diagnosed=6.0,
    searched=7.0,
    task=100.0,
    prompt=10.0,
    ablated=0.0,
)  # fmt: skip
"""Seconds that are easy to add up by hand."""


@pytest.fixture
def folder(tmp_path, users_suite):
    return write_inputs(tmp_path, users_suite)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(plan.plan, "__defaults__", (0.0,))


@pytest.mark.usefixtures("quick")
def test_the_screen_of_a_users_run(folder, capfd):
    before = sorted(folder.rglob("*"))
    assert cli.main(["plan", str(folder)]) == cli.OK
    assert sorted(folder.rglob("*")) == before, "a plan writes nothing"
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:8]] == STAGES
    assert [line[:12].strip() for line in lines[10:]] == ["memory", "disk", "products", "limited by"]
    assert "tokens at each of 3 checkpoints" in lines[1]
    assert "4.1K tokens: collection" in lines[2]
    assert max(map(len, lines)) <= 150


@pytest.mark.usefixtures("quick")
def test_json_has_every_figure(folder, capfd):
    assert cli.main(["plan", str(folder), "--json"]) == cli.OK
    found = json.loads(capfd.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    assert all(stage["seconds"] > 0 and stage["memory"] > 2**20 for stage in found["stages"])
    assert found["memory"] == max(stage["memory"] for stage in found["stages"])
    assert 0 < found["disk"] < found["disk_free"]
    assert found["limit"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer", "lyer", "lyer"),
        ('device = "cpu"', 'device = "cuda"', "device cuda is not available"),
        ('train = "text ü.txt"', 'train = "none.txt"', "there is no text file"),
        (
            'checkpoints = ["step0"',
            'checkpoints = ["step1"',
            "selection.checkpoints: the suite has no checkpoint 'step1'",
        ),
        ("features = 64", "features = 0", "crosscoder.features must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capfd, old, new, message):
    edit(folder, "features = 64\n", "features = 64\nlayer = 2\n")
    edit(folder, old, new)
    assert cli.main(["plan", str(folder)]) == cli.BAD_INPUT
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert message in line


def planned(folder, monkeypatch, speeds=SPEEDS):
    monkeypatch.setattr(plan, "measure", lambda *_: speeds)
    return plan.plan(runs(folder, config.load(folder)))


def test_times_are_counts_times_speeds(folder, monkeypatch):
    seconds = {stage.name: stage.seconds for stage in planned(folder, monkeypatch).stages}
    # 16 steps of 256 tokens. A refill is 4 blocks of 31 tokens; into a buffer of 1024 go (1024 + 15 * 256) // 124 = 39
    # of them before the last step, after 4 blocks of calibration.
    collection = (4 + 39 * 4) * 32 * 1.0
    assert seconds["train"] == pytest.approx(collection + 16 * 5.0, abs=0.1)
    assert seconds["evaluate"] == pytest.approx(4 * 32 * 5.0, abs=0.1)
    assert seconds["diagnose"] == 4 * 32 * 6.0
    assert seconds["contexts"] == 4 * 32 * 7.0
    assert seconds["attribute"] == 100.0 + 4 * 10.0
    assert seconds["survey"] > 3 * 2 * 32 * 0.25


@pytest.mark.parametrize(("method", "points"), [("gradient", 5), ("released", 1), ("paper", 10)])
def test_points_of_a_path_are_those_of_the_method(folder, monkeypatch, method, points):
    monkeypatch.setattr(plan, "measure", lambda *_: SPEEDS)
    (configuration,) = config.load(folder)
    attribution = replace(configuration.attribution, method=method, steps=4)
    found = plan.plan(runs(folder, [replace(configuration, attribution=attribution)]))
    (stage,) = (stage for stage in found.stages if stage.name == "attribute")
    assert stage.what.endswith(f" {points} points each")


def test_blocks_that_are_counted_are_those_that_training_reads(folder, monkeypatch, capfd):
    """In a real run, counted."""
    from crosstime.training.collect import ActivationCollector

    read = 0
    whole = ActivationCollector.collect

    def collect(collector, blocks):
        nonlocal read
        read += blocks
        return whole(collector, blocks)

    monkeypatch.setattr(ActivationCollector, "collect", collect)
    assert cli.main(["run", str(folder), "--until", "train"]) == cli.OK
    capfd.readouterr()
    found = planned(folder, monkeypatch)
    assert found.collection_seconds == read * 32 * 1.0


def test_several_crosscoders_are_harvested_once_and_analysed_each(folder, monkeypatch):
    alone = {stage.name: stage.seconds for stage in planned(folder, monkeypatch).stages}
    edit(
        folder,
        "[crosscoder]\nfeatures = 64\n",
        '[[crosscoder]]\nname = "a"\nfeatures = 64\n[[crosscoder]]\nname = "b"\nfeatures = 64\n',
    )
    found = planned(folder, monkeypatch, replace(SPEEDS, steps=SPEEDS.steps * 2))
    both = {stage.name: stage.seconds for stage in found.stages}
    assert both["train"] - alone["train"] == pytest.approx(16 * 5.0, abs=0.1)
    assert both["survey"] == pytest.approx(alone["survey"], abs=1.0)
    assert both["diagnose"] == 2 * alone["diagnose"]
    assert found.one_more == 16 * 5.0


def a_plan(*, train=100.0, survey=10.0, collection=60.0, fixed=10.0, products=30.0, memory=1, disk=1):
    stages = [StagePlan("survey", "", survey, 1), StagePlan("train", "", train, memory)]
    return Plan(
        device="cpu", stages=stages, collection_seconds=collection, fixed_seconds=fixed, product_seconds=products,
        peak=1e12, peak_share=0.8, memory=memory, memory_limit=2**30, disk=disk, disk_free=2**30, one_more=40.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (a_plan(), "collecting activations, 60% of training; fewer training.tokens"),
        (a_plan(), "another [[crosscoder]] on them costs only 40% more"),
        (
            a_plan(collection=20.0, products=70.0),
            "the crosscoder's products, 70% of training; fewer crosscoder",
        ),
        (a_plan(collection=20.0, fixed=50.0), "a larger training.batch_size takes fewer steps"),
        (a_plan(survey=300.0), "the stage survey, 75% of the time; a smaller survey.max_pairs or survey.blocks"),
        (a_plan(memory=2**31), "memory: train takes 2.0 GiB of 1.0 GiB; lower training.buffer_tokens"),
        (a_plan(disk=2**31), "disk: lower training.buffer_tokens"),
    ],
)
def test_what_limits_and_what_would_help(found, expected):
    assert expected in found.limit


@pytest.mark.parametrize(
    "shape",
    [
        GPTNeoXConfig(vocab_size=99, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=64),
        BloomConfig(vocab_size=99, hidden_size=32, n_layer=5, n_head=4),
        Gemma2Config(
            vocab_size=99, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=64,
            layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        ),
    ],
    ids=lambda shape: shape.model_type,
)  # fmt: skip
def test_a_short_model_has_two_blocks_of_the_true_shape(shape):
    model = short_model(shape, torch.float32, torch.device("cpu"), code=False)
    lm = SplitLM(model, 0)
    assert (lm.n_layers, lm.width, lm.vocab_size) == (2, 32, 99)
    assert shape.num_hidden_layers == 5


def test_seconds_of_one_unit(monkeypatch):
    """More is done at once as long as there is time for it; of several tries the least counts."""
    clock, done, slow = 0.0, [], 1

    def work(n):
        nonlocal clock, slow
        done.append(n)
        clock += slow * (0.1 + 0.01 * n)
        slow = 1

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock)
    each = speed.seconds_each(work, 1000, torch.device("cpu"), 12.0)
    assert done[:2] == [1, 1]
    assert done == sorted(done)
    assert each == pytest.approx((0.1 + 0.01 * done[-1]) / done[-1])
    assert clock < 2 * 12.0
    done.clear()
    clock = 0.0
    assert speed.seconds_each(work, 1, torch.device("cpu"), 12.0) == pytest.approx(0.11)
    assert done == [1] * (2 + speed.TRIES)
    slow = 50
    assert speed.seconds_each(work, 1, torch.device("cpu"), 60.0) == pytest.approx(0.11)
