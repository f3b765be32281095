"""What a run will take on this machine: time, memory and disk of each stage, and what limits it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from crosstime.base.memory import total_bytes
from crosstime.base.units import align_columns, format_bytes, format_duration, format_tokens
from crosstime.evaluation.survey import SIMILARITY_TOKENS
from crosstime.evaluation.task_scores import TaskReader
from crosstime.pipeline import cost
from crosstime.pipeline.run import Run, Shared
from crosstime.pipeline.speed import SECONDS, Speeds, measure
from crosstime.text.tokenise import check_texts

DISK = 1e9
"""Bytes a second that are read or written: assumed."""
DISTINCT, FIRING = 0.7, 0.45
"""Of the strongest features of all checkpoints, how many differ, and on which share of the prompts one fires. In the
demo 0.7 and 0.45; what ablation costs is proportional to both, and known only when the effects are."""
_SHORTER = {
    "survey": "a smaller survey.max_pairs or survey.blocks",
    "evaluate": "fewer evaluation.blocks",
    "diagnose": "fewer diagnostics.blocks",
    "attribute": "fewer attribution.steps or a task's max_pairs",
    "ablate": "a smaller ablation.exact",
    "contexts": "fewer contexts.blocks",
}
"""What makes a stage shorter."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage is predicted to take."""

    name: str
    what: str
    """How much there is to do, for people."""
    seconds: float
    memory: int
    """Bytes that are held at most, on the device."""


@dataclass(frozen=True)
class Plan:
    """What a run is predicted to take."""

    device: str
    stages: list[StagePlan]
    collection_seconds: float
    """Of training."""
    fixed_seconds: float
    """Of training, in Adam and clipping."""
    product_seconds: float
    """Of training, in what grows with the rows."""
    peak: float
    """FLOP/s of this machine in matrix products alone."""
    peak_share: float
    """Of it, that the steps of training reach."""
    memory: int
    """Bytes that are held at most, on the device."""
    memory_limit: int
    """compute.memory, or what the device has."""
    disk: int
    """Bytes that the run folder holds at most."""
    disk_free: int
    one_more: float
    """Seconds that one more crosscoder on the same activations would add to training."""

    @property
    def seconds(self) -> float:
        """Of all stages that are predicted."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def limit(self) -> str:
        """What limits the run, and which setting would help most: a sentence."""
        greedy = max(self.stages, key=lambda stage: stage.memory)
        if greedy.memory > self.memory_limit:
            what = "training.buffer_tokens, training.batch_size" if greedy.name == "train" else "text.context"
            return (
                f"memory: {greedy.name} takes {format_bytes(greedy.memory)} of {format_bytes(self.memory_limit)}; "
                f"lower {what} or crosscoder.features"
            )
        if self.disk > self.disk_free:
            return "disk: lower training.buffer_tokens or crosscoder.features, of which a state to resume from is made"
        longest = max(self.stages, key=lambda stage: stage.seconds)
        if longest.name != "train":
            share = longest.seconds / self.seconds
            return f"the stage {longest.name}, {share:.0%} of the time; {_SHORTER[longest.name]} would shorten it"
        return self._limit_of_training(longest.seconds)

    def _limit_of_training(self, seconds: float) -> str:
        collection, fixed, products = (
            part / seconds for part in (self.collection_seconds, self.fixed_seconds, self.product_seconds)
        )
        if collection >= max(fixed, products):
            return (
                f"collecting activations, {collection:.0%} of training; fewer training.tokens would shorten it; "
                f"another [[crosscoder]] on them costs only {self.one_more / seconds:.0%} more"
            )
        if fixed > products:
            return (
                f"Adam and clipping, which read and write all weights in every step, {fixed:.0%} of training; a larger "
                "training.batch_size takes fewer steps"
            )
        return (
            f"the crosscoder's products, {products:.0%} of training; fewer crosscoder.features or training.tokens "
            "would shorten it"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**asdict(self), "seconds": self.seconds, "limit": self.limit}

    def screen(self) -> str:
        """All of it, for a terminal."""
        head = ("stage", "", "time", "memory")
        rows = [(s.name, s.what, format_duration(s.seconds), format_bytes(s.memory)) for s in self.stages]
        total = ("all of these", "", format_duration(self.seconds), format_bytes(self.memory))
        facts = [
            ("memory", f"{format_bytes(self.memory)} at most, of {format_bytes(self.memory_limit)} on {self.device}"),
            ("disk", f"{format_bytes(self.disk)} at most, of {format_bytes(self.disk_free)} that are free"),
            ("products", f"{self.peak / 1e12:.3g} TFLOP/s alone; the steps reach {self.peak_share:.0%} of that"),
            ("limited by", self.limit),
        ]
        return f"{align_columns([head, *rows, total], right=(2, 3))}\n\n{align_columns(facts)}"


def plan(runs: Sequence[Run], seconds: float = SECONDS) -> Plan:
    """Predicts the crosscoders of a run from measurements on this machine, in about ten seconds.

    Weights are neither needed nor downloaded, and nothing is written into the run folder. Left out are the stages that
    take no time to speak of, and reading the text, which may come over a network.

    Args:
        runs: each crosscoder of the run.
        seconds: about how long to measure.

    Raises:
        InputError: something in run.toml, or what it names, is wrong.
    """
    shared = runs[0].shared
    shared.check_inputs()
    check_texts(shared.config.text, shared.folder, shared.tokenizer, shared.config.positions)
    begin = time.perf_counter()
    reader = TaskReader(
        shared.sets,
        shared.tokenizer,
        shared.config.positions,
        batch_tokens=shared.batches.survey,
        sample=SIMILARITY_TOKENS,
    )
    texts = sum(batch.tokens.numel() for batch in reader.batches)
    reading = time.perf_counter() - begin
    return _Planner(shared, measure(shared, seconds)).plan(texts, reading)


class _Planner:
    """Puts the pieces together."""

    def __init__(self, shared: Shared, speeds: Speeds) -> None:
        self.shared, self.speeds, self.config = shared, speeds, shared.config
        self.configs = [shared.config, *shared.beside]
        self.before = shared.budget.before
        """Bytes that are held in any case."""
        self.held = self.before + sum(cost.analysis_parts(self.configs, shared.shape).values())
        """Bytes that every analysis holds."""
        self.largest = cost.largest(self.configs)
        self.checkpoints = self.config.selection.size
        self.prompts = shared.prompts

    def plan(self, texts: int, reading: float) -> Plan:
        """The whole.

        Args:
            texts: tokens of the tasks that the survey reads.
            reading: seconds that it took to make them ready.
        """
        shape, shared = self.shared.shape, self.shared
        trained = not self.config.crosscoder.from_
        stages = [self._survey(texts, reading)]
        stages += [self._train()] if trained else []
        stages += [self._evaluate(), self._diagnose(), self._attribute(), self._ablate(), self._search()]
        memory = max(stage.memory for stage in stages)
        limit = self.config.compute.memory_bytes or total_bytes(shared.device)
        disk = cost.estimate(self.config, shape, beside=self.configs[1:]).run_bytes
        steps = sum(step.seconds for step in self.speeds.steps)
        return Plan(
            device=str(shared.device),
            stages=stages,
            collection_seconds=self._collection_seconds if trained else 0.0,
            fixed_seconds=self._steps * sum(step.fixed for step in self.speeds.steps) if trained else 0.0,
            product_seconds=self._steps * sum(step.rows for step in self.speeds.steps) if trained else 0.0,
            peak=self.speeds.peak,
            peak_share=sum(step.flop for step in self.speeds.steps) / steps / self.speeds.peak,
            memory=memory,
            memory_limit=limit,
            disk=disk,
            disk_free=cost.free_bytes(shared.folder),
            one_more=self._steps * steps / len(self.configs) if trained else 0.0,
        )

    # ---------------------------------------------------------------------------------------------------- each stage

    @property
    def _load(self) -> float:
        """Seconds to read a checkpoint, hash it, and make it ready."""
        return self.speeds.load + 2 * 4 * self.shared.shape.parameters / DISK

    def _survey(self, texts: int, reading: float) -> StagePlan:
        count, shape = len(self.shared.metadata.checkpoints), self.shared.shape
        text = self._heldout(self.config.survey.blocks) * self.config.text.context
        a_pass = cost.pass_bytes(self.config, shape, self.config.compute.dtype) / self.config.text.context
        memory = shape.parameters * cost.BYTES[self.config.compute.dtype] + cost.logit_bytes(self.config, shape)
        return StagePlan(
            "survey",
            f"{format_tokens(texts + text)} tokens at each of {count} checkpoints",
            reading + count * (self._load + texts * self.speeds.asked + text * self.speeds.read),
            self.before + memory + int(a_pass * self.shared.batches.survey),
        )

    @property
    def _steps(self) -> int:
        return self.config.training.steps

    @property
    def _blocks(self) -> int:
        """Blocks read from the text: for calibration, and to fill and refill the activation buffer."""
        training, batch = self.config.training, self.config.training.batch_size
        tokens_per_block = self.config.text.context - self.config.positions.first_trained
        refill, buffer = training.model_batch_blocks * tokens_per_block, training.buffer_size(tokens_per_block)
        return training.calibration_blocks + training.model_batch_blocks * (
            (buffer + (self._steps - 1) * batch) // refill
        )

    @property
    def _collection_seconds(self) -> float:
        return self._blocks * self.config.text.context * self.speeds.collection

    def _train(self) -> StagePlan:
        config, shape = self.config, self.shared.shape
        rows = self._steps * config.training.batch_size
        learning = self._steps * sum(step.seconds for step in self.speeds.steps)
        mixing = rows * self.speeds.mixing
        whole = self._collection_seconds + learning + mixing
        state = cost.buffer_bytes(config, shape) + 12 * sum(cost.crosscoder_weights(c, shape) for c in self.configs)
        saving = whole / max(config.training.save_seconds, 1) * state / DISK
        parts = sum(cost.training_parts(self.configs, shape).values())
        at_once = self.shared.batches.collection * cost.collection_bytes(config, shape)
        if self.shared.device.type == "cpu":
            at_once = max(at_once, cost.buffer_bytes(config, shape))  # which is copied to be saved
        return StagePlan(
            "train",
            f"{format_tokens(rows)} tokens: collection {self._collection_seconds / whole:.0%}, "
            f"steps {learning / whole:.0%}",
            whole + saving + self.checkpoints * self._load,
            self.before + parts + at_once,
        )

    def _analysis(self, name: str, blocks: int, at_once: int, each: float, codes: int, extra: int = 0) -> StagePlan:
        """A stage that reads held-out text, once for each crosscoder."""
        context = self.config.text.context
        blocks = self._heldout(blocks)
        memory = at_once * cost.analysis_bytes(self.largest, self.shared.shape, codes) + extra
        seconds = len(self.configs) * blocks * context * each
        return StagePlan(name, f"{format_tokens(blocks * context)} tokens", seconds, self.held + memory)

    def _heldout(self, blocks: int) -> int:
        """Of so many blocks of held-out text, those that there are, if that is known yet."""
        tokens = self.shared.folder / "tokens" / "heldout.npy"
        return min(blocks, len(self.shared.heldout_text)) if tokens.exists() else blocks

    def _evaluate(self) -> StagePlan:
        logits = cost.logit_bytes(self.config, self.shared.shape)
        at_once = self.shared.batches.evaluation
        read = self._analysis(
            "evaluate", self.config.evaluation.blocks, at_once, self.speeds.evaluated, cost.EVALUATED, logits
        )
        # The checkpoints are loaded once, for this stage and those after it.
        return replace(read, seconds=read.seconds + self.checkpoints * self._load)

    def _diagnose(self) -> StagePlan:
        blocks, at_once = self.config.diagnostics.blocks, self.shared.batches.diagnosis
        return self._analysis("diagnose", blocks, at_once, self.speeds.diagnosed, cost.DIAGNOSED)

    def _search(self) -> StagePlan:
        blocks, at_once = self.config.contexts.blocks, self.shared.batches.contexts
        return self._analysis("contexts", blocks, at_once, self.speeds.searched, cost.EVALUATED)

    def _attribute(self) -> StagePlan:
        count, config = sum(map(len, self.prompts)), self.config.attribution
        points = config.n_gradients
        seconds = len(self.prompts) * self.speeds.task + count * self.speeds.prompt
        at_once = self.shared.batches.effects * cost.gradient_bytes(self.config, self.shared.shape)
        return StagePlan(
            "attribute",
            f"{count:,} prompts of {len(self.prompts)} tasks, {points} points each",
            len(self.configs) * seconds,
            self.held + at_once,
        )

    def _ablate(self) -> StagePlan:
        config = self.config.ablation
        features = 2 * config.top_k + config.exact
        each = DISTINCT * self.checkpoints * features * FIRING * self.checkpoints
        count = sum(map(len, self.prompts))
        length = max(len(tokens) for prompts in self.prompts for tokens in prompts.tokens)
        codes = 4 * config.batch_size * length * cost.EVALUATED * self.largest.crosscoder.features
        return StagePlan(
            "ablate",
            f"{count:,} prompts, about {each:.0f} ablations each",
            len(self.configs) * count * each * self.speeds.ablated,
            self.held + codes,
        )
