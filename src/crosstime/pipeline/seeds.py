"""The quality of several crosscoders of one comparison, which differ in their seed only, as one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from crosstime.base import artifact
from crosstime.base.errors import InputError
from crosstime.base.units import align_columns, jsonable
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.matching import stability
from crosstime.evaluation.quality import Quality
from crosstime.evaluation.seeds import PER_CHECKPOINT, QUALITIES, OverSeeds, over_seeds
from crosstime.pipeline import config

TRAINING_SEED, START_SEED = "training.seed", "crosscoder.seed"
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
        return jsonable({"seeds": self.seeds, **numbers, "stability": self.stability})

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


def seed_table(places: Sequence[Path], *, match: bool = False) -> SeedTable:
    """Read the evaluations of several crosscoders.

    Args:
        places: run folders, or RUN_DIR/NAME for one of several crosscoders, all evaluated, that differ in
            `training.seed` or `crosscoder.seed` and in nothing else that the numbers depend on. A single run folder
            stands for those of its crosscoders that do.
        match: also match their features.

    Raises:
        InputError: fewer than two crosscoders; one that is not evaluated, or not since it was trained, or that was
            imported; two of one seed; two that are not one comparison: the first difference is named.
    """
    places = _alike(places[0]) if len(places) == 1 else [_one(place) for place in places]
    if len(places) < 2:
        raise InputError(f"a table over seeds needs at least 2 crosscoders; got {len(places)}")
    evaluated = [_evaluated(place) for place in places]
    first, *others = evaluated
    for other in others:
        if (name := first.differs_in(other)) is not None:
            raise InputError(
                f"{first.place} and {other.place} are not one comparison: {name} is {_shown(first.facts.get(name))} in "
                f"the first and {_shown(other.facts.get(name))} in the second; only {TRAINING_SEED} and {START_SEED} "
                "may differ"
            )
    for one, other in combinations(evaluated, 2):
        if one.seeds == other.seeds:
            raise InputError(f"{one.place} and {other.place} both have the same seeds, {one.seeds}")
    quality = over_seeds([Quality.load(place / "evaluation") for place in places])
    crosscoders = [Crosscoder.from_pretrained(place / "crosscoder") for place in places] if match else []
    return SeedTable(_told(evaluated), quality, stability(crosscoders) if match else None)


@dataclass(frozen=True)
class _Evaluated:
    """A crosscoder whose quality was measured."""

    place: Path
    seeds: tuple[int, int]
    """That of the training, and that of the start values."""
    facts: dict[str, Any]
    """All else that its quality depends on; what a reader knows best stands first."""

    def differs_in(self, other: _Evaluated) -> str | None:
        """The first fact that another has otherwise."""
        names = dict.fromkeys(chain(self.facts, other.facts))
        return next((name for name in names if self.facts.get(name) != other.facts.get(name)), None)


def _told(evaluated: Sequence[_Evaluated]) -> list[int]:
    """The seeds for the table: those of the start values, unless only those of the training tell all apart."""
    training, start = ([each.seeds[n] for each in evaluated] for n in (0, 1))
    return training if len(set(start)) < len(start) else start


def _one(place: Path) -> Path:
    """The folder of the one crosscoder that a place means.

    Raises:
        InputError: it means several, or the run has none of this name.
    """
    if not config.is_of_run(place):
        return place
    run_dir, configs = config.find(place)
    return run_dir / config.only(place, configs).crosscoder.name


def _alike(run_dir: Path) -> list[Path]:
    """The crosscoders of a run that differ in their seed only.

    Raises:
        InputError: there are several sets of such, or none.
    """
    if not (run_dir / config.FILE).is_file():
        return [run_dir]
    places = [run_dir / each.crosscoder.name for each in config.load(run_dir)]
    sets: list[list[_Evaluated]] = []
    for each in map(_evaluated, places):
        known = next((alike for alike in sets if alike[0].differs_in(each) is None), None)
        if known is None:
            sets.append([each])
        else:
            known.append(each)
    found = [[each.place for each in alike] for alike in sets if len(alike) > 1]
    if len(found) > 1:
        listed = "; ".join(", ".join(place.name for place in alike) for alike in found)
        raise InputError(f"{run_dir} has {len(found)} sets that differ in their seed only ({listed}): name one set")
    return found[0] if found else places


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    return align_columns(rows, right=range(1, len(rows[0])))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a text."""
    heading, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, f"|{'---|' * len(rows[0])}", *rest])


def _evaluated(place: Path) -> _Evaluated:
    trained, evaluated = (artifact.read_manifest(place / folder) for folder in ("crosscoder", "evaluation"))
    if trained is None or evaluated is None or evaluated.inputs.get("crosscoder") != trained.content:
        run_dir = place.parent if (place.parent / config.FILE).is_file() else place
        raise InputError(
            f"{place} holds no evaluation of its crosscoder: `crosstime run {run_dir} --until evaluate` computes it"
        )
    if TRAINING_SEED not in trained.settings:
        raise InputError(f"{place} imported its crosscoder: a table over seeds needs runs that trained theirs")
    for folder in ("crosscoder", "evaluation"):
        artifact.verify(place / folder)
    own = json.loads((place / "crosscoder" / "config.json").read_text(encoding="utf-8"))
    made_for = {name: own[name] for name in ("checkpoints", "layer", "features", "sparsity", "positions", "weights")}
    settings = {**evaluated.settings, **trained.settings}
    seed, start = settings.pop(TRAINING_SEED), settings.pop(START_SEED, None)
    # Those of [crosscoder] stand in its own configuration, where the default layer is filled in.
    facts = made_for | {name: value for name, value in settings.items() if not name.startswith("crosscoder.")}
    return _Evaluated(place, (seed, seed if start is None else start), facts)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
