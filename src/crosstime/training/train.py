"""Train crosscoders: collect activations, shuffle, step; log, save, and resume after an interruption."""

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
from crosstime.crosscoder.sparsity.rule import Scratch
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.models.split import SplitLM
from crosstime.models.suite import Suite
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from crosstime.training.buffer import ActivationBuffer
from crosstime.training.collect import ActivationCollector, calibrate
from crosstime.training.config import CrosscoderSpec, TrainConfig
from crosstime.training.log import Interval, ProgressBar, Record, Sink, open_log
from crosstime.training.resume import ResumeFolder
from crosstime.training.state import TrainState, strip_prefix


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
    max_batch_blocks: int | None = None,
) -> Crosscoder:
    """Train one crosscoder over all checkpoints of a suite (use `suite.select([...])` for some of them).

    Args:
        suite: At least two checkpoints.
        corpus: Token blocks; read again in another order if `config.tokens` asks for more.
        layer: The block whose output is encoded, counted from 0.
        features: F, the number of features.
        sparsity: The sparsity rule: L1 (the default), TopK, BatchTopK, JumpReLU, or your own.
        positions: The policy for position 0.
        config: Settings of training.
        device: Device of the checkpoints and the crosscoder.
        state_folder: Where the state is saved. A killed run resumes from here; on a CPU the final weights are
            bit-identical to those of an uninterrupted run. Ctrl-C and SIGTERM save the state first.
        log_path: File of the log, one JSON object per line (see `Trainer.records`).
        max_batch_blocks: Limit on the blocks per forward pass of a checkpoint, if `config.model_batch_blocks` don't fit
            into memory. It doesn't affect the results, except by rounding.

    Raises:
        InputError: Fewer than two checkpoints, a layer out of range, an activation that isn't finite, or a saved state
            of a run with other settings.
        OutOfMemory: Not even one block fits into memory.
        TrainingDiverged: The loss is no longer finite.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the state is saved.

    Warns:
        MemoryWarning: Memory ran out while activations were collected; forward passes became smaller.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step256", "step3786"])
        >>> text = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=32, limit_tokens=2000)
        >>> config = ct.TrainConfig(tokens=512, batch_size=128, lr=1e-3, buffer_tokens=512, calibration_blocks=4)
        >>> ct.train(suite, text, layer=0, features=64, config=config).W_dec.shape
        torch.Size([64, 2, 128])
    """
    (crosscoder,) = train_several(
        suite,
        corpus,
        {"": CrosscoderSpec(features, sparsity or L1())},
        layer=layer,
        positions=positions,
        config=config,
        device=device,
        state_folder=state_folder,
        log_path=log_path,
        max_batch_blocks=max_batch_blocks,
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
    max_batch_blocks: int | None = None,
) -> dict[str, Crosscoder]:
    """Train several crosscoders on the same activations: other sparsity rules, sizes or seeds.

    The checkpoints run once for all of them. Each crosscoder ends with the weights of a separate training with the same
    `config`, on a CPU bit-identically.

    Args:
        suite: See `train`.
        corpus: See `train`.
        specs: The crosscoders, by a name of your choice.
        layer: See `train`.
        positions: See `train`.
        config: See `train`.
        device: See `train`.
        state_folder: See `train`. A run can resume with fewer crosscoders than it began with.
        log_path: See `train`. Each record has the name under "crosscoder", unless the name is empty; records of other
            names are kept.
        max_batch_blocks: See `train`.

    Raises:
        InputError: As `train`; or there is no spec, or a name contains "/".

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step256", "step3786"])
        >>> text = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=32, limit_tokens=2000)
        >>> config = ct.TrainConfig(tokens=512, batch_size=128, lr=1e-3, buffer_tokens=512, calibration_blocks=4)
        >>> specs = {"l1": ct.CrosscoderSpec(64, ct.L1(0.5)), "topk": ct.CrosscoderSpec(32, ct.TopK(k=8))}
        >>> sorted(ct.train_several(suite, text, specs, layer=0, config=config))
        ['l1', 'topk']
    """
    if not specs or any("/" in name for name in specs):
        raise InputError(f"name at least one crosscoder, without / in its name, not {list(specs)}")
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
        name: TrainState(Crosscoder(each).to(models[0].device), config, specs[name].seed, scratch)
        for name, each in configs.items()
    }
    resume = ResumeFolder(state_folder, _settings(states, config, corpus)) if state_folder else None
    trainer = Trainer(states, config, models, corpus, resume, max_batch_blocks=max_batch_blocks)
    with open_log(log_path, config.loggers, from_step=trainer.step, names=specs) as log:
        trainer.run(log)
    return {name: state.crosscoder for name, state in states.items()}


class Trainer:
    """The training loop of one or several crosscoders, with its state between two steps.

    Args:
        states: The crosscoders by name; "" for a single one.
        config: Settings of training, those of the states.
        models: One per checkpoint, in the crosscoders' order.
        corpus: Token blocks.
        resume: Where the state is saved, and loaded from if it holds one.
        max_batch_blocks: As for `train`.
    """

    def __init__(
        self,
        states: Mapping[str, TrainState],
        config: TrainConfig,
        models: Sequence[SplitLM],
        corpus: Corpus,
        resume: ResumeFolder | None = None,
        *,
        max_batch_blocks: int | None = None,
    ) -> None:
        self.states, self.config, self.resume = states, config, resume
        self.device = models[0].device
        self.step = 0
        """Steps taken."""
        self.notes: list[str] = []
        """Messages for the next records."""
        any_crosscoder = next(iter(states.values())).crosscoder
        self.collector = ActivationCollector(
            models,
            corpus,
            any_crosscoder.config.positions,
            seed=config.seed,
            max_batch_blocks=max_batch_blocks,
            notify=partial(_note, self.notes),  # not a method, which would keep this object in memory
        )
        self.refill = config.model_batch_blocks * self.collector.tokens_per_block
        size = config.buffer_size(self.collector.tokens_per_block)
        width = len(models) * any_crosscoder.config.width
        self.buffer = ActivationBuffer(size, width, dtype=models[0].dtype, device=self.device, seed=config.seed)
        saved = resume.load() if resume else None
        if saved is None:
            self._initialise()
        else:
            self._restore(*saved)
        self.interval = Interval()  # from here on: calibration isn't part of the first one
        self.scale = any_crosscoder.scale
        """c_m, the factor of each checkpoint's activations, shared by all crosscoders."""

    def run(self, log: Sequence[Sink] = ()) -> None:
        """Take all remaining steps."""
        batch = self.config.batch_size
        progress = ProgressBar(self.step * batch, self.config.steps * batch)
        with _stop_signals(wanted=self.resume is not None) as signals, closing(progress):
            last_save = time.monotonic()
            while self.step < self.config.steps:
                self._train_step(self.next_batch())
                progress.advance(batch)
                if self.step % self.config.log_steps == 0 or self.step == self.config.steps:
                    self._log(log, progress)
                due = time.monotonic() - last_save >= self.config.save_seconds
                if self.resume is not None and (due or signals):
                    self.resume.save(self.step, self._tensors())
                    last_save = time.monotonic()
                if signals:
                    raise KeyboardInterrupt

    def next_batch(self) -> Float[Tensor, "B W"]:
        """Return the next shuffled activations, scaled, of all checkpoints side by side."""
        if self.buffer.free >= self.refill:
            self._refill()
        raw = self.buffer.serve(self.config.batch_size).float().unflatten(1, (len(self.scale), -1))
        return (raw * self.scale[:, None]).flatten(1)

    def _train_step(self, batch: Float[Tensor, "B W"]) -> None:
        for name, state in self.states.items():
            self.interval.add(name, state.train_step(batch))
        self.interval.steps += 1
        self.step += 1

    def _refill(self) -> None:
        synchronise(self.device)  # or waiting for earlier steps would count as collection
        begin = time.perf_counter()
        while self.buffer.free >= self.refill:
            for activations in self.collector.collect(self.config.model_batch_blocks):
                self.buffer.fill(activations.flatten(1))
        self.buffer.shuffle()
        self.interval.collection_seconds += time.perf_counter() - begin

    def _initialise(self) -> None:
        config = self.config
        mean, scale = calibrate(self.collector, blocks=config.calibration_blocks, batch=config.model_batch_blocks)
        for state in self.states.values():
            state.initialise(mean, scale)

    def _tensors(self) -> dict[str, Tensor]:
        states = self.states.items()
        return {
            **{_qualified(name, key): value for name, state in states for key, value in state.tensors().items()},
            **self.buffer.tensors(),
            "collector.position": torch.tensor(self.collector.position),
        }

    def _restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        for name, state in self.states.items():
            state.restore(step, strip_prefix(_qualified(name, ""), tensors))
        self.buffer.restore(tensors)
        self.collector.position = int(tensors["collector.position"])
        self.step = step

    def _log(self, log: Sequence[Sink], progress: ProgressBar) -> None:
        records = self.records()
        for record in records:
            if not math.isfinite(record["loss"]):
                name = f" of {record['crosscoder']}" if "crosscoder" in record else ""
                raise TrainingDiverged(
                    f"training diverged: the loss{name} is {record['loss']} at step {self.step}; lower lr and start "
                    "again"
                )
            for sink in log:
                sink(record)
        progress.show(records)

    @cached_property
    def peak_flops(self) -> float:
        """FLOP/s that this device reaches in the matrix products of the first crosscoder, measured once."""
        state = next(iter(self.states.values()))
        inputs, features = state.crosscoder.W_enc.flatten(0, 1).shape
        return peak_matmul_flops(self.config.batch_size, inputs, features, state.matmul_dtype, self.device)

    def records(self) -> list[Record]:
        """Return one record per crosscoder, with means over the steps since the last records.

        Keys of one crosscoder: crosscoder (its name, if it has one), step, tokens, loss, squared_error, penalty and
        auxiliary (the other terms of the loss), l0, skipped_steps (those whose gradient wasn't finite; no mean includes
        them), explained_variance (ratio of sums over all checkpoints), explained_variance_by_checkpoint, lr, and the
        values of the sparsity rule's schedules (penalty_coefficient, k or threshold). Keys shared by all:
        tokens_per_second, where a token counts once though every checkpoint reads it; collection_share, of the time;
        peak_share, the FLOP/s of the matrix products outside collection over those that this device reaches in such
        products alone; memory in bytes (peak of CUDA's tensors, otherwise the present use, on a CPU the resident set of
        the process); and note, if there is a message.
        """
        interval = self.interval
        means = {
            name: interval.means(name, state.crosscoder.config.checkpoints) for name, state in self.states.items()
        }  # this waits for the device, before the clock is read
        flop = sum(state.matmul_flop for state in self.states.values())
        tokens_per_second, collection_share, flops = interval.speed(self.config.batch_size, flop)
        common = {
            "tokens_per_second": tokens_per_second,
            "collection_share": collection_share,
            "peak_share": flops / self.peak_flops,
            "memory": peak_bytes(self.device),
            **({"note": "; ".join(self.notes)} if self.notes else {}),
        }
        records = [
            {
                **({"crosscoder": name} if name else {}),
                "step": self.step,
                "tokens": self.step * self.config.batch_size,
                **means[name],
                **state.scheduled_values(),
                **common,
            }
            for name, state in self.states.items()
        ]
        self.notes.clear()
        self.interval = Interval()
        return records


def _note(notes: list[str], message: str) -> None:
    notes.append(message)
    warn(message)


def _qualified(name: str, key: str) -> str:
    """Prefix a key by the name of its crosscoder, if it has one."""
    return f"{name}/{key}" if name else key


def _settings(states: Mapping[str, TrainState], config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Return everything that the result of training depends on, flat, so that a difference can be named."""
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
        own = state.crosscoder.config
        settings[_qualified(name, "crosscoder.features")] = own.features
        settings |= {_qualified(name, f"sparsity.{key}"): value for key, value in own.sparsity.to_dict().items()}
        if state.seed != config.seed:
            settings[_qualified(name, "crosscoder.seed")] = state.seed
    return settings


@contextmanager
def _stop_signals(*, wanted: bool) -> Iterator[list[int]]:
    """Yield a list that is empty until Ctrl-C or SIGTERM arrives. A second one ends the process at once.

    Only the main thread may change signal handlers. In other threads, and if `wanted` is false, they don't change.
    """
    signals: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _frame: Any) -> None:
        signals.append(number)
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield signals
    finally:
        restore()
