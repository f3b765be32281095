"""run.toml: the whole configuration of a run, one dataclass a section.

A new setting is a new field here; the loader, its error messages and what makes an artifact stale follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from crosstime.attribution.ablation import AblationConfig
from crosstime.attribution.effects import AttributionConfig
from crosstime.base.device import ComputeConfig
from crosstime.base.errors import InputError, SettingError, nearest
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.crosscoder.sparsity.rules import L1, Sparsity
from crosstime.evaluation.contexts import ContextsConfig
from crosstime.evaluation.diagnostics import DiagnosticsConfig
from crosstime.evaluation.quality import EvaluationConfig
from crosstime.evaluation.survey import SelectionConfig, SurveyConfig
from crosstime.models.suite import SuiteConfig
from crosstime.pipeline import toml
from crosstime.pipeline.plugins import load_plugins
from crosstime.tasks.task_config import TaskConfig
from crosstime.text.positions import Positions
from crosstime.text.tokenise import TextConfig
from crosstime.training.config import CrosscoderSpec, TrainConfig, check_seed

FILE = "run.toml"
RESOLVED = "resolved.toml"
ERROR_LOG = "error.log"


def _at_least(least: int, section: str, **values: int) -> None:
    """Raise InputError for the first of a section's settings that is below `least`."""
    for key, value in values.items():
        if value < least:
            raise InputError(f"{section}.{key} must be at least {least}, not {value}")


@dataclass(frozen=True)
class CrosscoderSection:
    """[crosscoder], or one of several [[crosscoder]]: where it reads the models, its size; or an existing one."""

    name: str = field(default="", metadata=ASIDE)
    """Name of the crosscoder, and of the folder of its artifacts; required if there are several. Without a name its
    artifacts lie in the run folder itself."""
    from_: str | None = None
    """Use this crosscoder instead of training one: a folder, relative to run.toml, or a repository of the hub, in any
    format that `crosstime import` reads. `features`, `seed`, [sparsity] and [training] are ignored then."""
    layer: int | None = None
    """Read the output of this block, counted from 0; by default of the middle one."""
    features: int = CrosscoderSpec.features
    """F, the number of features."""
    seed: int | None = None
    """Seed of the initial weights; by default training.seed."""
    sparsity: Sparsity | None = None
    """Its sparsity rule; by default that of [sparsity]."""

    def __post_init__(self) -> None:
        check_at_least(1, features=self.features)
        check_at_least(0, layer=self.layer)
        check_seed("seed", self.seed)
        plain = self.name.isprintable() and self.name == self.name.strip() and not set(self.name) & set("/\\")
        if not plain or self.name.startswith((".", "-")):
            raise SettingError(
                "name",
                f"{self.name!r} isn't a valid folder name: it may not contain '/' or start with '.', '-' or a space",
            )

    def layer_of(self, n_layers: int) -> int:
        """Return the block to read: the configured one, or the middle one (8 of 16, as in arXiv 2509.05291)."""
        return n_layers // 2 if self.layer is None else self.layer


@dataclass(frozen=True)
class ReportConfig:
    """[report]: what the pages show."""

    title: str = ""
    """Heading of the report; without it the folder's name."""


@dataclass(frozen=True)
class RunConfig:
    """run.toml with one crosscoder. If it has several, each gets a RunConfig: what it would be with that one alone."""

    suite: SuiteConfig
    text: TextConfig
    task: tuple[TaskConfig, ...]
    plugins: tuple[str, ...] = ()
    """Python files (relative to run.toml) and modules that add rules, pair sources, stages ... (docs/extending.md)."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    positions: Positions = field(default_factory=Positions)
    survey: SurveyConfig = field(default_factory=SurveyConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    sparsity: Sparsity = field(default_factory=L1)
    crosscoder: CrosscoderSection = CrosscoderSection()
    training: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    contexts: ContextsConfig = field(default_factory=ContextsConfig)
    report: ReportConfig = ReportConfig()

    def __post_init__(self) -> None:
        names = [task.name for task in self.task]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two tasks are called {name!r}: each [[task]] needs its own name")
        if not any(task.attribute for task in self.task):
            raise InputError("at least one [[task]] must have `attribute = true` (which is the default)")
        _ = self.spec

    @property
    def spec(self) -> CrosscoderSpec:
        """What is trained.

        Raises:
            InputError: The sparsity rule doesn't fit the number of features, or can't be trained.
        """
        return CrosscoderSpec(self.crosscoder.features, self.sparsity, self.crosscoder.seed)

    @property
    def start_seed(self) -> int:
        """Seed of the initial weights."""
        return self.training.seed if self.crosscoder.seed is None else self.crosscoder.seed


def interpret(table: Mapping[str, Any]) -> tuple[RunConfig, ...]:
    """Build the configuration of each crosscoder from the table of a run.toml.

    Raises:
        InputError: A key, a value or a combination of them is wrong.

    Example:
        >>> task = {"name": "agreement", "pairs": {"source": "blimp", "sets": ["distractor"]}}
        >>> table = {"suite": {"demo": True}, "text": {"demo": True}, "task": [task]}
        >>> (config,) = interpret(table | {"crosscoder": {"features": 512}})
        >>> config.crosscoder.features
        512
    """
    common = toml.build(RunConfig, {key: value for key, value in table.items() if key != "crosscoder"})
    hint = CrosscoderSection | tuple[CrosscoderSection, ...]
    sections = toml.convert(hint, table.get("crosscoder", {}), "", "crosscoder")
    sections = sections if isinstance(sections, tuple) else (sections,)
    _check_several(sections)
    layer = next((section.layer for section in sections if section.layer is not None), None)
    return tuple(_config(common, section, layer) for section in sections)


def _config(common: RunConfig, section: CrosscoderSection, layer: int | None) -> RunConfig:
    seed = None if section.seed == common.training.seed else section.seed
    crosscoder = replace(section, layer=layer, seed=seed, sparsity=None)
    try:
        return replace(common, crosscoder=crosscoder, sparsity=section.sparsity or common.sparsity)
    except InputError as error:
        raise InputError(f"crosscoder {section.name!r}: {error}" if section.name else str(error)) from None


def _check_several(sections: Sequence[CrosscoderSection]) -> None:
    if not sections:
        raise InputError("crosscoder is an empty list: leave it out, or write [[crosscoder]] above each")
    if len(sections) == 1:
        return
    names = [section.name for section in sections]
    for n, section in enumerate(sections, 1):
        if not section.name:
            raise InputError(f"[crosscoder {n}] needs a `name`, since there are several")
        if names.count(section.name) > 1:
            raise InputError(f"two crosscoders are called {section.name!r}: each [[crosscoder]] needs its own name")
        if section.from_:
            raise InputError(
                f"crosscoder {section.name!r}: `from` works only for a single crosscoder; give it its own run folder"
            )
    layers = {section.layer: section.name for section in sections if section.layer is not None}
    if len(layers) > 1:
        (one, name), (other, other_name), *_ = layers.items()
        raise InputError(
            f"crosscoder {name!r} has layer {one} and {other_name!r} layer {other}, but several are trained on the "
            "activations of one layer; give the other its own run folder"
        )


def load(run_dir: Path, settings: Mapping[str, Any] | None = None) -> tuple[RunConfig, ...]:
    """Read the configuration of each crosscoder of a run folder.

    Args:
        run_dir: A run folder.
        settings: Values to use in place of run.toml's, by section and key: `{"training.lr": 1e-3}` (see
            `toml.override`).

    Raises:
        InputError: There is no such folder, no run.toml in it, a plugin fails, or the file is wrong (see `toml.read`).
    """
    if not run_dir.is_dir():
        raise InputError(
            f"there is no folder {run_dir}{_similar(run_dir)}: make one with `crosstime new demo {run_dir}`"
        )
    if not (run_dir / FILE).is_file():
        if (run_dir.parent / FILE).is_file():
            raise InputError(f"{run_dir} is a part of a run, whose stages are done together: name {run_dir.parent}")
        raise InputError(f"{run_dir} holds no {FILE}: make one with `crosstime new demo {run_dir}`")

    def make(table: Mapping[str, Any]) -> tuple[RunConfig, ...]:
        names = table.get("plugins", ())
        load_plugins(names if isinstance(names, list) else (), run_dir)
        return interpret(table)

    return toml.read(run_dir / FILE, make, settings)


def find(place: Path, settings: Mapping[str, Any] | None = None) -> tuple[Path, tuple[RunConfig, ...]]:
    """Return a run folder and the configurations of its crosscoders: RUN_DIR means all of them, RUN_DIR/NAME one.

    Raises:
        InputError: as for `load`, or the run has no crosscoder of this name.
    """
    run_dir = place.parent
    if (place / FILE).is_file() or not (run_dir / FILE).is_file():
        return place, load(place, settings)
    known = {config.crosscoder.name: config for config in load(run_dir, settings)}
    if place.name not in known:
        named = [name for name in known if name]
        hint = f"{nearest(place.name, named)} of {', '.join(named)}" if named else ", and its only one has no name"
        raise InputError(f"{run_dir} has no crosscoder {place.name!r}{hint}")
    return run_dir, (known[place.name],)


def is_of_run(place: Path) -> bool:
    """Whether a place is a run folder, or RUN_DIR/NAME, as far as can be told: a name may be mistyped."""
    if (place / FILE).is_file() or not (place.parent / FILE).is_file():
        return (place / FILE).is_file()
    return not place.exists() or place.name in [each.crosscoder.name for each in load(place.parent)]


def only(place: Path, configs: Sequence[RunConfig]) -> RunConfig:
    """The configuration of the one crosscoder that a place means (see `find`).

    Raises:
        InputError: it means several.
    """
    if len(configs) > 1:
        names = ", ".join(config.crosscoder.name for config in configs)
        first = place / configs[0].crosscoder.name
        raise InputError(f"{place} has several crosscoders: name one ({names}), as in {first}")
    return configs[0]


def resolved(config: RunConfig, settings: Mapping[str, Any] | None = None) -> str:
    """Return the text of a run.toml with every value, defaults included.

    Args:
        config: Of one crosscoder.
        settings: Values that `load` took in place of run.toml's; a comment names them.
    """
    changed = f"# Set for this run, in place of {FILE}: {', '.join(settings)}.\n" if settings else ""
    header = f"# Every value of this run, defaults included. Written by crosstime: edit {FILE} instead.\n"
    return f"{header}{changed}\n{toml.write(config)}"


def _similar(run_dir: Path) -> str:
    """The folder beside a mistyped one that was probably meant."""
    parent = run_dir.parent
    runs = [path.name for path in parent.iterdir() if (path / FILE).is_file()] if parent.is_dir() else []
    match = get_close_matches(run_dir.name, runs, n=1)
    return f"; did you mean {parent / match[0]}? Otherwise" if match else ""
