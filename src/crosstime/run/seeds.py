"""The quality of several runs of one comparison, which differ in their seed only, as one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from crosstime import artifact
from crosstime.analysis.matching import stability
from crosstime.analysis.numbers import finite
from crosstime.analysis.quality import Quality
from crosstime.analysis.seeds import PER_CHECKPOINT, QUALITIES, OverSeeds, over_seeds
from crosstime.crosscoder.crosscoder import Crosscoder

SEED = "training.seed"
_DIGITS = {"l0": 2, "dead": 1, "explained_variance": 4, "delta_ce": 4, "loss_recovered": 4}
_LABELS = {
    "l0": "L0",
    "dead": "dead features",
    "explained_variance": "explained variance",
    "delta_ce": "added loss (nats)",
    "loss_recovered": "loss recovered",
}


@dataclass(frozen=True)
class SeedTable:
    """Quality over the seeds of one comparison."""

    seeds: list[int]
    quality: OverSeeds
    stability: float | None
    """Mean cosine of matched features (see `matching.stability`), where it was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Unrounded: for every quality its mean and std, by checkpoint name where it is per checkpoint."""
        mean, std = self.quality.mean, self.quality.std
        numbers: dict[str, Any] = {name: {"mean": float(mean[name]), "std": float(std[name])} for name in QUALITIES[:2]}
        for name in PER_CHECKPOINT:
            triples = zip(self.quality.checkpoints, mean[name].tolist(), std[name].tolist(), strict=True)
            numbers[name] = {checkpoint: {"mean": m, "std": s} for checkpoint, m, s in triples}
        return finite({"seeds": self.seeds, **numbers, "stability": self.stability})

    def rows(self) -> list[list[str]]:
        """Cells for people, a heading first: mean ± standard deviation."""
        mean, std = self.quality.mean, self.quality.std
        rows = [[f"{len(self.seeds)} seeds", *self.quality.checkpoints]]
        for name in QUALITIES:
            pairs = zip(np.atleast_1d(mean[name]), np.atleast_1d(std[name]), strict=True)
            cells = [f"{m:.{_DIGITS[name]}f} ± {s:.{_DIGITS[name]}f}" for m, s in pairs]
            rows.append([_LABELS[name], *cells])
        if self.stability is not None:
            rows.append(["matched features, cosine", f"{self.stability:.3f}"])
        return [row + [""] * (len(rows[0]) - len(row)) for row in rows]


def seed_table(run_dirs: Sequence[Path], *, match: bool = False) -> SeedTable:
    """Read the evaluations of several runs.

    Args:
        run_dirs: run folders, evaluated, that differ in `training.seed` and in nothing that the numbers depend on.
        match: also match their features.

    Raises:
        ValueError: fewer than two runs; one that is not evaluated, or not since its crosscoder was trained, or whose
            crosscoder was imported; two of one seed; two that are not one comparison: the first difference is named.
    """
    if len(run_dirs) < 2:
        raise ValueError(f"a table over seeds needs at least 2 run folders; got {len(run_dirs)}")
    facts = [_facts(run_dir) for run_dir in run_dirs]
    seeds = [of_run.pop(SEED) for of_run in facts]
    for run_dir, of_run in zip(run_dirs[1:], facts[1:], strict=True):
        for name in dict.fromkeys(chain(facts[0], of_run)):
            ours, theirs = facts[0].get(name), of_run.get(name)
            if ours != theirs:
                raise ValueError(
                    f"{run_dirs[0]} and {run_dir} are not one comparison: {name} is {_shown(ours)} in the first and "
                    f"{_shown(theirs)} in the second; only {SEED} may differ"
                )
    for n, seed in enumerate(seeds):
        if seed in seeds[:n]:
            raise ValueError(f"{run_dirs[seeds.index(seed)]} and {run_dirs[n]} both have {SEED} {seed}")
    quality = over_seeds([Quality.load(run_dir / "evaluation") for run_dir in run_dirs])
    crosscoders = [Crosscoder.from_pretrained(run_dir / "crosscoder") for run_dir in run_dirs] if match else []
    return SeedTable(seeds, quality, stability(crosscoders) if match else None)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a text."""
    heading, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, f"|{'---|' * len(rows[0])}", *rest])


def _facts(run_dir: Path) -> dict[str, Any]:
    """All that a run's quality depends on; what a reader knows best stands first."""
    trained, evaluated = (artifact.read_manifest(run_dir / folder) for folder in ("crosscoder", "evaluation"))
    if trained is None or evaluated is None or evaluated.inputs.get("crosscoder") != trained.content:
        raise ValueError(f"{run_dir} holds no evaluation of its crosscoder: run `crosstime evaluate {run_dir}` first")
    if SEED not in trained.settings:
        raise ValueError(f"{run_dir} imported its crosscoder: a table over seeds needs runs that trained theirs")
    for folder in ("crosscoder", "evaluation"):
        artifact.verify(run_dir / folder)
    config = json.loads((run_dir / "crosscoder" / "config.json").read_text(encoding="utf-8"))
    made_for = {name: config[name] for name in ("checkpoints", "layer", "features", "sparsity", "positions", "weights")}
    settings = {**evaluated.settings, **trained.settings}
    # Those of [crosscoder] stand in its own configuration, where the default layer is filled in.
    return made_for | {name: value for name, value in settings.items() if not name.startswith("crosscoder.")}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
