"""Estimates, compared with numbers worked out by hand from the paper's settings; and batches that fit a budget."""

from dataclasses import replace

import pytest
import torch

from crosstime import cli
from crosstime.pipeline import config, preset
from crosstime.pipeline.estimate import H100, MEMORY, Budget, Device, estimate
from users_run import edit, write_inputs

THREE_WAY = "pythia-1b-1B-4B-286B"
PYTHIA = preset.PRESETS[THREE_WAY].shape
SETTINGS = preset.settings(THREE_WAY)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


def cost(name, rule=None, **settings):
    return estimate([preset.settings(name, rule)], preset.PRESETS[name].shape, **settings)


def test_the_papers_three_way_crosscoder():
    found = cost("pythia-1b-1B-4B-286B")
    assert found.weights == 201_326_592
    assert found.tokens == 97_656 * 4096
    # 1023 rows a block of 1024 tokens. (The paper's code reads 403.2M: it throws 0.7 % of its rows away.)
    assert found.tokens_read == round(399_998_976 * 1024 / 1023)
    # 10 M D F a row
    assert found.matmul_flop == 399_998_976 * 10 * 3 * 2048 * 16_384
    # three checkpoints, nine blocks of 50,358,272 parameters, and 1024 positions attended to
    assert found.forward_flop == found.tokens_read * 3.0 * 9 * (2 * 50_358_272 + 2 * 1024 * 2048)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("pythia-1b-4B-286B", 134_217_728),
        ("olmo-1b-4B-33B-3048B", 201_326_592),
        ("bloom-1b1-6B-55B", 100_663_296),
        ("bloom-1b1-6B-55B-341B", 150_994_944),
        ("pythia-160m-32", 1_207_959_552),
    ],
)
def test_the_weights_of_the_other_crosscoders(name, weights):
    assert cost(name).weights == weights


def test_time_is_that_of_products_passes_and_adam():
    slow, fast = 1.0, 1e30
    found = cost("pythia-1b-1B-4B-286B")
    only = {
        "products": (found.matmul_flop, Device("x", slow, fast, fast)),
        "harvest": (found.forward_flop, Device("x", fast, slow, fast)),
        "bandwidth": (97_656 * (46 * 201_326_592 + 2 * 8 * 4096 * 16_384), Device("x", fast, fast, slow)),
    }
    for expected, device in only.values():
        assert cost("pythia-1b-1B-4B-286B", device=device).seconds == pytest.approx(expected)


def test_memory_of_training_the_three_way_crosscoder():
    """By hand, in GB: checkpoints 3.33, weights and Adam 4.03, buffer 6.44, codes .54, activations .40, a pass 2.4."""
    models = 3 * 2 * (50_304 * 2048 + 9 * 50_358_272)
    buffer = 524_288 * 3 * 2048 * 2
    batch = 4096 * (16_384 * 8 + 3 * 2048 * 16)
    collected = 32 * 1024 * 2048 * 2 * (12 + 6)
    memory = MEMORY["train"]([SETTINGS], PYTHIA)
    assert memory.peak("cuda") == models + 20 * 201_326_592 + buffer + batch + collected
    assert memory.peak("cpu") == memory.peak("cuda") + buffer  # which is put in order to be saved
    state = 12 * 201_326_592 + buffer
    assert cost(THREE_WAY).disk == 2 * state + 4 * 201_326_592 + 2 * 428_032_000


def test_memory_of_the_whole_run_is_that_of_the_greediest_stage():
    """Diagnostics: whole checkpoints, and 8 values per feature and token of 16 blocks, and the activations twice."""
    batch = 4 * 16 * 1024 * (8 * 16_384 + 2 * 3 * 2048)
    assert cost(THREE_WAY).memory == 3 * 4 * 1_011_781_632 + 4 * 201_326_592 + batch
    peaks = {stage: memory([SETTINGS], PYTHIA).peak("cuda") for stage, memory in MEMORY.items()}
    assert cost(THREE_WAY).memory == peaks["diagnose"] == max(peaks.values())


def test_a_gate_at_every_checkpoint_costs_memory_for_each():
    gated = preset.settings("pythia-160m-32")
    plain = replace(gated, sparsity=preset.settings("demo").sparsity)
    shape = preset.PRESETS["pythia-160m-32"].shape
    more = MEMORY["train"]([gated], shape).peak("cuda") - MEMORY["train"]([plain], shape).peak("cuda")
    assert more == 1024 * 24_576 * (24 * 32 - 8)


def test_a_crosscoder_that_is_not_trained_costs_no_training():
    config = replace(SETTINGS, training=replace(SETTINGS.training, buffer_tokens=4_000_000))
    found = estimate([replace(config, crosscoder=replace(config.crosscoder, from_="theirs"))], PYTHIA)
    assert (found.tokens, found.tokens_read, found.seconds) == (0, 0, 0)
    assert found.memory < estimate([config], PYTHIA).memory
    assert found.disk == 4 * 201_326_592 + 2 * 428_032_000


def test_several_crosscoders_cost_one_collection_and_the_steps_of_all():
    config = preset.settings("pythia-1b-1B-4B-286B")
    small = replace(config, crosscoder=replace(config.crosscoder, features=4096))
    alone, both = estimate([config], PYTHIA), estimate([config, small], PYTHIA)
    assert (both.tokens, both.tokens_read, both.forward_flop) == (alone.tokens, alone.tokens_read, alone.forward_flop)
    assert both.weights == 201_326_592 * 5 // 4
    assert both.matmul_flop == alone.matmul_flop * 1.25
    harvest = alone.forward_flop / H100.forward
    assert both.seconds - harvest == pytest.approx((alone.seconds - harvest) * 1.25)
    training = [MEMORY["train"](configs, PYTHIA).peak("cuda") for configs in ([config], [config, small])]
    assert training[1] - training[0] == 16 * 201_326_592 // 4  # they step one after the other
    assert both.disk - alone.disk == (2 * 12 + 4) * 201_326_592 // 4


def test_what_the_table_says_of_the_papers_budget():
    """The paper's code takes 6 and 12 hours on an A100. By hand: 42 minutes of passes, 11 of products, 5 of Adam."""
    assert 0.8 < cost("pythia-1b-1B-4B-286B").seconds / 3600 < 1.2
    assert 0.5 < cost("pythia-1b-4B-286B").seconds / 3600 < 0.8


def batches(most, *, device=CUDA, before=0, configs=(SETTINGS,)):
    budget = Budget(device, most, before)
    return {name: budget.fit(memory(configs, PYTHIA)) for name, memory in MEMORY.items()}


def test_without_a_budget_batches_are_as_configured():
    found = batches(None)
    batches_of = {
        "survey": 4,
        "train": 32,
        "evaluate": 16,
        "diagnose": 16,
        "attribute": 8192,
        "ablate": 64,
        "contexts": 16,
    }
    assert found == batches_of
    assert batches(80 * GIB) == found


def test_less_memory_makes_smaller_batches_and_never_larger_ones():
    sizes = [batches(n * GIB) for n in (24, 17, 16, 15)]
    assert [found["train"] for found in sizes] == sorted((found["train"] for found in sizes), reverse=True)
    assert sizes[-1]["train"] < 32
    # By hand: 15 GiB less checkpoints 3.33, weights and moments 3.22, ring 6.44, a step 1.75 GB; a block takes 75.5 MB.
    models = 3 * 2 * (50_304 * 2048 + 9 * 50_358_272)
    step = 4096 * (16_384 * 8 + 3 * 2048 * 16) + 4 * 201_326_592
    left = 15 * GIB - models - 16 * 201_326_592 - 524_288 * 3 * 2048 * 2 - step
    assert sizes[-1]["train"] == left // (1024 * 2048 * 2 * (12 + 6))


def test_on_a_cpu_the_process_itself_and_a_save_count_too():
    most = 22 * GIB
    assert batches(most)["train"] == batches(most, device=CPU)["train"] == 32
    assert 1 <= batches(most, device=CPU, before=GIB)["train"] < 32
    assert batches(most, device=CUDA, before=GIB)["train"] == 32


def test_several_crosscoders_hold_more():
    assert batches(18 * GIB)["train"] == 32
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
    assert batches(10 * GIB, configs=[half])["evaluate"] >= 1


def test_a_budget_that_is_no_amount(tmp_path):
    (tmp_path / "run.toml").write_text(preset.text("demo").replace('device = "auto"', 'memory = "20 gigs"'))
    with pytest.raises(ValueError, match=r'run\.toml: compute\.memory must be an amount like "20GiB"'):
        config.load(tmp_path)


@pytest.mark.parametrize("command", [["run"], ["plan", "--no-measure"], ["plan"]])
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
