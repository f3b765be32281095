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

from crosstime import artifact, demo
from crosstime.analysis.survey import Survey
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.data.corpus import Corpus
from crosstime.data.jsonl import load_jsonl
from crosstime.data.task import Task
from crosstime.lm.device import available_device
from crosstime.lm.split import SplitLM
from crosstime.lm.suite import Suite
from crosstime.lm.tokenizer import deciding_files
from crosstime.run.config import RunConfig, SuiteConfig, TaskConfig
from crosstime.run.stage import Workspace


@dataclass(frozen=True)
class Run(Workspace):
    """A run folder, its configuration, and what they lead to."""

    config: RunConfig

    # ------------------------------------------------------------------------------------------------ checkpoints

    @cached_property
    def suite(self) -> Suite:
        """All checkpoints.

        Raises:
            ValueError: they cannot be read, or do not fit one another.
        """
        suite, settings = self.config.suite, _suite_settings(self.config.suite)
        names = list(suite.names) or None
        if suite.demo:
            return Suite.from_folder(demo.SUITE, names, **settings)
        if suite.repo:
            return Suite.from_hub(suite.repo, list(suite.revisions), **settings)
        if suite.folder:
            return Suite.from_folder(self._path(suite.folder), names, **settings)
        return Suite.from_folders([self._path(folder) for folder in suite.folders], names=names, **settings)

    def fingerprints(self) -> list[dict[str, Any]]:
        """What decides each checkpoint's activations: the hashes of its weights and of the files on how to use them."""
        rows = []
        for checkpoint, folder in zip(self.suite.checkpoints, self.suite.folders, strict=True):
            names = {"config.json"} | deciding_files(self.tokenizer, folder)
            files = {name: artifact.sha256_of(folder / name) for name in sorted(names)}
            rows.append({"name": checkpoint.name, "sha256": checkpoint.sha256, "files": files})
        return rows

    @cached_property
    def compared(self) -> Suite:
        """The checkpoints that the crosscoder reads; the stage `compare` has chosen them."""
        return self.suite.select([row["name"] for row in self.read_json("compare/checkpoints.json")])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one tokenizer of all checkpoints."""
        return self.suite.tokenizer

    @property
    def layer(self) -> int:
        """The block whose output is compared: as configured, or the middle one (8 of 16, as in arXiv 2509.05291)."""
        layer = self.config.crosscoder.layer
        return self.suite.n_layers // 2 if layer is None else layer

    @property
    def device(self) -> torch.device:
        """Where everything runs.

        Raises:
            ValueError: the device is not there.
        """
        if self.config.compute.device != "auto":
            return available_device(self.config.compute.device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What the checkpoints are loaded in."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.config.compute.dtype]

    @cached_property
    def models(self) -> list[SplitLM]:
        """The compared checkpoints, in order, in memory."""
        return [
            self.compared.load(n, layer=self.layer, dtype=self.dtype, device=self.device) for n in self.compared.names
        ]

    # ------------------------------------------------------------------------------------------------- text and tasks

    @cached_property
    def train_files(self) -> list[Path]:
        """Files of the training text; none where it is on the hub."""
        return [demo.TRAIN_TEXT] if self.config.text.demo else self._text_paths(self.config.text.train)

    @cached_property
    def heldout_files(self) -> list[Path]:
        """Files of the held-out text; none where it is no text of its own, or on the hub."""
        return [demo.HELDOUT_TEXT] if self.config.text.demo else self._text_paths(self.config.text.heldout)

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
        return {task.name: self._task(task) for task in self.config.task}

    @property
    def attributed(self) -> list[Task]:
        """The tasks on which effects are computed."""
        return [self.tasks[task.name] for task in self.config.task if task.attribute]

    @cached_property
    def surveyed(self) -> dict[str, list[Task]]:
        """For each [[task]], its sets one by one: the survey looks at each set on its own.

        Sets of one name hold the same pairs: where a later task has other pairs under a name, its own stands before it.
        """
        limit = self.config.survey.max_pairs
        known: dict[str, str] = {}
        surveyed = {}
        for name, task in self.tasks.items():
            parts = [part.take(limit) if limit else part for part in _parts(task)]
            surveyed[name] = [
                part if known.get(part.name, part.sha256) == part.sha256 else replace(part, name=f"{name}: {part.name}")
                for part in parts
            ]
            known |= {part.name: part.sha256 for part in surveyed[name]}
        return surveyed

    # ------------------------------------------------------------------------------------------------------ artifacts

    @cached_property
    def crosscoder(self) -> Crosscoder:
        """The trained crosscoder."""
        return Crosscoder.from_pretrained(self.folder / "crosscoder").to(self.device)

    def read_survey(self) -> Survey:
        """What the survey found, with the tokens that the suite now states: they decide nothing in it."""
        found = Survey.load(self.folder / "survey")
        tokens = {row["name"]: row["tokens"] for row in self.read_json("suite/sources.json")}
        return replace(found, tokens=[tokens[name] for name in found.checkpoints])

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of an artifact."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    # --------------------------------------------------------------------------------------------------------- checks

    def check_inputs(self) -> None:
        """Finds what is wrong with the input before any long work.

        Raises:
            ValueError: the checkpoints are not those that this run began with, one is unknown or lonely, the layer is
                out of range, a text file is missing or empty, or a task gives no prompt.
        """
        self._check_checkpoints()
        if len(self.suite) < 2:
            raise ValueError(f"suite has one checkpoint, {self.suite.names[0]!r}: comparing needs at least 2")
        self.suite.select(list(self.config.compare.checkpoints) or self.suite.names)
        if not self.config.compare.checkpoints and self.config.compare.number > len(self.suite):
            raise ValueError(f"compare.number is {self.config.compare.number}; suite has {len(self.suite)} checkpoints")
        if not 0 <= self.layer < self.suite.n_layers:
            raise ValueError(
                f"crosscoder.layer is {self.layer}, out of range: the models have blocks 0 to {self.suite.n_layers - 1}"
            )
        available_device(self.device)
        for path in [*self.train_files, *self.heldout_files]:
            if not path.is_file():
                raise ValueError(f"there is no text file {path}")
            if path.stat().st_size == 0:
                raise ValueError(f"the text file {path} is empty")
        for task in self.attributed:
            task.prompts(self.tokenizer, self.config.positions)

    def _check_checkpoints(self) -> None:
        """Compares the checkpoints with those that stand in the suite's artifact."""
        began = {row["name"]: row for row in self.read_json("suite/checkpoints.json")}
        self._check_names(list(began), self.suite.names)
        for checkpoint, row in zip(self.suite, self.fingerprints(), strict=True):
            then = began[checkpoint.name]
            files = sorted(row["files"].keys() | then["files"].keys())
            changed = [name for name in files if row["files"].get(name) != then["files"].get(name)]
            what = "weights" if row["sha256"] != then["sha256"] else changed[0] if changed else None
            if what is not None:
                raise ValueError(
                    f"the {what} of checkpoint {checkpoint.name!r} in {checkpoint.source} changed after this run "
                    f"began: put back what was there, or delete {self.folder / 'suite'} to go on with what is there now"
                )

    def _check_names(self, then: list[str], now: list[str]) -> None:
        if then == now:
            return
        new, gone = ([n for n in a if n not in b] for a, b in ((now, then), (then, now)))
        changes = [f"{what}: {', '.join(names)}" for what, names in (("new", new), ("gone", gone)) if names]
        raise ValueError(
            f"the checkpoints are not those that this run began with ({'; '.join(changes) or 'another order'}): delete "
            f"{self.folder / 'suite'} to take them as they are now, or name in suite.names those that are meant"
        )

    # -------------------------------------------------------------------------------------------------------- details

    def _path(self, path: str) -> Path:
        """A path of run.toml; it is relative to the run folder."""
        return self.folder / Path(path).expanduser()

    def _paths(self, paths: str | Sequence[str]) -> list[Path]:
        return [self._path(path) for path in ([paths] if isinstance(paths, str) else paths)]

    def _text_paths(self, stated: str | Sequence[str]) -> list[Path]:
        """Files of text; a name with * or ? that is no file stands for all files that it fits, in order."""
        found = []
        for path in self._paths(stated):
            fitting = sorted(path.parent.glob(path.name)) if not path.exists() and set("*?") & set(path.name) else []
            found += fitting or [path]
        return found

    def _task(self, config: TaskConfig) -> Task:
        files = self._paths(config.jsonl)
        read = [demo.blimp(name) for name in config.sets]
        read += [load_jsonl(path, config.name if len(files) == 1 and not config.sets else None) for path in files]
        task = Task.join(config.name, read)
        return task.take(config.max_pairs) if config.max_pairs else task


def _parts(task: Task) -> list[Task]:
    """A task cut into its sources."""
    pairs = {
        source: [p for p, s in zip(task.pairs, task.sources, strict=True) if s == source] for source in task.sources
    }
    return [Task.from_pairs(source, found) for source, found in pairs.items()]


def _suite_settings(config: SuiteConfig) -> dict[str, Any]:
    tokens = config.tokens
    return {
        "tokens": list(tokens) if isinstance(tokens, tuple) else tokens,
        "allow_duplicates": config.allow_duplicates,
        "trust_remote_code": config.trust_remote_code,
    }
