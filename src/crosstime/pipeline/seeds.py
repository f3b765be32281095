"""The table of `crosstime table`: the quality of crosscoders that differ only in their seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from crosstime.base import artifact
from crosstime.base.errors import InputError
from crosstime.base.settings import differing
from crosstime.base.units import align_columns, jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.quality import Quality
from crosstime.evaluation.seeds import PER_CHECKPOINT, QUALITIES, OverSeeds, over_seeds, stability
from crosstime.pipeline import config

TRAINING_SEED, INITIAL_SEED = "training.seed", "crosscoder.seed"
_ROWS = {
    "l0": ("L0", 2),
    "dead": ("dead features", 1),
    "explained_variance": ("explained variance", 4),
    "delta_ce": ("added loss (nats)", 4),
    "loss_recovered": ("loss recovered", 4),
}
"""Heading and digits of each quality."""


@dataclass(frozen=True)
class SeedTable:
    """Quality of crosscoders that differ only in their seed."""

    seeds: list[int]
    quality: OverSeeds
    stability: float | None
    """Mean cosine of matched features (see `evaluation.seeds.stability`), if requested."""

    def to_json(self) -> dict[str, Any]:
        """Return mean and std of every quality, unrounded; by checkpoint name if it is per checkpoint."""
        mean, std = self.quality.mean, self.quality.std
        numbers: dict[str, Any] = {name: {"mean": float(mean[name]), "std": float(std[name])} for name in QUALITIES[:2]}
        for name in PER_CHECKPOINT:
            triples = zip(self.quality.checkpoints, mean[name].tolist(), std[name].tolist(), strict=True)
            numbers[name] = {checkpoint: {"mean": m, "std": s} for checkpoint, m, s in triples}
        return jsonable({"seeds": self.seeds, **numbers, "stability": self.stability})

    def rows(self) -> list[list[str]]:
        """Return formatted cells, the heading first: mean ± standard deviation."""
        mean, std = self.quality.mean, self.quality.std
        rows = [[f"{len(self.seeds)} seeds", *self.quality.checkpoints]]
        for name, (heading, digits) in _ROWS.items():
            pairs = zip(np.atleast_1d(mean[name]), np.atleast_1d(std[name]), strict=True)
            rows.append([heading, *(f"{m:.{digits}f} ± {s:.{digits}f}" for m, s in pairs)])
        if self.stability is not None:
            rows.append(["matched features, cosine", f"{self.stability:.3f}"])
        return [row + [""] * (len(rows[0]) - len(row)) for row in rows]


def seed_table(folders: Sequence[Path], *, match: bool = False) -> SeedTable:
    """Read the evaluations of several crosscoders.

    Args:
        folders: Run folders, or RUN_DIR/NAME for one of several crosscoders. All must be evaluated, and differ in
            nothing that affects the numbers except `training.seed` or `crosscoder.seed`. A single run folder stands
            for those of its crosscoders that do.
        match: Also match their features.

    Raises:
        InputError: There are fewer than two crosscoders; one is imported or not evaluated since it was trained; two
            have the same seeds; or two differ in another setting (the error names the first).
    """
    folders = _same_but_seed(folders[0]) if len(folders) == 1 else [_crosscoder_folder(folder) for folder in folders]
    if len(folders) < 2:
        raise InputError(f"a table over seeds needs at least 2 crosscoders; got {len(folders)}")
    evaluated = [_evaluated(folder) for folder in folders]
    first, *others = evaluated
    for other in others:
        for name in differing(first.settings, other.settings):
            raise InputError(
                f"{first.folder} and {other.folder} differ in more than their seed: {name} is "
                f"{_json(first.settings.get(name))} in the first and {_json(other.settings.get(name))} in the second; "
                f"only {TRAINING_SEED} and {INITIAL_SEED} may differ"
            )
    for a, b in combinations(evaluated, 2):
        if a.seeds == b.seeds:
            raise InputError(f"{a.folder} and {b.folder} have the same seeds, {a.seeds}")
    quality = over_seeds([Quality.load(folder / "evaluation") for folder in folders])
    crosscoders = [Crosscoder.from_pretrained(folder / "crosscoder") for folder in folders] if match else []
    return SeedTable(_seeds(evaluated), quality, stability(crosscoders) if match else None)


@dataclass(frozen=True)
class _Evaluated:
    """An evaluated crosscoder."""

    folder: Path
    seeds: tuple[int, int]
    """Seed of the training, and of the initialisation."""
    settings: dict[str, Any]
    """Everything else that its quality depends on, the best known first."""


def _evaluated(folder: Path) -> _Evaluated:
    trained, evaluated = (artifact.read_manifest(folder / name) for name in ("crosscoder", "evaluation"))
    if trained is None or evaluated is None or evaluated.inputs.get("crosscoder") != trained.content:
        run_dir = folder.parent if (folder.parent / config.FILE).is_file() else folder
        raise InputError(
            f"{folder} has no evaluation of its crosscoder: run `crosstime run {run_dir} --until evaluate` first"
        )
    if TRAINING_SEED not in trained.settings:
        raise InputError(f"the crosscoder of {folder} is imported: a table over seeds needs trained ones")
    for name in ("crosscoder", "evaluation"):
        artifact.verify(folder / name)
    own = json.loads((folder / "crosscoder" / "config.json").read_text(encoding="utf-8"))
    own = {name: own[name] for name in ("checkpoints", "layer", "features", "sparsity", "positions", "weights")}
    settings = {**evaluated.settings, **trained.settings}
    seed, initial = settings.pop(TRAINING_SEED), settings.pop(INITIAL_SEED, None)
    # The crosscoder's own config replaces [crosscoder]: there the default layer is filled in.
    settings = own | {name: value for name, value in settings.items() if not name.startswith("crosscoder.")}
    return _Evaluated(folder, (seed, seed if initial is None else initial), settings)


def _seeds(evaluated: Sequence[_Evaluated]) -> list[int]:
    """The seeds for the table: those of the initialisation, unless only those of the training are all different."""
    training, initial = ([crosscoder.seeds[n] for crosscoder in evaluated] for n in (0, 1))
    return training if len(set(initial)) < len(initial) else initial


def _crosscoder_folder(folder: Path) -> Path:
    """The folder of the one crosscoder that the user means.

    Raises:
        InputError: The run has several crosscoders, or none of this name.
    """
    if not config.is_of_run(folder):
        return folder
    run_dir, configs = config.find(folder)
    return run_dir / config.only(folder, configs).crosscoder.name


def _same_but_seed(run_dir: Path) -> list[Path]:
    """The crosscoders of a run that differ only in their seed.

    Raises:
        InputError: The run has several sets of them.
    """
    if not (run_dir / config.FILE).is_file():
        return [run_dir]
    folders = [run_dir / each.crosscoder.name for each in config.load(run_dir)]
    sets: list[list[_Evaluated]] = []
    for crosscoder in map(_evaluated, folders):
        group = next((group for group in sets if not differing(group[0].settings, crosscoder.settings)), None)
        if group is None:
            sets.append([crosscoder])
        else:
            group.append(crosscoder)
    several = [[crosscoder.folder for crosscoder in group] for group in sets if len(group) > 1]
    if len(several) > 1:
        listed = "; ".join(", ".join(folder.name for folder in group) for group in several)
        raise InputError(f"{run_dir} has {len(several)} sets that differ only in their seed ({listed}): name one set")
    return several[0] if several else folders


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format a table for a terminal."""
    return align_columns(rows, right=range(1, len(rows[0])))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    heading, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, f"|{'---|' * len(rows[0])}", *rest])


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
