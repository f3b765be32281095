"""The values of a run: its suite, texts, tasks, models and crosscoder, each made when first asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from crosstime.attribution.baselines import BASELINES, second_prefixes
from crosstime.base import artifact
from crosstime.base.device import available_device
from crosstime.base.errors import InputError, nearest
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.importing import import_crosscoder
from crosstime.evaluation.survey import Survey
from crosstime.models.metadata import SuiteMetadata
from crosstime.models.shape import ModelShape
from crosstime.models.split import SplitLM
from crosstime.models.suite import Suite
from crosstime.pipeline.config import RunConfig
from crosstime.pipeline.engine import STAGES, Workspace
from crosstime.pipeline.estimate import MEMORY, Budget
from crosstime.pipeline.imported import fitted
from crosstime.tasks.prompts import Prompts
from crosstime.tasks.task import Task
from crosstime.text.corpus import Corpus


@dataclass(frozen=True)
class Shared:
    """What all crosscoders of a run have in common: the checkpoints, texts and tasks."""

    folder: Path
    """The run folder."""
    config: RunConfig
    """Of any of them: their [crosscoder] and [sparsity] do not matter here, but for the layer."""
    beside: tuple[RunConfig, ...] = ()
    """Of the others, whose memory counts too."""

    # ------------------------------------------------------------------------------------------------ checkpoints

    @cached_property
    def metadata(self) -> SuiteMetadata:
        """What is known about the checkpoints without their weights; see `SuiteConfig.metadata`."""
        return self.config.suite.metadata(self.folder)

    @cached_property
    def suite(self) -> Suite:
        """All checkpoints.

        Raises:
            InputError: They can't be read, or don't fit together.
        """
        return Suite.from_metadata(self.metadata, allow_duplicates=self.config.suite.allow_duplicates)

    def fingerprints(self) -> list[dict[str, Any]]:
        """What decides each checkpoint's activations: the hashes of its weights and of the files on how to use them."""
        rows = []
        for checkpoint in self.suite:
            paths = self.suite.input_files(checkpoint.folder)
            files = {path.name: artifact.sha256_of(path) for path in paths}
            rows.append({"name": checkpoint.name, "sha256": checkpoint.sha256, "files": files})
        return rows

    @cached_property
    def compared(self) -> Suite:
        """The checkpoints that the crosscoder reads; the stage `select` has chosen them."""
        return self.suite.select([row["name"] for row in self.read_json("selection/checkpoints.json")])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one tokenizer of all checkpoints."""
        return self.metadata.tokenizer

    @property
    def layer(self) -> int:
        """The block whose output is compared."""
        return self.config.crosscoder.layer_of(self.metadata.n_layers)

    @property
    def device(self) -> torch.device:
        """Where everything runs; see `ComputeConfig.torch_device`."""
        return self.config.compute.torch_device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the checkpoints in every stage but training."""
        return self.config.compute.torch_dtype

    @cached_property
    def shape(self) -> ModelShape:
        """Of each checkpoint.

        Raises:
            InputError: Transformers can't make such a model, or it can't be split.
        """
        return ModelShape.from_config(self.metadata.config, trust_remote_code=self.metadata.trust_remote_code)

    @cached_property
    def budget(self) -> Budget:
        """Memory that may be held; asked for before anything large is loaded, and on CUDA enforced from then on."""
        return Budget.start(self.device, self.config.compute.memory_bytes)

    def batch_size(self, stage: str) -> int:
        """Return the largest batch that a stage has memory for, up to the one configured.

        Raises:
            InputError: What must be held exceeds `compute.memory`.
        """
        return self.budget.fit(MEMORY[stage]([self.config, *self.beside], self.shape))

    @cached_property
    def models(self) -> list[SplitLM]:
        """The compared checkpoints, in order, in memory."""
        return [
            self.compared.load(n, layer=self.layer, dtype=self.dtype, device=self.device) for n in self.compared.names
        ]

    # ------------------------------------------------------------------------------------------------- text and tasks

    @cached_property
    def train_text(self) -> Corpus:
        """The training text, as blocks of tokens."""
        return Corpus.open(self.folder / "tokens" / "train.npy", bos=self.config.positions.bos)

    @cached_property
    def heldout_text(self) -> Corpus:
        """Text that training never sees, as blocks of tokens."""
        return Corpus.open(self.folder / "tokens" / "heldout.npy", bos=self.config.positions.bos)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every [[task]] of run.toml, by name."""
        return {task.name: task.load(self.folder, self.tokenizer, self.config.positions) for task in self.config.task}

    @cached_property
    def prompts(self) -> list[Prompts]:
        """Prompts of the tasks on which effects are computed, in their order in run.toml.

        Raises:
            InputError: a task gives no prompt.
        """
        attributed = (self.tasks[task.name] for task in self.config.task if task.attribute)
        return [task.prompts(self.tokenizer, self.config.positions) for task in attributed]

    @cached_property
    def surveyed(self) -> dict[str, list[Task]]:
        """For each [[task]], its sets one by one: the survey looks at each set on its own.

        Sets of one name hold the same pairs: where a later task has other pairs under a name, its own stands before it.
        """
        limit = self.config.survey.max_pairs
        known: dict[str, str] = {}
        surveyed = {}
        for name, task in self.tasks.items():
            parts = [part.take(limit) if limit else part for part in task.by_set()]
            surveyed[name] = [
                part if known.get(part.name, part.sha256) == part.sha256 else replace(part, name=f"{name}: {part.name}")
                for part in parts
            ]
            known |= {part.name: part.sha256 for part in surveyed[name]}
        return surveyed

    @property
    def sets(self) -> list[Task]:
        """The sets that the survey reads, each once."""
        return list({part.name: part for parts in self.surveyed.values() for part in parts}.values())

    # --------------------------------------------------------------------------------------- artifacts and checks

    def read_survey(self) -> Survey:
        """What the survey found, with the tokens that the suite now states: they decide nothing in it."""
        found = Survey.load(self.folder / "survey")
        tokens = {row["name"]: row["tokens"] for row in self.read_json("suite/sources.json")}
        return replace(found, tokens=[tokens[name] for name in found.checkpoints])

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of a shared artifact."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def check_inputs(self) -> None:
        """Finds what is wrong with the input, as far as that can be seen without weights.

        Raises:
            InputError: a checkpoint is unknown or lonely, the layer is out of range, a text file is missing or empty,
                a task gives no prompt, or none with a second prefix where effects are to have that baseline; or what
                must be held exceeds `compute.memory`.
        """
        names, selection, n_layers = self.metadata.names, self.config.selection, self.metadata.n_layers
        if len(names) < 2:
            raise InputError(f"suite has one checkpoint, {names[0]!r}: comparing needs at least 2")
        for name in selection.checkpoints:
            if name not in names:
                raise InputError(f"selection.checkpoints: the suite has no checkpoint {name!r}{nearest(name, names)}")
        if not selection.checkpoints and selection.number > len(names):
            raise InputError(f"selection.number is {selection.number}; suite has {len(names)} checkpoints")
        if not 0 <= self.layer < n_layers:
            raise InputError(
                f"crosscoder.layer is {self.layer}, out of range: the models have blocks 0 to {n_layers - 1}"
            )
        most = getattr(self.metadata.config, "max_position_embeddings", None)
        if most is not None and self.config.text.context > most:
            raise InputError(f"text.context is {self.config.text.context}: the models have {most} positions")
        available_device(self.device)
        self.config.text.check_files(self.folder)
        crosscoders = [self.folder / config.crosscoder.name / "crosscoder" for config in (self.config, *self.beside)]
        trained = self.config.crosscoder.from_ or None not in map(artifact.read_manifest, crosscoders)
        for stage in MEMORY:
            if stage != "train" or not trained:
                self.batch_size(stage)
        self._check_tasks()

    def _check_tasks(self) -> None:
        for prompts in self.prompts:
            if BASELINES[self.config.attribution.baseline].needs_second_prefixes:
                second_prefixes(prompts)

    def check_checkpoints(self) -> None:
        """Compares the checkpoints with those that stand in the suite's artifact.

        Raises:
            InputError: they are not those that this run began with.
        """
        began = {row["name"]: row for row in self.read_json("suite/checkpoints.json")}
        self._check_names(list(began), self.suite.names)
        for checkpoint, row in zip(self.suite, self.fingerprints(), strict=True):
            then = began[checkpoint.name]
            files = sorted(row["files"].keys() | then["files"].keys())
            changed = [name for name in files if row["files"].get(name) != then["files"].get(name)]
            what = "weights" if row["sha256"] != then["sha256"] else changed[0] if changed else None
            if what is not None:
                raise InputError(
                    f"the {what} of checkpoint {checkpoint.name!r} in {checkpoint.source} changed after this run "
                    f"began: put back what was there, or delete {self.folder / 'suite'} to go on with what is there now"
                )

    def _check_names(self, then: list[str], now: list[str]) -> None:
        if then == now:
            return
        new, gone = ([n for n in a if n not in b] for a, b in ((now, then), (then, now)))
        changes = [f"{what}: {', '.join(names)}" for what, names in (("new", new), ("gone", gone)) if names]
        raise InputError(
            f"the checkpoints are not those that this run began with ({'; '.join(changes) or 'another order'}): delete "
            f"{self.folder / 'suite'} to take them as they are now, or name in suite.names those that are meant"
        )

    # -------------------------------------------------------------------------------------------------------- details

    def path(self, path: str) -> Path:
        """A path of run.toml; it is relative to the run folder."""
        return self.folder / Path(path).expanduser()


@dataclass(frozen=True)
class Run(Workspace):
    """A crosscoder of a run folder: its configuration, and what that leads to."""

    config: RunConfig
    shared: Shared

    @property
    def name(self) -> str:
        """Of the crosscoder; empty where it has none."""
        return self.config.crosscoder.name

    @property
    def own_folder(self) -> Path:
        """Where the artifacts are that only this crosscoder has."""
        return self.folder / self.name

    def folder_of(self, artifact: str) -> Path:
        """Where an artifact is: in the run folder if it is shared, or else in the crosscoder's own."""
        shared = any(stage.shared for stage in STAGES if stage.folder == artifact)
        return (self.folder if shared else self.own_folder) / artifact

    @cached_property
    def crosscoder(self) -> Crosscoder:
        """The trained crosscoder."""
        return Crosscoder.from_pretrained(self.folder_of("crosscoder")).to(self.shared.device)

    @property
    def foreign_place(self) -> Path | str:
        """Where the crosscoder lies that `crosscoder.from` names: a path, or a place on the hub if there is no such."""
        source = self.config.crosscoder.from_
        assert source is not None
        return self.shared.path(source) if self.shared.path(source).exists() else source

    @cached_property
    def foreign(self) -> Crosscoder:
        """That crosscoder, as it was found.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        return import_crosscoder(self.foreign_place)

    @cached_property
    def imported(self) -> Crosscoder:
        """That crosscoder for this run's checkpoints (see `imported.fitted`).

        Raises:
            InputError: as for `foreign`, or it does not fit this run.
        """
        return fitted(self.foreign, self.shared.suite, self.config, self.shared.layer)

    def imported_facts(self) -> dict[str, Any]:
        """What an imported crosscoder depends on besides settings: the files that it is read from, if they are here."""
        folder = self.shared.path(str(self.config.crosscoder.from_))
        files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
        return {"crosscoder.from holds": _hashes(files)}

    def check_suite(self) -> None:
        """Finds what is wrong with the input before any long work, once the weights are there.

        Raises:
            InputError: the checkpoints are not those that this run began with, the crosscoder to import does not fit
                them, or as for `Shared.check_inputs`.
        """
        self.shared.check_checkpoints()
        self.shared.check_inputs()
        if self.config.crosscoder.from_ and artifact.read_manifest(self.folder_of("crosscoder")) is None:
            _ = self.imported


def runs(folder: Path, configs: Sequence[RunConfig]) -> list[Run]:
    """Return a `Run` for each crosscoder of a run folder; what they share is read once.

    Raises:
        InputError: A crosscoder's name is that of another file or folder of a run.
    """
    from crosstime.pipeline.stages import RESERVED  # the stages import this module

    reserved = {*RESERVED, *(name for stage in STAGES for name in (stage.folder, *stage.scratch))}
    for config in configs:
        if config.crosscoder.name in reserved:
            raise InputError(
                f"crosscoder.name {config.crosscoder.name!r} is reserved: runs keep other files under that name"
            )
    shared = Shared(folder, configs[0], tuple(configs[1:]))
    return [Run(folder, config, shared) for config in configs]


def _hashes(files: Sequence[Path]) -> list[str]:
    return [artifact.sha256_of(path) for path in files]
