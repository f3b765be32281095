"""compute.memory: what cannot fit is refused before any long work, and batches fit into what is left."""

from dataclasses import replace

import pytest
import torch

from crosstime import cli
from crosstime.pipeline import config, preset
from crosstime.pipeline.budget import Batches, Budget
from users_run import edit, write_inputs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30
THREE_WAY = "pythia-1b-1B-4B-286B"
SHAPE = preset.PRESETS[THREE_WAY].shape
SETTINGS = preset.settings(THREE_WAY)


def batches(most, *, device=CUDA, before=0, configs=(SETTINGS,), train=True):
    return Batches.of(configs, SHAPE, Budget(device, most, before), train=train)


def test_without_a_budget_batches_are_as_configured():
    found = batches(None)
    assert found == Batches(collection=32, survey=4096, evaluation=16, diagnosis=16, effects=8192, contexts=16)
    assert batches(80 * GIB) == found
    assert batches(80 * GIB, train=False).collection == 0


def test_less_memory_makes_smaller_batches_and_never_larger_ones():
    sizes = [batches(n * GIB) for n in (24, 17, 16, 15)]
    assert [found.collection for found in sizes] == sorted((found.collection for found in sizes), reverse=True)
    assert sizes[-1].collection < 32
    # By hand: 15 GiB less checkpoints 3.33, weights and moments 3.22, buffer 6.44, a step 1.75; a block takes 75.5 MB.
    models = 3 * 2 * (50_304 * 2048 + 9 * 50_358_272)
    step = 4096 * (16_384 * 8 + 3 * 2048 * 16) + 4 * 201_326_592
    left = 15 * GIB - models - 16 * 201_326_592 - 524_288 * 3 * 2048 * 2 - step
    assert sizes[-1].collection == left // (1024 * 2048 * 2 * (12 + 6))


def test_on_a_cpu_the_process_itself_and_a_save_count_too():
    most = 22 * GIB
    assert batches(most).collection == batches(most, device=CPU).collection == 32
    assert 1 <= batches(most, device=CPU, before=GIB).collection < 32
    assert batches(most, device=CUDA, before=GIB).collection == 32


def test_several_crosscoders_hold_more():
    assert batches(18 * GIB).collection == 32
    with pytest.raises(ValueError, match=r"compute\.memory is 18\.0 GiB, and training takes"):
        batches(18 * GIB, configs=[SETTINGS] * 3)


@pytest.mark.parametrize(
    "part", ["training.model_dtype", "crosscoder.features", "training.buffer_tokens", "training.batch_size"]
)
def test_what_cannot_fit_is_told_part_by_part(part):
    with pytest.raises(ValueError, match=r"^compute\.memory is 13\.0 GiB, and training takes 1\d\.\d GiB: ") as error:
        batches(13 * GIB)
    assert part in str(error.value)
    assert str(error.value).endswith("lower a setting that is named here, or raise compute.memory")


def test_whole_checkpoints_may_not_fit_where_training_does():
    small = replace(SETTINGS, training=replace(SETTINGS.training, buffer_tokens=4096, model_batch_blocks=1))
    with pytest.raises(ValueError, match=r"the evaluation takes .*checkpoints \(compute\.dtype\) 11\.3 GiB"):
        batches(10 * GIB, configs=[small])
    half = replace(small, compute=replace(small.compute, dtype="bfloat16"))
    assert batches(10 * GIB, configs=[half]).evaluation >= 1


def test_a_budget_that_is_no_amount(tmp_path):
    (tmp_path / "run.toml").write_text(preset.text("demo").replace('device = "auto"', 'memory = "20 gigs"'))
    with pytest.raises(ValueError, match=r'run\.toml: compute\.memory must be an amount like "20GiB"'):
        config.load(tmp_path)


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["plan"]])
def test_too_small_a_budget_stops_before_any_work(tmp_path, users_suite, capfd, command):
    folder = write_inputs(tmp_path, users_suite)
    edit(folder, 'device = "cpu"', 'device = "cpu"\nmemory = "64MB"')
    assert cli.main([command[0], str(folder), *command[1:]]) == cli.BAD_INPUT
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: compute.memory is 61 MiB, and the survey takes" in err.splitlines()[-1]
    assert not (folder / "tokens").exists()


def test_a_budget_makes_nothing_stale(tmp_path):
    text = preset.text("demo")
    with_budget = text.replace('device = "auto"', 'memory = "20GiB"')
    found = []
    for name, content in (("a", text), ("b", with_budget)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.toml").write_text(content)
        (one,) = config.load(tmp_path / name)
        found.append(config.toml.flatten(one.compute, "compute"))
    assert found[0] == found[1] == {"compute.dtype": "float32"}
