"""Timing stages on little work, and what follows for the whole."""

import dataclasses
import json

import pytest

import crosstime as ct
from crosstime.pipeline import config, measure
from crosstime.pipeline.estimate import collected_tokens
from crosstime.pipeline.measure import Sample, extrapolate
from crosstime.pipeline.run import runs
from crosstime.pipeline.stages import stages
from users_run import edit, write_inputs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # about checkpoints and effects that mean nothing

MEASURED = ["survey", "train", "evaluate", "diagnose", "attribute", "ablate", "contexts"]


@pytest.fixture
def folder(tmp_path, users_suite):
    return write_inputs(tmp_path, users_suite)


def timed(folder, done=(), seconds=1.0):
    found = runs(folder, config.load(folder))
    return measure.measure(found, stages(found[0].config), list(done), seconds)


class Work:
    """Work on a clock of its own: `fixed` + `each` seconds per unit; some calls are slow."""

    def __init__(self, monkeypatch, fixed, each, slow=None):
        self.fixed, self.each, self.slow = fixed, each, slow or {}
        self.sizes, self.clock = [], 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.clock)

    def __call__(self, size):
        seconds = (self.fixed + self.each * 10 * size) * self.slow.get(len(self.sizes), 1)
        self.sizes.append(size)
        self.clock += seconds
        return Sample(10.0 * size, seconds, 2 * seconds)


def test_the_whole_is_extrapolated_along_a_line(monkeypatch):
    work = Work(monkeypatch, fixed=0.1, each=0.001)
    assert extrapolate(work, 1e6, 6.0) == pytest.approx((0.1 + 1000.0, 2 * (0.1 + 1000.0)))
    assert work.clock < 2 * 6.0
    assert max(work.sizes) == 2 * work.sizes[-2]


@pytest.mark.parametrize("slow", [50, 5000])
def test_a_slow_first_call_does_not_count(monkeypatch, slow):
    work = Work(monkeypatch, fixed=0.1, each=0.001, slow={0: slow})
    assert extrapolate(work, 1e6, 6.0)[0] == pytest.approx(1000.1)


def test_a_call_that_was_held_up_does_not_count(monkeypatch):
    quiet = Work(monkeypatch, fixed=0.1, each=0.001)
    extrapolate(quiet, 1e6, 6.0)
    for call in (2, 3, 4):
        held_up = Work(monkeypatch, fixed=0.1, each=0.001, slow={len(quiet.sizes) - call: 3})
        assert extrapolate(held_up, 1e6, 6.0)[0] == pytest.approx(1000.1)


def test_overhead_is_not_taken_for_work(monkeypatch):
    """The smallest size takes the time that there is, and nearly all of it is overhead."""
    assert extrapolate(Work(monkeypatch, fixed=6.0, each=0.001), 1e5, 6.0)[0] == pytest.approx(106.0)


def test_no_more_is_done_than_the_whole(monkeypatch):
    work = Work(monkeypatch, fixed=0.0, each=1e-6)
    assert extrapolate(work, 40.0, 6.0)[0] == pytest.approx(4e-5)
    assert max(work.sizes) <= 32


def test_a_prediction_is_near_a_run(folder):
    """Within a factor of four: the machine that the tests run on may be busy."""
    edit(folder, "tokens = 4096", "tokens = 16384")
    edit(folder, "blocks = 4\n[diag", "blocks = 40\n[diag")
    (run,) = ct.run(folder, until="survey")
    names = ("train", "evaluate")
    done = [stage.name for stage in stages(run.config) if stage.name not in names]
    predicted = sum(timing.seconds for timing in timed(folder, done, seconds=2.0).values())
    ct.run(folder, until="evaluate")
    manifests = [json.loads((folder / name / "manifest.json").read_text()) for name in ("crosscoder", "evaluation")]
    assert 1 / 4 < predicted / sum(manifest["seconds"] for manifest in manifests) < 4


def test_stages_are_measured_in_another_folder(folder):
    before = sorted(folder.rglob("*"))
    found = timed(folder)
    assert sorted(folder.rglob("*")) == before
    assert list(found) == MEASURED
    assert all(timing.seconds > 0 and timing.cpu_seconds > 0 and timing.advice for timing in found.values())
    assert "training.tokens" in found["train"].advice


def test_stages_that_are_done_are_read_and_not_measured(folder):
    ct.run(folder, until="attribute")
    assert list(timed(folder, done=["suite", "tokens", "select", "train", "evaluate", "attribute"])) == [
        *("survey", "diagnose", "ablate", "contexts")
    ]


@pytest.fixture
def units(monkeypatch):
    """Let each stage take as many seconds as it has units, and loading a checkpoint 10,000."""

    def all_units(sample, units, _):
        sample(8)
        return units, units

    monkeypatch.setattr(measure, "extrapolate", all_units)
    monkeypatch.setattr(measure._CachedSuite, "seconds", 1e4)


@pytest.mark.usefixtures("units")
def test_units_and_loads(folder):
    seconds = {name: timing.seconds for name, timing in timed(folder).items()}
    assert seconds["survey"] == 3e4 + 3 * (4 * 24 + 2 * 32)
    assert 3e4 + 4096 < seconds["train"] < 3e4 + collected_tokens(config.load(folder)[0])
    assert [seconds[name] for name in MEASURED[2:]] == [3e4 + 4, 4, 4, 4, 4]  # the checkpoints stay loaded

    names = [f'[[crosscoder]]\nname = "{name}"\nfeatures = 64\n' for name in "ab"]
    edit(folder, "[crosscoder]\nfeatures = 64\n", "".join(names))
    both = {name: timing.seconds for name, timing in timed(folder).items()}
    assert both["survey"] == seconds["survey"]
    assert both["train"] < 1.01 * seconds["train"]
    assert [both[name] for name in MEASURED[2:]] == [3e4 + 8, 8, 8, 8, 8]


@pytest.mark.usefixtures("units")
def test_an_imported_crosscoder_is_analysed(folder, tmp_path):
    ct.run(folder, until="train")
    (folder / "crosscoder").rename(tmp_path / "theirs")
    edit(folder, "features = 64", 'from = "theirs"')
    assert list(timed(folder)) == [name for name in MEASURED if name != "train"]


@pytest.mark.usefixtures("units")
def test_the_crosscoders_that_are_timed_are_sparse(folder):
    seen = []
    work = next(stage for stage in stages(config.load(folder)[0]) if stage.name == "diagnose").work

    def diagnose(run, draft):
        frequency = ct.Quality.load(run.folder_of("evaluation")).frequency
        seen.append(float(frequency.mean()))
        work(run, draft)

    found = runs(folder, config.load(folder))
    changed = [
        dataclasses.replace(stage, work=diagnose) if stage.name == "diagnose" else stage
        for stage in stages(found[0].config)
    ]
    measure.measure(found, changed, [], 1.0)
    assert seen
    assert all(0 < frequency < 0.1 for frequency in seen)


def test_counted_tokens_are_those_that_training_reads(folder, monkeypatch):
    from crosstime.training.collect import ActivationCollector

    read = 0
    collect = ActivationCollector.collect

    def counted(collector, blocks):
        nonlocal read
        read += blocks
        return collect(collector, blocks)

    monkeypatch.setattr(ActivationCollector, "collect", counted)
    ct.run(folder, until="train")
    assert collected_tokens(config.load(folder)[0]) == read * 32
