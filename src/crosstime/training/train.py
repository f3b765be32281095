"""The training loop: harvest, shuffle, step; log, save, and go on after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.data.corpus import Corpus
from crosstime.data.positions import Positions
from crosstime.lm.split import SplitLM
from crosstime.lm.suite import Suite
from crosstime.training.config import TrainConfig
from crosstime.training.harvest import Harvest, calibrate
from crosstime.training.learner import Learner
from crosstime.training.log import Sink, open_log
from crosstime.training.ring import Ring
from crosstime.training.state import StateFolder
from crosstime.training.step import StepStats


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
        log_path: file of the log, one JSON object a line (see `Trainer.record`).

    Raises:
        ValueError: fewer than two checkpoints, a layer out of range, an activation that is not finite, or a saved
            state of a run with other settings.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the state was saved.
    """
    config, positions = config or TrainConfig(), positions or Positions()
    positions.check(corpus.bos, "the text")
    crosscoder_config = CrosscoderConfig(
        checkpoints=tuple(suite.names),
        layer=layer,
        width=suite.width,
        features=features,
        tokens=tuple(suite.tokens),
        sources=tuple(c.origin for c in suite.checkpoints),
        weights=tuple(c.sha256 for c in suite.checkpoints),
        positions=positions,
        sparsity=sparsity or L1(),
    )
    dtype = getattr(torch, config.harvest)
    models = [suite.load(name, layer=layer, dtype=dtype, device=device).without_upper() for name in suite.names]
    state = None
    if state_folder is not None:
        state = StateFolder(state_folder, _settings(crosscoder_config, config, corpus))
    trainer = Trainer(crosscoder_config, config, models, corpus, state)
    with open_log(log_path, config.loggers, from_step=trainer.step) as log:
        trainer.run(log)
    return trainer.crosscoder


class Trainer:
    """A training run between two steps: the crosscoder, its optimiser, the ring, and where the harvest stands."""

    def __init__(
        self,
        crosscoder_config: CrosscoderConfig,
        config: TrainConfig,
        models: Sequence[SplitLM],
        corpus: Corpus,
        state: StateFolder | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self.device = models[0].device
        self.learner = Learner(Crosscoder(crosscoder_config).to(self.device), config)
        self.harvest = Harvest(models, corpus, crosscoder_config.positions, seed=config.seed)
        # One forward pass fills as many slots as it makes rows, so the ring must have room for that beside a batch.
        self.refill = config.harvest_blocks * self.harvest.rows_per_block
        rows = max(config.ring_rows, self.refill + config.batch_size)
        width = len(models) * crosscoder_config.width
        self.ring = Ring(rows, width, dtype=models[0].dtype, device=self.device, seed=config.seed)
        self.interval = _Interval()
        saved = state.load() if state else None
        if saved is None:
            self._start()
        else:
            self._restore(*saved)

    @property
    def crosscoder(self) -> Crosscoder:
        """The crosscoder as it is now."""
        return self.learner.crosscoder

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.learner.step

    def run(self, log: Sequence[Sink] = ()) -> None:
        """Take all steps that are left."""
        with _stop_signals(wanted=self.state is not None) as stop, self._progress() as bar:
            last_save = time.monotonic()
            while self.step < self.config.steps:
                self.interval.add(self.learner.learn(self.next_batch()))
                bar.update(self.config.batch_size)
                if self.step % self.config.log_steps == 0 or self.step == self.config.steps:
                    self._report(log, bar)
                due = time.monotonic() - last_save >= self.config.save_seconds
                if self.state is not None and (due or stop):
                    self.state.save(self.step, self._tensors())
                    last_save = time.monotonic()
                if stop:
                    raise KeyboardInterrupt

    def next_batch(self) -> Float[Tensor, "B W"]:
        """The next shuffled rows, scaled, all checkpoints side by side."""
        if self.ring.free >= self.refill:
            self._refill()
        rows = self.ring.serve(self.config.batch_size).float().unflatten(1, self.crosscoder.b_dec.shape)
        return (rows * self.crosscoder.scale[:, None]).flatten(1)

    def _refill(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or the wait for the steps before would count as harvest
        begin = time.perf_counter()
        while self.ring.free >= self.refill:
            self.ring.fill(self.harvest.next(self.config.harvest_blocks).flatten(1))
        self.ring.shuffle()
        self.interval.harvest_seconds += time.perf_counter() - begin

    def _start(self) -> None:
        mean, scale = calibrate(self.harvest, blocks=self.config.calibration_blocks, batch=self.config.harvest_blocks)
        self.crosscoder.initialise(
            mean,
            scale,
            decoder_norm=self.config.decoder_norm or self.crosscoder.config.sparsity.decoder_norm,
            tied=self.config.tied_init,
            generator=torch.Generator().manual_seed(self.config.seed),
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **self.learner.tensors(),
            **self.ring.state(),
            "harvest.position": torch.tensor(self.harvest.position),
        }

    def _restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        self.learner.restore(step, tensors)
        self.ring.restore(tensors)
        self.harvest.position = int(tensors["harvest.position"])

    def _progress(self) -> Any:
        total = self.config.steps * self.config.batch_size
        done = self.step * self.config.batch_size
        return tqdm(total=total, initial=done, desc="train", unit="tok", unit_scale=True, disable=None, leave=False)

    def _report(self, log: Sequence[Sink], bar: Any) -> None:
        record = self.record()
        if not math.isfinite(record["loss"]):
            raise ValueError(
                f"training diverged: the loss is {record['loss']} at step {self.step}; lower training.lr and start anew"
            )
        for sink in log:
            sink(record)
        bar.set_postfix_str(
            f"loss {record['loss']:.1f}, L0 {record['l0']:.1f}, EV {record['explained_variance']:.3f}", refresh=False
        )

    def record(self) -> dict[str, Any]:
        """What happened since the last record, means over its steps.

        Keys: step, rows, loss, squared_error, penalty and auxiliary (what sparsity and dead features add to the loss),
        l0, skipped_steps (whose gradient was not finite; they are in no mean), explained_variance (all checkpoints
        together, ratio of sums), explained_variance_by_checkpoint, lr, what the sparsity rule schedules (its
        penalty_weight, k or threshold), rows_per_second, harvest_share (of the time).
        """
        interval, self.interval = self.interval, _Interval()
        names = self.crosscoder.config.checkpoints
        return {
            "step": self.step,
            "rows": self.step * self.config.batch_size,
            **interval.means(names),
            **self.learner.logged(),
            **interval.speed(self.config.batch_size),
        }


class _Interval:
    """Sums over the steps since the last log line. They stay on the device until the line is written."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: StepStats | None = None
        self.harvest_seconds = 0.0
        self.begin = time.perf_counter()

    def add(self, stats: StepStats) -> None:
        self.steps += 1
        if self.sums is None:
            self.sums = stats
        else:
            self.sums = StepStats(
                **{f.name: getattr(self.sums, f.name) + getattr(stats, f.name) for f in dataclasses.fields(StepStats)}
            )

    def means(self, checkpoints: Sequence[str]) -> dict[str, Any]:
        assert self.sums is not None
        error, variance = self.sums.squared_error.cpu(), self.sums.variance.cpu()
        explained = 1 - error / variance
        taken = int(self.sums.taken)
        share = 1 / taken if taken else math.nan
        return {
            "loss": float(error.sum() + self.sums.penalty.cpu() + self.sums.auxiliary.cpu()) * share,
            "squared_error": float(error.sum()) * share,
            "penalty": float(self.sums.penalty) * share,
            "auxiliary": float(self.sums.auxiliary) * share,
            "l0": float(self.sums.l0) * share,
            "skipped_steps": self.steps - taken,
            "explained_variance": float(1 - error.sum() / variance.sum()),
            "explained_variance_by_checkpoint": dict(zip(checkpoints, explained.tolist(), strict=True)),
        }

    def speed(self, batch_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.begin
        return {
            "rows_per_second": self.steps * batch_size / seconds,
            "harvest_share": self.harvest_seconds / seconds,
        }


def _settings(crosscoder: CrosscoderConfig, config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """All that decides the course of training, flat, so that a difference can be named."""
    matters = [field.name for field in dataclasses.fields(config) if field.metadata.get("matters", True)]
    return {
        **{f"training.{name}": getattr(config, name) for name in matters},
        "crosscoder.features": crosscoder.features,
        "crosscoder.layer": crosscoder.layer,
        "checkpoints": list(crosscoder.checkpoints),
        "weights": list(crosscoder.weights),
        "positions": dataclasses.asdict(crosscoder.positions),
        **{f"sparsity.{name}": value for name, value in crosscoder.sparsity.to_dict().items()},
        "context": corpus.context,
        "text": hashlib.sha256(np.ascontiguousarray(corpus.blocks).data).hexdigest(),
    }


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
