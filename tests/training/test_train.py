"""Training finds planted features, treats checkpoints alike, and resumes bit-identically after an interruption."""

import dataclasses
import json
import os
import re
import signal
import sys
import time
import types

import numpy as np
import pytest
import torch

from crosstime.attribution.effects import AttributionConfig, attribute
from crosstime.attribution.relative import relative
from crosstime.base.memory import MemoryWarning
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU, TopK
from crosstime.models.suite import Suite
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from crosstime.training.collect import calibrate
from crosstime.training.config import CrosscoderSpec, TrainConfig
from crosstime.training.log import open_log, read_log
from crosstime.training.resume import ResumeFolder
from crosstime.training.state import TrainState
from crosstime.training.train import Trainer, train, train_several
from planted import RIGHT, WRONG, plant

SMALL = TrainConfig(
    tokens=2000,
    batch_size=50,
    lr=1e-2,
    buffer_tokens=300,
    model_batch_blocks=4,
    calibration_blocks=8,
    matmul_dtype="float32",
    model_dtype="float32",
    save_seconds=0.0,
    log_steps=10,
)


def _corpus(n_tokens, n_blocks=40, context=17, seed=0):
    blocks = np.random.default_rng(seed).integers(n_tokens, size=(n_blocks, context), dtype=np.uint16)
    return Corpus(blocks, "planted")


def _trainer(world, config=SMALL, *, sparsity=L1(0.1), features=16, models=None, resume=None, corpus=None):  # noqa: B008
    models = models or world.models()
    names = tuple(model.name for model in models)
    crosscoder = CrosscoderConfig(names, 0, models[0].width, features, sparsity=sparsity)
    states = {"": TrainState(Crosscoder(crosscoder), config)}
    return Trainer(states, config, models, corpus or _corpus(len(world.rows)), resume)


def _trained(*args, **kwargs):
    trainer = _trainer(*args, **kwargs)
    trainer.run()
    return _crosscoder(trainer)


def _crosscoder(trainer):
    (state,) = trainer.states.values()
    return state.crosscoder


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def recovered():
    """A planted world, the crosscoder trained on it, and the feature that is nearest to each planted one."""
    world = plant(n_rows=4000, width=32, per_kind=2, density=0.08, noise=0.02)
    config = dataclasses.replace(
        SMALL, tokens=250_000, batch_size=128, lr=5e-3, buffer_tokens=8192, model_batch_blocks=64, log_steps=500
    )
    crosscoder = _trained(world, config, sparsity=L1(0.05), features=20, corpus=_corpus(len(world.rows), n_blocks=2000))
    found = (crosscoder.W_dec.detach() / crosscoder.scale[:, None]).flatten(1)
    cosine = torch.nn.functional.normalize(world.dictionary.flatten(1), dim=1) @ torch.nn.functional.normalize(found).T
    best, which = cosine.max(1)
    assert best.min() > 0.9, best
    assert len(set(which.tolist())) == len(which)
    return world, crosscoder, which


def test_planted_features_are_recovered_with_their_decoder_norms(recovered):
    world, crosscoder, which = recovered
    norms = (crosscoder.W_dec.detach() / crosscoder.scale[:, None])[which].norm(dim=-1)
    np.testing.assert_allclose(relative(norms.T.numpy()), world.rel_dec.numpy(), atol=0.05)


def test_planted_effects_are_recovered(recovered):
    world, crosscoder, which = recovered
    tokens = np.random.default_rng(5).integers(2, len(world.rows), (600, 6)).tolist()
    right, wrong = torch.full((600,), RIGHT), torch.full((600,), WRONG)
    effects = attribute(
        crosscoder,
        world.models(),
        Prompts("planted", tokens, right, wrong, torch.arange(600)),
        AttributionConfig(steps=2, bootstrap=0),
    )
    relevant = [i for i, kind in enumerate(world.kinds) if kind != "irrelevant"]
    np.testing.assert_allclose(effects.rel_ie[:, which[relevant]], world.rel_ie[:, relevant].numpy(), atol=0.05)
    irrelevant = which[world.features("irrelevant")]
    assert np.abs(effects.ie[:, irrelevant]).max() < 0.1 * np.abs(effects.ie[:, which[relevant]]).max(0).min()


def test_identical_checkpoints_share_every_feature_equally():
    world = plant(n_rows=200)
    models = [world.models()[0] for _ in range(3)]
    for i, model in enumerate(models):
        model.name = f"step{i}"
    crosscoder = _trained(world, models=models)
    norms = crosscoder.decoder_norms().detach().numpy()
    np.testing.assert_allclose(relative(norms), 1 / 3, atol=1e-6)


def test_permuting_the_checkpoints_permutes_the_crosscoder_and_nothing_else():
    world = plant(n_rows=200)
    models, order = world.models(), [2, 0, 1]
    one = _trained(world, models=models)
    other = _trained(world, models=[models[m] for m in order])
    assert other.config.checkpoints == tuple(world.names[m] for m in order)
    torch.testing.assert_close(other.W_dec, one.W_dec[:, order], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other.b_enc, one.b_enc, atol=1e-4, rtol=1e-3)


def test_the_penalty_makes_the_code_sparse():
    world = plant(n_rows=500)
    log = {}
    for l1 in (0.0, 0.5):
        trainer = _trainer(world, dataclasses.replace(SMALL, tokens=10_000), sparsity=L1(l1))
        records = []
        trainer.run([records.append])
        log[l1] = records[-1]
    assert log[0.5]["l0"] < log[0.0]["l0"]
    assert log[0.5]["explained_variance"] < log[0.0]["explained_variance"]


RULES = [
    L1(0.1),
    TopK(3, dead_tokens=200),
    BatchTopK(3, k_start=6, k_steps=10, threshold_start=10, threshold_decay=0.9, dead_tokens=200),
    JumpReLU(0.1, window=0.5),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_every_rule_recovers_planted_features(rule):
    world = plant(n_rows=2000, width=32, per_kind=2, density=0.08)
    sparse = {
        "l1": L1(0.05),
        "topk": TopK(1),
        "batchtopk": BatchTopK(1, k_start=6, k_steps=400, threshold_start=600, threshold_decay=0.99),
        "jumprelu": JumpReLU(0.5, window=1.0, frequency=0.1),
    }[rule.rule]
    config = dataclasses.replace(
        SMALL, tokens=150_000, batch_size=128, lr=5e-3, buffer_tokens=8192, model_batch_blocks=64, log_steps=500
    )
    crosscoder = _trained(world, config, sparsity=sparse, features=20, corpus=_corpus(len(world.rows), n_blocks=1000))
    found = (crosscoder.W_dec.detach() / crosscoder.scale[:, None]).flatten(1)
    cosine = torch.nn.functional.normalize(world.dictionary.flatten(1), dim=1) @ torch.nn.functional.normalize(found).T
    assert cosine.amax(1).median() > 0.95, cosine.amax(1)
    with torch.no_grad():
        x_hat = crosscoder(world.rows)
    explained = 1 - (world.rows - x_hat).square().sum() / (world.rows - world.rows.mean(0)).square().sum()
    assert explained > 0.7


def test_batch_topk_fires_as_often_at_inference_as_in_training():
    world = plant(n_rows=2000, width=32, per_kind=3, density=0.2)
    config = dataclasses.replace(SMALL, tokens=60_000, batch_size=100, lr=5e-3, buffer_tokens=2000)
    rule = BatchTopK(3, k_start=10, k_steps=200, threshold_start=200, threshold_decay=0.95)
    crosscoder = _trained(world, config, sparsity=rule, features=24, corpus=_corpus(len(world.rows), n_blocks=1000))
    with torch.no_grad():
        assert (crosscoder.encode(world.rows, mode="training") > 0).sum(1).float().mean() == 3
        assert (crosscoder.encode(world.rows) > 0).sum(1).float().mean() == pytest.approx(3, abs=0.3)


def test_the_paper_trains_without_the_first_position_and_analyses_it():
    policy = Positions(bos=False, encode_first=True, train_first=False)
    world = plant(n_rows=200)
    names = tuple(model.name for model in world.models())
    crosscoder = CrosscoderConfig(names, 0, 24, 16, positions=policy, sparsity=L1(0.1))
    corpus = dataclasses.replace(_corpus(len(world.rows)), bos=False)
    trainer = Trainer({"": TrainState(Crosscoder(crosscoder), SMALL)}, SMALL, world.models(), corpus)
    assert trainer.collector.tokens_per_block == corpus.context - 1
    assert crosscoder.positions.first_encoded == 0


class _Killed(Exception):
    pass


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
@pytest.mark.parametrize("steps_before", [2, 13, 27])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, steps_before, rule):
    """40 steps of 50 tokens read 640 tokens per epoch, so interruptions fall in the first, second and last epochs."""
    world = plant(n_rows=200)
    peace = _trained(world, sparsity=rule)
    state = ResumeFolder(tmp_path, {"any": 1})
    trainer = _trainer(world, sparsity=rule, resume=state)

    def kill(_record):
        if trainer.step >= steps_before:
            raise _Killed

    trainer.config = dataclasses.replace(SMALL, log_steps=1)
    with pytest.raises(_Killed):
        trainer.run([kill])
    resumed = _trainer(world, sparsity=rule, resume=state)
    assert resumed.step == steps_before - 1  # the kill came before the save of its own step
    resumed.run()
    assert _equal(_crosscoder(resumed), peace)


SWEEP = {
    "wide": CrosscoderSpec(24, L1(0.1)),
    "sparse": CrosscoderSpec(16, L1(0.5)),
    "again": CrosscoderSpec(16, L1(0.5), seed=7),
    "topk": CrosscoderSpec(16, BatchTopK(3, k_start=8, threshold_start=4)),
}


def test_several_on_the_same_activations_end_with_the_bits_of_runs_of_their_own(tmp_path, tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    ids = np.random.default_rng(0).integers(2, suite.vocab_size, (80, 17), dtype=np.uint16)
    config = dataclasses.replace(SMALL, tokens=1000, model_dtype="bfloat16", matmul_dtype="bfloat16")
    common = {"layer": 1, "positions": Positions(bos=False), "config": config}
    corpus = Corpus(ids, "random", bos=False)
    found = train_several(suite, corpus, SWEEP, **common, log_path=tmp_path / "log.jsonl")
    assert list(found) == list(SWEEP)
    for name, spec in SWEEP.items():
        (alone,) = train_several(suite, corpus, {"": spec}, **common).values()
        assert _equal(found[name], alone), name
    plain = train(suite, corpus, features=16, sparsity=L1(0.5), **common)
    assert _equal(found["sparse"], plain)
    assert not torch.equal(found["again"].W_dec, plain.W_dec)
    records = read_log(tmp_path / "log.jsonl")
    assert [record["crosscoder"] for record in records] == 2 * list(SWEEP)
    assert {record["step"] for record in records} == {10, 20}
    assert ["k" in record for record in records[-4:]] == [False, False, False, True]


def test_several_resume_after_an_interruption(tmp_path, tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    ids = np.random.default_rng(0).integers(2, suite.vocab_size, (80, 17), dtype=np.uint16)
    corpus, config = Corpus(ids, "random", bos=False), dataclasses.replace(SMALL, tokens=1000)
    common = {"layer": 1, "positions": Positions(bos=False), "config": config}
    peace = train_several(suite, corpus, SWEEP, **common)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_log", _kill_after_saves)
        with pytest.raises(_Killed):
            train_several(suite, corpus, SWEEP, **common, state_folder=tmp_path)
    with pytest.raises(ValueError, match=r"again/crosscoder\.seed was 7, now 8"):
        train_several(
            suite, corpus, SWEEP | {"again": CrosscoderSpec(16, L1(0.5), seed=8)}, **common, state_folder=tmp_path
        )
    resumed = train_several(suite, corpus, SWEEP, **common, state_folder=tmp_path)
    assert all(_equal(resumed[name], peace[name]) for name in SWEEP)


def _kill_after_saves(trainer, *_):
    assert trainer.step == 10
    raise _Killed


@pytest.mark.parametrize("names", [(), ("a", "a/b")])
def test_crosscoders_need_plain_names(tiny_suite, names):
    specs = {name: CrosscoderSpec(16) for name in names}
    with pytest.raises(ValueError, match="name at least one crosscoder, without /"):
        train_several(Suite.from_folder(tiny_suite), _corpus(9), specs, layer=0)


def test_one_checkpoint_leaves_nothing_to_compare(tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    with pytest.raises(ValueError, match=f"at least two checkpoints; the suite has only '{suite.names[0]}'"):
        train(suite.select(suite.names[:1]), _corpus(9), layer=0, features=16)


def test_adam_buffer_random_state_and_position_survive(tmp_path):
    world = plant(n_rows=200)
    state = ResumeFolder(tmp_path, {})
    config = dataclasses.replace(SMALL, tokens=1000)
    trainer = _trainer(world, config, resume=state)
    trainer.run()
    again = _trainer(world, config, resume=state)
    before, after = trainer._tensors(), again._tensors()
    assert before.keys() == after.keys()
    assert any(name.startswith("adam.W_enc.exp_avg") for name in before)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert torch.equal(trainer.next_batch(), again.next_batch())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    world = plant(n_rows=200)
    config = dataclasses.replace(SMALL, save_seconds=1e9, log_steps=5)
    trainer = _trainer(world, config, resume=ResumeFolder(tmp_path, {}))
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run([lambda _: os.kill(os.getpid(), number)])
    assert signal.getsignal(number) is handler
    resumed = _trainer(world, config, resume=ResumeFolder(tmp_path, {}))
    assert resumed.step == trainer.step == 5
    resumed.run()
    assert _equal(_crosscoder(resumed), _trained(world))


def test_a_signal_in_the_last_step_is_obeyed_too(tmp_path):
    world = plant(n_rows=200)
    config = dataclasses.replace(SMALL, save_seconds=1e9, log_steps=SMALL.steps)  # the only record is the last step's
    trainer = _trainer(world, config, resume=ResumeFolder(tmp_path, {}))
    with pytest.raises(KeyboardInterrupt):
        trainer.run([lambda _: os.kill(os.getpid(), signal.SIGINT)])
    resumed = _trainer(world, config, resume=ResumeFolder(tmp_path, {}))
    assert resumed.step == SMALL.steps
    resumed.run()
    assert _equal(_crosscoder(resumed), _trained(world))


def test_a_state_of_other_settings_is_refused_and_the_difference_named(tmp_path):
    ResumeFolder(tmp_path, {"training.lr": 0.1, "text": "a"}).save(3, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"training\.lr was 0\.1, now 0\.2"):
        ResumeFolder(tmp_path, {"training.lr": 0.2, "text": "a"}).load()


def test_a_state_of_more_crosscoders_serves_fewer_but_not_others(tmp_path, tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    ids = np.random.default_rng(0).integers(2, suite.vocab_size, (80, 17), dtype=np.uint16)
    corpus, config = Corpus(ids, "random", bos=False), dataclasses.replace(SMALL, tokens=1000)
    common = {"layer": 1, "positions": Positions(bos=False), "config": config, "state_folder": tmp_path}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_log", _kill_after_saves)
        with pytest.raises(_Killed):
            train_several(suite, corpus, SWEEP, **common)
    with pytest.raises(ValueError, match="was begun without new, newer: finish it first"):
        train_several(suite, corpus, {**SWEEP, "new": CrosscoderSpec(8), "newer": CrosscoderSpec(8)}, **common)
    fewer = {name: SWEEP[name] for name in ("again", "topk")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_initialise", None)  # it resumes
        found = train_several(suite, corpus, fewer, **common)
    peace = train_several(suite, corpus, fewer, **{**common, "state_folder": None})
    assert all(_equal(found[name], peace[name]) for name in fewer)


def test_a_damaged_state_is_refused_and_an_unfinished_one_ignored(tmp_path):
    state = ResumeFolder(tmp_path, {})
    state.save(3, {"x": torch.zeros(1)})
    (tmp_path / "step-00000009").mkdir()
    loaded = state.load()
    assert loaded is not None
    assert loaded[0] == 3
    path = tmp_path / "step-00000003" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="altered or damaged"):
        state.load()


def test_a_state_of_another_context_is_refused(tmp_path, tiny_suite):
    """Without BOS the same stream cut otherwise is the same bytes."""
    suite = Suite.from_folder(tiny_suite)
    config = dataclasses.replace(SMALL, tokens=500)
    ids = np.random.default_rng(0).integers(2, suite.vocab_size, 4096, dtype=np.uint16)
    kwargs = {"layer": 1, "features": 8, "positions": Positions(bos=False), "config": config, "state_folder": tmp_path}
    train(suite, Corpus(ids.reshape(-1, 32), "wide", bos=False), **kwargs)
    with pytest.raises(ValueError, match="context was 32, now 16"):
        train(suite, Corpus(ids.reshape(-1, 16), "narrow", bos=False), **kwargs)


def test_the_log_has_every_interval_once_also_after_a_kill(tmp_path):
    path = tmp_path / "log.jsonl"
    with open_log(path, (), from_step=0) as (write,):
        for step in (10, 20, 30):
            write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 4')  # killed while writing
    with open_log(path, (), from_step=20) as (write,):
        write({"step": 30, "again": True})
    assert read_log(path) == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]


def test_the_log_keeps_the_lines_of_crosscoders_that_were_trained_before(tmp_path):
    path = tmp_path / "log.jsonl"
    with open_log(path, (), from_step=0, names=("a", "b")) as (write,):
        write({"crosscoder": "a", "step": 10})
        write({"crosscoder": "b", "step": 10})
    with open_log(path, (), from_step=0, names=("b", "c")) as (write,):
        write({"crosscoder": "c", "step": 10})
    assert [record["crosscoder"] for record in read_log(path)] == ["a", "c"]


def test_records_hold_what_the_log_promises():
    world = plant(n_rows=200)
    records = []
    _trainer(world).run([records.append])
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    last = json.loads(json.dumps(records[-1]))
    assert last["tokens"] == 2000
    assert set(last["explained_variance_by_checkpoint"]) == set(world.names)
    assert 0 <= last["collection_share"] <= 1
    assert last["penalty"] > 0
    assert last["penalty_coefficient"] == 0.1
    assert last["loss"] == pytest.approx(last["squared_error"] + last["penalty"], rel=1e-4)


def test_records_tell_speed_and_memory():
    world = plant(n_rows=200)
    records = []
    _trainer(world).run([records.append])
    for record in records:
        assert record["tokens_per_second"] > 0
        assert record["peak_share"] > 0
        assert record["memory"] > 2**20
        assert "note" not in record


def test_the_first_interval_begins_after_the_calibration(monkeypatch):
    done = []

    def calibrated(*arguments, **options):
        found = calibrate(*arguments, **options)
        done.append(time.perf_counter())
        return found

    monkeypatch.setattr("crosstime.training.train.calibrate", calibrated)
    assert _trainer(plant(n_rows=200)).interval.begin >= done[0]


def test_the_share_of_the_peak_is_that_of_the_time_without_collection(monkeypatch):
    trainer = _trainer(plant(n_rows=200))
    (state,) = trainer.states.values()
    flop = 10 * SMALL.batch_size * state.crosscoder.W_enc.numel()
    monkeypatch.setattr("crosstime.training.train.peak_matmul_flops", lambda *_: 8.0 * flop)
    trainer._train_step(trainer.next_batch())
    trainer._train_step(trainer.next_batch())
    now = trainer.interval.begin
    monkeypatch.setattr("time.perf_counter", lambda: now + 5)
    trainer.interval.collection_seconds = 4.0
    (record,) = trainer.records()
    assert record["collection_share"] == 0.8
    assert record["peak_share"] == pytest.approx(2 * flop / 1.0 / (8 * flop))
    assert record["tokens_per_second"] == 2 * SMALL.batch_size / 5


def test_memory_that_runs_out_during_collection_changes_the_log_and_nothing_else(monkeypatch, tmp_path):
    world, path = plant(n_rows=200), tmp_path / "log.jsonl"
    peace = _trained(world)
    models = world.models()
    for model in models:
        whole = model.lower

        def lower(tokens, mask=None, whole=whole):
            if len(tokens) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return whole(tokens, mask)

        monkeypatch.setattr(model, "lower", lower)
    with pytest.warns(MemoryWarning, match="activation collection: out of memory with 4 blocks of 17 tokens per batch"):
        trainer = _trainer(world, models=models)
    with open_log(path, (), from_step=0) as log:
        trainer.run(log)
    for ours, theirs in zip(_crosscoder(trainer).state_dict().values(), peace.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    records = read_log(path)
    assert records[0]["note"].startswith(
        "activation collection: out of memory with 4 blocks of 17 tokens per batch; continuing with 2"
    )
    assert not any("note" in record for record in records[1:])


def test_passes_may_be_smaller_than_a_refill():
    world = plant(n_rows=200)
    names = tuple(model.name for model in world.models())
    config = CrosscoderConfig(names, 0, 24, 16, sparsity=L1(0.1))
    corpus = _corpus(len(world.rows))
    trainer = Trainer({"": TrainState(Crosscoder(config), SMALL)}, SMALL, world.models(), corpus, max_batch_blocks=1)
    trainer.run()
    torch.testing.assert_close(_crosscoder(trainer).W_dec, _trained(world).W_dec, rtol=1e-3, atol=1e-5)


def test_where_there_is_no_terminal_lines_tell_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr("crosstime.training.log.MESSAGE_SECONDS", 0.0)
    with caplog.at_level("INFO", logger="crosstime"):
        _trainer(plant(n_rows=200)).run()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert re.fullmatch(
        r"25 % of 2K tokens, \S+ (s|min|h) left; \S+ tok/s, \d+ % of peak, collection \d+ %, \S+ [MG]iB, "
        r"loss \S+, L0 \S+, EV \S+",
        lines[0],
    )


def test_a_run_that_diverges_says_so():
    world = plant(n_rows=200)
    with pytest.raises(ValueError, match=r"training diverged: .* lower lr"):
        _trained(world, dataclasses.replace(SMALL, lr=1e30, clip=1e30))


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_that_is_not_installed_is_named_with_its_extra(monkeypatch, name):
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ValueError, match=rf"pip install 'crosstime\[{name}\]'"),
        open_log(None, (name,), from_step=0),
    ):
        pass


class _Service:
    """A logger's run or writer, which notes what it is told and how it was left."""

    def __init__(self):
        self.logged, self.left = [], []

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def add_scalar(self, name, value, step):
        self.logged.append((step, {name: value}))

    def flush(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.left.append(kind)


@pytest.fixture
def services(monkeypatch):
    wandb, tensorboard = _Service(), _Service()
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: wandb))
    module = types.SimpleNamespace(SummaryWriter=lambda **_: tensorboard)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return wandb, tensorboard


def test_records_go_to_the_services_as_flat_numbers(services, tmp_path):
    wandb, tensorboard = services
    with open_log(tmp_path / "log.jsonl", ("wandb", "tensorboard"), from_step=0) as sinks:
        for sink in sinks:
            sink({"step": 3, "loss": 1.5, "explained_variance_by_checkpoint": {"a": 0.9}})
        assert wandb.left == tensorboard.left == []
    flat = {"step": 3, "loss": 1.5, "explained_variance_by_checkpoint/a": 0.9}
    assert wandb.logged == [(3, flat)]
    assert tensorboard.logged == [(3, {name: value}) for name, value in flat.items()]
    assert wandb.left == tensorboard.left == [None]


def test_an_interrupted_training_closes_the_services(services, tiny_suite):
    wandb, _ = services
    wandb.log = _interrupt
    suite = Suite.from_folder(tiny_suite)
    corpus = _corpus(suite.vocab_size)
    config = dataclasses.replace(SMALL, tokens=500, loggers=("wandb",))
    with pytest.raises(KeyboardInterrupt):
        train(suite, corpus, layer=1, features=8, config=config)
    assert wandb.left == [KeyboardInterrupt]


def _interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_a_log_that_cannot_be_rewritten_stays(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    with open_log(path, (), from_step=0) as (write,):
        write({"step": 10})

    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"), open_log(path, (), from_step=10):
        pass
    assert read_log(path) == [{"step": 10}]


def test_thirty_two_checkpoints_share_one_crosscoder():
    world = plant(n_rows=400, n_checkpoints=32, width=48, per_kind=1)
    config = dataclasses.replace(SMALL, tokens=30_000, batch_size=100, lr=5e-3, buffer_tokens=1000)
    crosscoder = _trained(world, config, sparsity=L1(0.02), features=12, corpus=_corpus(len(world.rows), n_blocks=400))
    effects = attribute(crosscoder, world.models(), world.prompts(), AttributionConfig(bootstrap=0))
    assert effects.ie.shape == (32, 12)
    has_effect = ~np.isnan(effects.rel_ie).any(0)
    np.testing.assert_allclose(effects.rel_ie[:, has_effect].sum(0), 1, rtol=1e-5)
    with torch.no_grad():
        error = world.rows - crosscoder(world.rows)
    assert 1 - error.square().sum() / (world.rows - world.rows.mean(0)).square().sum() > 0.9
