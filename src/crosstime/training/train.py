"""The training loop: collect activations, shuffle, step; log, save, and resume after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.base.device import available_device, peak_matmul_flops, synchronise
from crosstime.base.errors import InputError, TrainingDiverged
from crosstime.base.memory import peak_bytes, warn
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.crosscoder.sparsity.scratch import Scratch
from crosstime.models.split import SplitLM
from crosstime.models.suite import Suite
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from crosstime.training.buffer import ActivationBuffer
from crosstime.training.collect import ActivationCollector, calibrate
from crosstime.training.config import CrosscoderSpec, TrainConfig
from crosstime.training.interval import Interval
from crosstime.training.log import Sink, open_log
from crosstime.training.progress import Progress
from crosstime.training.resume import ResumeFolder
from crosstime.training.state import TrainState


def train(
    suite: Suite,
    corpus: Corpus,
    *,
    layer: int,
    features: int,
    sparsity: Sparsity | None = None,
    positions: Positions | None = None,
    config: TrainConfig | None = None,
    device: torch.device | str = "cpu",
    state_folder: Path | None = None,
    log_path: Path | None = None,
    blocks_at_once: int | None = None,
) -> Crosscoder:
    """Train one crosscoder over all checkpoints of a suite (`suite.select([...])` for some).

    Args:
        suite: at least two checkpoints.
        corpus: token blocks; read again from the start, in another order, when the rows ask for more.
        layer: the block whose output is learnt, counted from 0.
        features: F, the size of the dictionary.
        sparsity: which features it keeps: L1 (the default), TopK, BatchTopK, JumpReLU, or a rule of yours.
        positions: the policy for position 0.
        config: see `TrainConfig`.
        device: where checkpoints and crosscoder live.
        state_folder: where the state is saved, and found again: a run that was killed goes on from there, and on CPU
            ends with the weights that it would have had in peace. Ctrl-C and SIGTERM save first.
        log_path: file of the log, one JSON object a line (see `Trainer.records`).
        blocks_at_once: blocks that a forward pass of a checkpoint reads at most, where memory has no room for
            `config.model_batch_blocks`; the ring is refilled by that number in any case, so no result depends on it.

    Raises:
        InputError: fewer than two checkpoints, a layer out of range, an activation that is not finite, a saved state of
            a run with other settings, or too little memory for one block.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the state was saved.

    Warns:
        MemoryWarning: memory ran out while collecting activations, which continues in smaller passes.
    """
    spec = CrosscoderSpec(features, sparsity or L1())
    (crosscoder,) = train_several(
        suite,
        corpus,
        {"": spec},
        layer=layer,
        positions=positions,
        config=config,
        device=device,
        state_folder=state_folder,
        log_path=log_path,
        blocks_at_once=blocks_at_once,
    ).values()
    return crosscoder


def train_several(
    suite: Suite,
    corpus: Corpus,
    specs: Mapping[str, CrosscoderSpec],
    *,
    layer: int,
    positions: Positions | None = None,
    config: TrainConfig | None = None,
    device: torch.device | str = "cpu",
    state_folder: Path | None = None,
    log_path: Path | None = None,
    blocks_at_once: int | None = None,
) -> dict[str, Crosscoder]:
    """Train several crosscoders on the same activations: other sparsities, sizes or seeds.

    The checkpoints run once for all of them. Each ends with the weights of a training of its own with the same
    `config`, on CPU to the last bit.

    Args:
        specs: what each crosscoder is, by a name of your choice.
        suite, corpus, layer, positions, config, device, blocks_at_once: as for `train`.
        state_folder: as for `train`; from a state of more crosscoders those that are asked for go on.
        log_path: as for `train`; each line has the name under "crosscoder", unless there is one without a name, and
            lines of other names stay.

    Raises:
        InputError: as for `train`; or there is no spec, or a name holds a "/".
        KeyboardInterrupt: as for `train`.
    """
    if not specs or any("/" in name for name in specs):
        raise InputError(f"name at least one crosscoder, without a / in its name; got {list(specs)}")
    if len(suite.names) < 2:
        raise InputError(f"a crosscoder compares at least two checkpoints; the suite has only {suite.names[0]!r}")
    config, positions = (config or TrainConfig()).on(available_device(device)), positions or Positions()
    positions.check(corpus.bos, "the text")
    configs = {
        name: CrosscoderConfig(
            checkpoints=tuple(suite.names),
            layer=layer,
            width=suite.width,
            features=spec.features,
            tokens=tuple(suite.tokens),
            sources=tuple(c.origin for c in suite.checkpoints),
            weights=tuple(c.sha256 for c in suite.checkpoints),
            positions=positions,
            sparsity=spec.sparsity,
        )
        for name, spec in specs.items()
    }
    dtype = getattr(torch, config.model_dtype)
    models = [suite.load(name, layer=layer, dtype=dtype, device=device).without_upper() for name in suite.names]
    scratch = Scratch()
    states = {
        name: TrainState(Crosscoder(of).to(models[0].device), config, specs[name].seed, scratch)
        for name, of in configs.items()
    }
    resume = None
    if state_folder is not None:
        resume = ResumeFolder(state_folder, _settings(states, config, corpus))
    trainer = Trainer(states, config, models, corpus, resume, blocks_at_once=blocks_at_once)
    with open_log(log_path, config.loggers, from_step=trainer.step, names=specs) as log:
        trainer.run(log)
    return {name: state.crosscoder for name, state in states.items()}


class Trainer:
    """A training run between two steps: the crosscoders, the activation buffer, and the position in the text.

    Args:
        states: by name; "" is that of one alone.
        config: the one that the states have.
        models: one a checkpoint, in the crosscoders' order.
        corpus: token blocks.
        resume: where the state is saved and found.
        blocks_at_once: as for `train`.
    """

    def __init__(
        self,
        states: Mapping[str, TrainState],
        config: TrainConfig,
        models: Sequence[SplitLM],
        corpus: Corpus,
        resume: ResumeFolder | None = None,
        *,
        blocks_at_once: int | None = None,
    ) -> None:
        self.states, self.config, self.resume = states, config, resume
        self.device = models[0].device
        self.step = 0
        """Steps taken."""
        any_crosscoder = next(iter(states.values())).crosscoder
        self.notes: list[str] = []
        """What the next records are to say in words."""
        self.collector = ActivationCollector(
            models,
            corpus,
            any_crosscoder.config.positions,
            seed=config.seed,
            blocks_at_once=blocks_at_once,
            note=partial(_note, self.notes),  # not a method, which would keep this in memory
        )
        self.refill = config.model_batch_blocks * self.collector.tokens_per_block
        rows = config.buffer_size(self.collector.tokens_per_block)
        width = len(models) * any_crosscoder.config.width
        self.buffer = ActivationBuffer(rows, width, dtype=models[0].dtype, device=self.device, seed=config.seed)
        saved = resume.load() if resume else None
        if saved is None:
            self._start()
        else:
            self._restore(*saved)
        self.interval = Interval()  # from here on: calibration is no part of the first one
        self.scale = any_crosscoder.scale
        """c_m, the factor of each checkpoint's activations, which all states share."""

    def run(self, log: Sequence[Sink] = ()) -> None:
        """Take all steps that are left."""
        batch = self.config.batch_size
        progress = Progress(self.step * batch, self.config.steps * batch)
        with _stop_signals(wanted=self.resume is not None) as stop, closing(progress):
            last_save = time.monotonic()
            while self.step < self.config.steps:
                self._learn(self.next_batch())
                progress.advance(batch)
                if self.step % self.config.log_steps == 0 or self.step == self.config.steps:
                    self._report(log, progress)
                due = time.monotonic() - last_save >= self.config.save_seconds
                if self.resume is not None and (due or stop):
                    self.resume.save(self.step, self._tensors())
                    last_save = time.monotonic()
                if stop:
                    raise KeyboardInterrupt

    def next_batch(self) -> Float[Tensor, "B W"]:
        """The next shuffled rows, scaled, all checkpoints side by side."""
        if self.buffer.free >= self.refill:
            self._refill()
        rows = self.buffer.serve(self.config.batch_size).float().unflatten(1, (len(self.scale), -1))
        return (rows * self.scale[:, None]).flatten(1)

    def _learn(self, batch: Float[Tensor, "B W"]) -> None:
        for name, state in self.states.items():
            self.interval.add(name, state.train_step(batch))
        self.interval.steps += 1
        self.step += 1

    def _refill(self) -> None:
        synchronise(self.device)  # or the wait for the steps before would count as collection
        begin = time.perf_counter()
        while self.buffer.free >= self.refill:
            for rows in self.collector.collect(self.config.model_batch_blocks):
                self.buffer.fill(rows.flatten(1))
        self.buffer.shuffle()
        self.interval.collection_seconds += time.perf_counter() - begin

    def _start(self) -> None:
        mean, scale = calibrate(
            self.collector, blocks=self.config.calibration_blocks, batch=self.config.model_batch_blocks
        )
        for state in self.states.values():
            state.start(mean, scale)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{_of(name, key): value for name, one in self.states.items() for key, value in one.tensors().items()},
            **self.buffer.state(),
            "collector.position": torch.tensor(self.collector.position),
        }

    def _restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        for name, state in self.states.items():
            prefix = _of(name, "")
            state.restore(step, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        self.buffer.restore(tensors)
        self.collector.position = int(tensors["collector.position"])
        self.step = step

    def _report(self, log: Sequence[Sink], progress: Progress) -> None:
        records = self.records()
        for record in records:
            if not math.isfinite(record["loss"]):
                who = f" of {record['crosscoder']}" if "crosscoder" in record else ""
                raise TrainingDiverged(
                    f"training diverged: the loss{who} is {record['loss']} at step {self.step}; lower training.lr and "
                    "start anew"
                )
            for sink in log:
                sink(record)
        progress.tell(records)

    @cached_property
    def peak(self) -> float:
        """FLOP/s of this machine in the products of the first crosscoder, measured once, in a moment."""
        state = next(iter(self.states.values()))
        columns, features = state.crosscoder.W_enc.flatten(0, 1).shape
        return peak_matmul_flops(self.config.batch_size, columns, features, state.products, self.device)

    def records(self) -> list[dict[str, Any]]:
        """What happened since the last records, a record a crosscoder, means over its steps.

        Keys: crosscoder (its name, where it has one), step, tokens, loss, squared_error, penalty and auxiliary (what
        sparsity and dead features add to the loss), l0, skipped_steps (whose gradient was not finite; they are in no
        mean), explained_variance (all checkpoints together, ratio of sums), explained_variance_by_checkpoint, lr, what
        the sparsity rule schedules (its penalty_weight, k or threshold); then, of all crosscoders together,
        tokens_per_second (a token counts once, though every checkpoint reads it), collection_share (of
        the time), peak_share (FLOP/s of the crosscoders' matrix products, in the time that collection leaves, over
        what this machine reaches in such products alone), memory (bytes: on CUDA what tensors held at most; elsewhere
        what is held now, on a CPU the resident set of the process); and note, where there is something to say.
        """
        interval = self.interval
        means = {
            name: interval.sums[name].means(state.crosscoder.config.checkpoints) for name, state in self.states.items()
        }  # which waits for the device, before the clock is read
        speed = interval.speed(self.config.batch_size, sum(one.product_flop for one in self.states.values()))
        common = {
            "tokens_per_second": speed.tokens,
            "collection_share": speed.collection_share,
            "peak_share": speed.flop / self.peak,
            "memory": peak_bytes(self.device),
            **({"note": "; ".join(self.notes)} if self.notes else {}),
        }
        records = [
            {
                **({"crosscoder": name} if name else {}),
                "step": self.step,
                "tokens": self.step * self.config.batch_size,
                **means[name],
                **state.logged(),
                **common,
            }
            for name, state in self.states.items()
        ]
        self.notes.clear()
        self.interval = Interval()
        return records


def _note(notes: list[str], note: str) -> None:
    notes.append(note)
    warn(note)


def _of(name: str, key: str) -> str:
    """What belongs to one crosscoder of several, in a state; one alone needs no name."""
    return f"{name}/{key}" if name else key


def _settings(states: Mapping[str, TrainState], config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """All that decides the course of training, flat, so that a difference can be named."""
    matters = [field.name for field in dataclasses.fields(config) if field.metadata.get("matters", True)]
    common = next(iter(states.values())).crosscoder.config
    settings = {
        **{f"training.{name}": getattr(config, name) for name in matters},
        "crosscoder.layer": common.layer,
        "checkpoints": list(common.checkpoints),
        "weights": list(common.weights),
        "positions": dataclasses.asdict(common.positions),
        "context": corpus.context,
        "text": hashlib.sha256(np.ascontiguousarray(corpus.blocks).data).hexdigest(),
    }
    for name, state in states.items():
        of = state.crosscoder.config
        settings[_of(name, "crosscoder.features")] = of.features
        settings |= {_of(name, f"sparsity.{key}"): value for key, value in of.sparsity.to_dict().items()}
        if state.seed != config.seed:
            settings[_of(name, "crosscoder.seed")] = state.seed
    return settings


@contextmanager
def _stop_signals(*, wanted: bool) -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM arrives. The second one ends the process at once.

    Only the main thread may change what signals do; elsewhere, and where there is nothing to save, they do what
    they did.
    """
    stop: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: Any) -> None:
        stop.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
