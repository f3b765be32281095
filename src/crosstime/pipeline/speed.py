"""How long the pieces of a run take on this machine: measured in seconds, at the run's own shapes, without its weights.

A model of two blocks of the true shape, with random weights, stands for the checkpoints. Every stage's own code runs on
it for a moment; what more blocks would add is measured apart. So whatever is made faster is predicted faster.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from crosstime.attribution.ablation import intervene
from crosstime.attribution.activations import encode, residuals
from crosstime.attribution.baselines import BASELINES
from crosstime.attribution.effects import attribute
from crosstime.base.device import peak_matmul_flops, synchronise
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.evaluation.contexts import ContextsConfig, contexts
from crosstime.evaluation.diagnostics import DiagnosticsConfig, latent_scaling
from crosstime.evaluation.quality import EvaluationConfig, cross_entropy, evaluate, logit_chunks
from crosstime.models.split import SplitLM, finite_residual
from crosstime.pipeline import cost
from crosstime.pipeline.config import RunConfig
from crosstime.pipeline.run import Shared
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus
from crosstime.training.buffer import ActivationBuffer
from crosstime.training.collect import ActivationCollector
from crosstime.training.state import TrainState

SECONDS = 10.0
"""For all measurements together, about."""
PIECES = 15
"""Measurements, among which that time is divided."""
TRIES = 5
"""Of one measurement, where there is time: other processes may be in the way of some."""
FIRING = 0.015
"""Share of the features that fire at a token of a trained crosscoder: 65 of 4096 in the demo."""
SHORTEST = 16
"""Tokens of a text on which is measured, at least."""
FEWEST_ROWS = 256
"""Tokens of a measured step, at least: with fewer the products would be of another kind."""
RESAMPLED = 4e6
"""Values of the bootstrap that are measured, at most; what it costs is proportional to them."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step of one crosscoder."""

    fixed: float
    """Whatever the batch: Adam and clipping, which read and write every weight."""
    rows: float
    """Of its rows: the products, and what happens to each code."""
    flop: float
    """FLOP of its products."""

    @property
    def seconds(self) -> float:
        return self.fixed + self.rows


@dataclass(frozen=True)
class Speeds:
    """Seconds that pieces of a run take."""

    peak: float
    """FLOP/s in matrix products alone, at the precision of training."""
    load: float
    """To make a checkpoint ready, its weights apart."""
    collection: float
    """A token of text, at all checkpoints."""
    mixing: float
    """One token, into the activation buffer and out of it."""
    steps: tuple[StepTime, ...]
    """A step of each crosscoder."""
    read: float
    """A token of held-out text in the survey, at one checkpoint."""
    asked: float
    """A token of its tasks, at one checkpoint."""
    evaluated: float
    """A token, at all checkpoints."""
    diagnosed: float
    searched: float
    """A token of the search for contexts."""
    task: float
    """The effects on a task, whatever the number of its prompts."""
    prompt: float
    """The effects on a prompt, at all checkpoints."""
    ablated: float
    """A prompt with a feature ablated, at one checkpoint."""


def measure(shared: Shared, seconds: float = SECONDS) -> Speeds:
    """Measures all pieces.

    Args:
        shared: the run, of which the checkpoints' configuration, the tokenizer and the tasks are read.
        seconds: about how long.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a random model computes is no one's concern
        return _Bench(shared, seconds / PIECES).speeds()


def seconds_each(work: Callable[[int], object], most: int, device: torch.device, seconds: float) -> float:
    """Seconds for one unit of work, when as many are done at once as time allows: the least of a few tries.

    Args:
        work: does so many units.
        most: of them.
        device: where.
        seconds: about how long to measure.
    """
    begin, n = time.perf_counter(), 1
    best = _clocked(partial(work, n), device)
    if best < seconds:  # or else what is slow the first time hardly counts
        best = _clocked(partial(work, n), device)
    while n < most and 4 * best < seconds:
        n = min(most, max(2 * n, int(n * seconds / (4 * best))))
        best = _clocked(partial(work, n), device)
    for _ in range(TRIES):
        if time.perf_counter() - begin > seconds:
            break
        best = min(best, _clocked(partial(work, n), device))
    return best / n


def _clocked(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


def short_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, *, code: bool) -> PreTrainedModel:
    """The first two blocks of a model, or its only one, between embedding and unembedding, with random weights."""
    layers = config.num_hidden_layers
    short = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers:  # one entry a block
            setattr(short, name, value[:2])
    short.num_hidden_layers = min(2, layers)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(short, dtype=dtype, trust_remote_code=code).eval()


class _Bench:
    """Measures at the shapes of a run.

    A token's cost in a stage is that on the short model, cut after its first block, plus that of the blocks which the
    stage runs besides: forward below and above the layer, or forward and backward.
    """

    def __init__(self, shared: Shared, slot: float) -> None:
        self.shared, self.slot, self.config = shared, slot, shared.config
        self.configs = (shared.config, *shared.beside)
        self.device, self.layer, self.positions = shared.device, shared.layer, shared.config.positions
        self.checkpoints, self.above = self.config.selection.size, shared.metadata.n_layers - shared.layer - 1
        self.largest = cost.largest(self.configs)
        self.random = np.random.default_rng(0)

    def speeds(self) -> Speeds:
        block = self._block(self.analysed)
        below, above = self.checkpoints * self.layer * block, (self.above - 1) * block
        features = len(self.features)
        task, prompt = self._effects()
        return Speeds(
            peak=self.peak,
            load=self._load(),
            collection=self._each(self._collect, self.config.training.model_batch_blocks)
            + self.checkpoints * self.layer * self._block(self.collected),
            mixing=self._mixing(),
            steps=tuple(map(self._step, self.configs)),
            read=self._each(self._read, 32) + self.layer * block + above,
            asked=self._each(self._ask, 32) + self.layer * block + above,
            evaluated=self._each(self._evaluate, self.config.evaluation.batch_blocks)
            + below
            # Every checkpoint's loss three times: as it is, of the reconstruction, of zeros.
            + 3 * self.checkpoints * above,
            diagnosed=self._each(self._diagnose, self.config.diagnostics.batch_blocks) + below,
            searched=self._each(self._search, 16) + below,
            task=task,
            prompt=prompt,
            ablated=seconds_each(self._ablate, len(self.sample), self.device, self.slot) / features / self.checkpoints
            + self.length_of_prompts * above,
        )

    # -------------------------------------------------------------------------------------------------------- what on

    @cached_property
    def peak(self) -> float:
        training, width = self.config.training, self.shared.shape.width
        return peak_matmul_flops(
            training.batch_size,
            self.checkpoints * width,
            self.largest.crosscoder.features,
            getattr(torch, training.on(self.device).matmul_dtype),
            self.device,
        )

    @cached_property
    def context(self) -> int:
        """Tokens of a text on which is measured: a block's, but fewer where one alone would take too long."""
        shape = self.shared.shape
        of_model = 2 * self.checkpoints * (4 * shape.block + 3 * shape.vocabulary * shape.width)
        flop = of_model + 8 * self.checkpoints * shape.width * self.largest.crosscoder.features
        return min(self.config.text.context, max(SHORTEST, int(self.slot * self.peak / (4 * flop))))

    def _model(self, dtype: torch.dtype) -> PreTrainedModel:
        metadata = self.shared.metadata
        return short_model(metadata.config, dtype, self.device, code=metadata.trust_remote_code)

    @cached_property
    def analysed(self) -> PreTrainedModel:
        """As the checkpoints are analysed."""
        return self._model(self.shared.dtype)

    @cached_property
    def collected(self) -> PreTrainedModel:
        """A checkpoint as activations are collected from it."""
        dtype = getattr(torch, self.config.training.on(self.device).model_dtype)
        return self.analysed if dtype == self.shared.dtype else self._model(dtype)

    @cached_property
    def models(self) -> list[SplitLM]:
        return [SplitLM(self.analysed, 0)] * self.checkpoints

    @cached_property
    @torch.no_grad()
    def crosscoder(self) -> Crosscoder:
        """With a bias under which as many features fire as in a trained one: what effects cost depends on that."""
        made = self._crosscoder(self.largest, self.largest.crosscoder.features)
        f = encode(made, residuals(made, self.models, self._tokens(1, SHORTEST))).flatten()
        made.b_enc.fill_(-f.topk(max(1, int(FIRING * len(f)))).values[-1])
        return made

    def _crosscoder(self, config: RunConfig, features: int) -> Crosscoder:
        """At its start values."""
        names, width = tuple(map(str, range(self.checkpoints))), self.shared.shape.width
        made = Crosscoder(
            CrosscoderConfig(names, 0, width, features, positions=self.positions, sparsity=config.sparsity)
        ).to(self.device)
        made.initialise(
            torch.zeros(self.checkpoints, width, device=self.device),
            torch.ones(self.checkpoints, device=self.device),
            decoder_norm=config.training.decoder_norm or config.sparsity.initial_decoder_norm,
            tied=True,
            generator=torch.Generator().manual_seed(0),
        )
        return made

    @cached_property
    def prompts(self) -> Prompts:
        """Those of the task that has most."""
        return max(self.shared.prompts, key=len)

    @property
    def length_of_prompts(self) -> float:
        return float(np.mean(list(map(len, self.prompts.tokens))))

    def _some(self, count: int) -> Prompts:
        """Some of the prompts, of middling length, so that most of them share a batch."""
        by_length = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts.tokens[i]))
        first = (len(by_length) - count) // 2
        index = by_length[first : first + count]
        chosen = torch.tensor(index)
        patch = self.prompts.patch
        return replace(
            self.prompts,
            tokens=[self.prompts.tokens[i] for i in index],
            patch=None if patch is None else [patch[i] for i in index],
            **{name: getattr(self.prompts, name)[chosen] for name in ("right", "wrong", "pair_index")},
        )

    @cached_property
    def sample(self) -> Prompts:
        return self._some(min(len(self.prompts), 2 * self.config.ablation.batch_size))

    @property
    def features(self) -> list[int]:
        """That are ablated one by one."""
        return list(range(min(8, self.crosscoder.config.features)))

    def _tokens(self, count: int, length: int) -> Int[Tensor, "B S"]:
        return torch.from_numpy(self.random.integers(0, self.shared.shape.vocabulary, (count, length)))

    def _text(self, blocks: int) -> Corpus:
        return Corpus(self._tokens(blocks, self.context).numpy().astype(np.uint32), "random", self.positions.bos)

    # ------------------------------------------------------------------------------------------------------ what runs

    def _each(self, work: Callable[[int], object], most: int) -> float:
        """Seconds a token, of work on so many blocks at most."""
        return seconds_each(work, most, self.device, self.slot) / self.context

    def _block(self, model: PreTrainedModel) -> float:
        """A token's way through one block."""
        if model.config.num_hidden_layers == 1:
            return 0.0
        both, first = (
            self._each(lambda n, lm=lm: lm.lower(self._tokens(n, self.context).to(self.device)), 16)
            for lm in (SplitLM(model, 1), SplitLM(model, 0))
        )
        return max(0.0, both - first)

    def _block_and_back(self) -> float:
        """A token's way through one block and the gradient's way back, at the lengths of prompts."""
        length = round(self.length_of_prompts)

        def work(n: int) -> None:
            x = torch.randn(n, length, self.shared.shape.width, device=self.device, requires_grad=True)
            last = torch.full((n,), length - 1, device=self.device)
            torch.autograd.grad(self.models[0].upper(x, positions=last).sum(), x)

        return seconds_each(work, 256, self.device, self.slot) / length

    def _load(self) -> float:
        return _clocked(lambda: SplitLM(self.analysed, 0), self.device) * self.shared.metadata.n_layers / 2

    @cached_property
    def _lower(self) -> list[SplitLM]:
        return [SplitLM(self.collected, 0).without_upper()] * self.checkpoints

    def _collect(self, blocks: int) -> None:
        for _ in ActivationCollector(self._lower, self._text(blocks), self.positions, seed=0).collect(blocks):
            pass

    def _mixing(self) -> float:
        batch, width = self.config.training.batch_size, self.checkpoints * self.shared.shape.width
        buffer = ActivationBuffer(2 * batch, width, dtype=self.collected.dtype, device=self.device, seed=0)
        rows, scale = torch.randn(batch, width, device=self.device).to(buffer.store), torch.ones(1, device=self.device)
        buffer.fill(rows)

        def work(times: int) -> None:
            for _ in range(times):
                buffer.fill(rows)
                buffer.shuffle()
                _ = buffer.serve(batch).float() * scale

        return seconds_each(work, 8, self.device, self.slot) / batch

    def _step(self, config: RunConfig) -> StepTime:
        """By steps of two sizes: what does not grow with the rows is Adam's and the clipping's.

        A step that would take too long is measured on fewer rows, since its time grows in proportion to them; and one
        that would then still, on fewer features, in proportion to which all of it grows but the passes over the rows.
        """
        training, width = config.training, self.checkpoints * self.shared.shape.width
        wanted = self.slot / 3 * self.peak / (10 * width)
        features = min(config.crosscoder.features, max(1, int(wanted / FEWEST_ROWS)))
        rows = min(training.batch_size, max(FEWEST_ROWS, int(wanted / features)))
        whole, half = (self._steps(config, features, count) for count in (rows, max(1, rows // 2)))
        each = max(0.0, whole - half) / (rows - max(1, rows // 2)) if rows > 1 else whole
        each, share = min(each, whole / rows), config.crosscoder.features / features
        flop = 10.0 * training.batch_size * width * config.crosscoder.features
        return StepTime(max(0.0, whole - each * rows) * share, each * training.batch_size * share, flop)

    def _steps(self, config: RunConfig, features: int, rows: int) -> float:
        """Seconds of a step in the middle of training, where the schedules have settled."""
        state = TrainState(self._crosscoder(config, features), config.training)
        state.step = config.training.steps // 2
        x = torch.randn(rows, self.checkpoints * self.shared.shape.width, device=self.device)

        def work(times: int) -> None:
            for _ in range(times):
                state.train_step(x)

        return seconds_each(work, 16, self.device, self.slot)

    def _read(self, blocks: int) -> None:
        model, tokens = self.models[0], self._tokens(blocks, self.context)
        with torch.inference_mode():
            cross_entropy(model, finite_residual(model, tokens), tokens, 0)

    def _ask(self, blocks: int) -> None:
        """Of all logits few are looked at."""
        with torch.inference_mode():
            for _ in logit_chunks(self.models[0], finite_residual(self.models[0], self._tokens(blocks, self.context))):
                pass

    def _evaluate(self, blocks: int) -> None:
        evaluate(self.crosscoder, self.models, self._text(blocks), EvaluationConfig(blocks, blocks))

    def _diagnose(self, blocks: int) -> None:
        latent_scaling(self.crosscoder, self.models, self._text(blocks), DiagnosticsConfig(blocks, blocks))

    def _search(self, blocks: int) -> None:
        config = ContextsConfig(batch_blocks=blocks)
        contexts(self.crosscoder, self.models, self._text(blocks), self.shared.tokenizer, [], config)

    def _effects(self) -> tuple[float, float]:
        """Seconds of a task and of each of its prompts."""
        config = self.config.attribution
        values = self.checkpoints * self.crosscoder.config.features
        bootstrap = min(config.bootstrap, max(1, int(RESAMPLED / values)))
        timed = replace(config, bootstrap=bootstrap)
        if BASELINES[config.baseline].needs_text:
            timed = replace(timed, baseline="bias")

        def seconds(count: int) -> float:
            return _clocked(lambda: attribute(self.crosscoder, self.models, self._some(count), timed), self.device)

        few, many = 1, min(len(self.prompts), config.batch_size)
        seconds(few)  # whatever is slow the first time
        fixed, both = seconds(few), seconds(many)
        if both < self.slot:
            many = min(len(self.prompts), int(many * self.slot / both))
            both = seconds(many)
        each = max(0.0, both - fixed) / max(1, many - few)
        points = config.n_gradients
        blocks = (
            self.checkpoints
            * self.length_of_prompts
            * (self.layer * self._block(self.analysed) + points * (self.above - 1) * self._block_and_back())
        )
        return max(0.0, fixed - each) * max(1, config.bootstrap) / max(1, bootstrap), each + blocks

    def _ablate(self, prompts: int) -> None:
        """Every feature is set to what it nowhere is, so that each changes every prompt."""
        elsewhere = torch.full_like(self.crosscoder.b_enc, 1e3)
        intervene(
            self.crosscoder,
            self.models,
            self._some(prompts),
            self.features,
            baseline=elsewhere,
            batch_size=self.config.ablation.batch_size,
        )
