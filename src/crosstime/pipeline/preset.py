"""Presets: what a run can begin with, and what each will cost.

The run.toml of a preset is put together from parts in `presets/`: its model with text and tasks, a sparsity rule, and
the other settings. So an experiment over families, comparisons, rules and seeds is a row of a table here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from crosstime.base.errors import InputError, nearest
from crosstime.base.units import align_columns, format_bytes, format_duration, format_tokens
from crosstime.crosscoder.sparsity.rules import Sparsity
from crosstime.models.shape import ModelShape
from crosstime.pipeline import toml
from crosstime.pipeline.config import RunConfig
from crosstime.pipeline.estimate import H100, estimate

SEED = 124
"""The seed by which the paper interprets its crosscoders; 153 and 6582 are its others."""


@dataclass(frozen=True)
class Preset:
    """What a preset begins with."""

    repo: str
    layer: int
    shape: ModelShape
    """Of every checkpoint."""
    weight_bytes: int
    """Of one weight, as the repository stores it."""
    checkpoints: tuple[str, ...]
    parts: tuple[str, ...]
    """Files of `presets/`, without their ending, in the order in which they make up a run.toml."""
    rules: tuple[str, ...]
    """Sparsity rules to choose from; the first is taken where the user names none."""

    @property
    def download(self) -> int:
        """Bytes of the checkpoints' weights on the hub."""
        return len(self.checkpoints) * self.shape.parameters * self.weight_bytes if self.repo else 0


_PAPER = ("l1", "batchtopk")


def _family(
    name: str, repo: str, layer: int, shape: ModelShape, weight_bytes: int, comparisons: dict[str, list[str]]
) -> dict[str, Preset]:
    """The paper's crosscoders over one model: a comparison is named by the tokens that its checkpoints have seen."""
    return {
        f"{name}-{comparison}": Preset(
            repo, layer, shape, weight_bytes, tuple(steps), ("header", name, "paper"), _PAPER
        )
        for comparison, steps in comparisons.items()
    }


_OLMO = {
    "2B": "step1000-tokens2B",
    "4B": "step2000-tokens4B",
    "33B": "step16000-tokens33B",
    "287B": "step137000-tokens287B",
    "3048B": "step1454000-tokens3048B",
}

_SNAPSHOTS = (
    *(0, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    *range(1000, 10_001, 1000),
    *(14_000, 20_000, 27_000, 34_000, 47_000, 60_000, 74_000, 87_000, 100_000, 114_000, 127_000, 143_000),
)

PRESETS: dict[str, Preset] = {
    "demo": Preset(
        repo="",
        layer=3,
        shape=ModelShape(layers=6, width=128, vocabulary=4096, block=198_272, parameters=2_238_464),
        weight_bytes=2,
        checkpoints=("step64", "step128", "step256", "step512", "step1000", "step2000", "step3000", "step3786"),
        parts=("demo",),
        rules=("l1",),
    ),
    **_family(
        "pythia-1b",
        repo="EleutherAI/pythia-1b",
        layer=8,
        shape=ModelShape(layers=16, width=2048, vocabulary=50_304, block=50_358_272, parameters=1_011_781_632),
        weight_bytes=2,
        comparisons={
            "128M-1B": ["step64", "step512"],
            "1B-4B": ["step512", "step2000"],
            "4B-286B": ["step2000", "main"],
            "1B-4B-286B": ["step512", "step2000", "main"],
        },
    ),
    **_family(
        "olmo-1b",
        repo="allenai/OLMo-1B-0724-hf",
        layer=8,
        shape=ModelShape(layers=16, width=2048, vocabulary=50_304, block=67_108_864, parameters=1_279_787_008),
        weight_bytes=4,
        comparisons={
            comparison: [_OLMO[tokens] for tokens in comparison.split("-")]
            for comparison in ("2B-4B", "4B-33B", "33B-3048B", "33B-287B", "287B-3048B", "4B-33B-3048B")
        },
    ),
    **_family(
        "bloom-1b1",
        repo="bigscience/bloom-1b1-intermediate",
        layer=12,
        shape=ModelShape(layers=24, width=1536, vocabulary=250_880, block=28_331_520, parameters=1_065_314_304),
        weight_bytes=2,
        comparisons={
            "550M-6B": ["global_step1000", "global_step10000"],
            "6B-55B": ["global_step10000", "global_step100000"],
            "55B-341B": ["global_step100000", "main"],
            "6B-55B-341B": ["global_step10000", "global_step100000", "main"],
        },
    ),
    # Ge et al. 2025, arXiv 2509.17196.
    "pythia-160m-32": Preset(
        repo="EleutherAI/pythia-160m",
        layer=6,
        shape=ModelShape(layers=12, width=768, vocabulary=50_304, block=7_087_872, parameters=162_322_944),
        weight_bytes=2,
        checkpoints=tuple(f"step{step}" for step in _SNAPSHOTS),
        parts=("header", "pythia-160m"),
        rules=("jumprelu",),
    ),
}


def text(name: str, rule: str | None = None, seed: int = SEED) -> str:
    """The run.toml of a preset.

    Args:
        name: of the preset.
        rule: its sparsity rule; None for the preset's first.
        seed: of its training.

    Raises:
        InputError: there is no such preset, or it has no such rule, or the seed is negative.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}{nearest(name, PRESETS)}")
    if seed < 0:
        raise InputError(f"the seed must not be negative; got {seed}")
    preset = PRESETS[name]
    rule = preset.rules[0] if rule is None else rule
    if rule not in preset.rules:
        raise InputError(f"preset {name} has no rule {rule!r}: it has {' and '.join(preset.rules)}")
    values = {
        "repo": preset.repo,
        "sparsity": _part(rule),
        "checkpoints": _listed(preset.checkpoints),
        "layer": preset.layer,
        "decoder_norm": Sparsity.from_dict({"rule": rule}).initial_decoder_norm,
        "seed": seed,
        "title": f"{name}, {rule}, seed {seed}",
    }
    return Template("\n".join(map(_part, preset.parts))).substitute(values)


def settings(name: str, rule: str | None = None, seed: int = SEED) -> RunConfig:
    """The configuration of a preset; arguments and errors as of `text`."""
    return toml.build(RunConfig, tomllib.loads(text(name, rule, seed)))


def table() -> str:
    """All presets with their costs, for a terminal."""
    return f"{align_columns([_HEADER, *map(_row, PRESETS)], right=range(1, 8))}\n\n{_NOTES}"


_HEADER = ("preset", "checkpoints", "layer", "features", "tokens", "GPU time", "GPU memory", "download", "rules")

_NOTES = f"""\
Tokens are those that every checkpoint reads. GPU time is an estimate for the training alone, with no wait for text, on
{H100}.
`crosstime new PRESET RUN_DIR --rule RULE --seed N` writes a run.toml (without options: the first rule, seed {SEED});
`crosstime plan RUN_DIR` checks it and predicts what it takes on this machine."""


def _row(name: str) -> tuple[str, ...]:
    preset, config = PRESETS[name], settings(name)
    costs = estimate([config], preset.shape)
    return (
        name,
        str(config.selection.size),
        str(preset.layer),
        f"{config.crosscoder.features:,}",
        format_tokens(costs.tokens_read),
        format_duration(costs.seconds),
        format_bytes(costs.memory),
        format_bytes(preset.download) if preset.download else "none",
        ", ".join(preset.rules),
    )


def _part(name: str) -> str:
    return (files("crosstime.pipeline") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def _listed(checkpoints: Sequence[str]) -> str:
    """A list in TOML: on one line, or several where it is long."""
    quoted = [json.dumps(checkpoint) for checkpoint in checkpoints]
    if len(quoted) <= 8:
        return f"[{', '.join(quoted)}]"
    lines = [f"  {', '.join(quoted[start : start + 8])}," for start in range(0, len(quoted), 8)]
    return "\n".join(["[", *lines, "]"])
