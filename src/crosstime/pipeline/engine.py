"""Stages: what each reads, whether its artifact is up to date, and computing it again if it isn't."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from crosstime.base import artifact
from crosstime.base.errors import InputError
from crosstime.base.memory import release
from crosstime.base.registry import Registry
from crosstime.pipeline import toml
from crosstime.pipeline.plugins import code_hashes


@dataclass(frozen=True)
class Workspace:
    """A run folder and its configuration: what every stage is given.

    Several may share a run folder: each artifact is one's own, or all have it at the same place.
    """

    folder: Path
    """The run folder."""
    config: Any
    """A dataclass of sections, as run.toml states them."""

    def folder_of(self, artifact: str) -> Path:
        """Where an artifact is, of which `artifact` is the folder's name."""
        return self.folder / artifact


W = TypeVar("W", bound=Workspace)


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def _no_code(_: Any) -> tuple[Any, ...]:
    return ()


def _unchanged(stage: Stage[W], _: Any) -> Stage[W]:
    return stage


def _nothing_to_settle(_: Any) -> None:
    pass


def _no_seconds(_: Any) -> float:
    return 0.0


@dataclass(frozen=True)
class Workload(Generic[W]):
    """How much work a stage is: what `crosstime plan` needs to predict it (see `measure`)."""

    unit: str
    """What the work is counted in, in the plural: "blocks"."""
    units: Callable[[W], float]
    """Number of units under the workspace's settings; the time of the stage grows linearly with it."""
    shrink: Callable[[W, int], Any]
    """Settings under which the stage does little work, in proportion to a size from 1 up; they are timed."""
    advice: Callable[[W], str]
    """What makes the stage shorter, for people; the workspace is one in which it was timed."""
    loads: Callable[[W], int] = lambda _: 0
    """Number of checkpoints that the stage loads first."""
    memory: Callable[..., Any] | None = None
    """What it holds in memory: an `estimate.Memory`, from the configurations and the shape of the checkpoints."""


@dataclass(frozen=True)
class Stage(Generic[W]):
    """One step of the way from checkpoints to the report; it writes one artifact folder."""

    name: str
    """What the user calls it."""
    folder: str
    """The name of the artifact's folder; `Workspace.folder_of` says where it is."""
    doing: str
    """What it does, for the line that announces it."""
    settings: tuple[str, ...]
    """The sections of run.toml, or keys in them ("text.context"), that its result depends on."""
    inputs: tuple[str, ...]
    """The artifacts that it reads, by folder, or by folder and file where one file is all it reads."""
    work: Callable[[W, Path], None]
    """Computes the artifact's files into a new folder."""
    together: Callable[[Sequence[W], Sequence[Path]], None] | None = None
    """Does the work for several workspaces at once, where that is cheaper than one by one."""
    facts: Callable[[W], Mapping[str, Any]] = _nothing
    """What its result depends on besides: hashes of the user's files."""
    settle: Callable[[W], None] = _nothing_to_settle
    """Called whenever the artifact stands, new or old: checks what else must hold of it, and tidies up."""
    seconds_before: Callable[[W], float] = _no_seconds
    """Wall time of the unfinished attempts that `work` would go on from."""
    workload: Workload[W] | None = None
    """How much work it is; None if `crosstime plan` can't predict it."""
    code: Callable[[W], Iterable[Any]] = _no_code
    """Values of registries that it uses; if a plugin defines one, the plugin's code counts as a setting."""
    variant: Callable[[Stage[W], Any], Stage[W]] = _unchanged
    """The stage as a configuration needs it: with other inputs, say."""
    shared: bool = False
    """Whether all crosscoders of a run folder share the artifact, because it doesn't depend on any."""
    scratch: tuple[str, ...] = ()
    """Other names that it uses in the run folder, for unfinished work."""


STAGES: Registry[Stage[Any]] = Registry("stage")
"""All stages. A plugin may add its own."""


def stages_for(config: Any) -> tuple[Stage[Any], ...]:
    """Return the registered stages as a configuration needs them, each after the stages whose artifacts it reads.

    Raises:
        InputError: Stages read each other's artifacts in a circle.
    """
    left = [stage.variant(stage, config) for stage in STAGES]
    ordered: list[Stage[Any]] = []
    while left:
        waiting = {stage.folder for stage in left}
        ready = [stage for stage in left if not waiting & {_folder_of(name) for name in stage.inputs}]
        if not ready:
            raise InputError(f"the stages {', '.join(stage.name for stage in left)} need each other's artifacts")
        ordered.append(ready[0])
        left.remove(ready[0])
    return tuple(ordered)


@dataclass(frozen=True)
class State:
    """How an artifact stands to what it was made from."""

    status: Literal["missing", "stale", "done"]
    reason: str = ""
    """Why it is stale, for people."""


def state(workspace: W, stage: Stage[W]) -> State:
    """Compares a stage's artifact with the present settings, files and inputs.

    Raises:
        InputError, OSError: a file that the stage depends on cannot be read, or a manifest is damaged.
    """
    manifest = artifact.read_manifest(workspace.folder_of(stage.folder))
    if manifest is None:
        return State("missing")
    for now, then in (
        (_settings(workspace, stage), manifest.settings),
        (_inputs(workspace, stage), manifest.inputs),
    ):
        changed = [name for name in {**then, **now} if now.get(name) != then.get(name)]
        if changed:
            return State("stale", f"{', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} changed")
    return State("done")


def states(workspace: W, stages: Sequence[Stage[W]]) -> dict[str, State]:
    """The state of every stage; one that reads something stale or missing is itself stale."""
    found: dict[str, State] = {}
    by_folder = {stage.folder: stage.name for stage in stages}
    for stage in stages:
        own = _state_or_reason(workspace, stage)
        read = [by_folder[folder] for folder in map(_folder_of, stage.inputs) if folder in by_folder]
        undone = [name for name in read if found[name].status != "done"]
        if own.status == "done" and undone:
            own = State("stale", f"{undone[0]} comes first")
        found[stage.name] = own
    return found


def bring_up_to_date(
    workspaces: Sequence[W], stages: Sequence[Stage[W]], say: Callable[[str], None], *, last: str | None = None
) -> None:
    """Does every stage that is out of date, in order: one workspace after the other, but for what they do together.

    Args:
        workspaces: of one run folder, which is held by this process (see `lock`).
        stages: in an order in which each comes after its inputs.
        say: takes a line that tells the user what happens.
        last: do only this stage and those that it reads from; None for all.

    Raises:
        InputError: bad input, or an artifact that is up to date but damaged.
    """
    for folder in {workspace.folder_of(stage.folder).parent for workspace in workspaces for stage in stages}:
        artifact.sweep(folder)
    seen: set[Path] = set()
    for workspace in workspaces:
        for stage in _needed(stages, last):
            group = workspaces if stage.together else [workspace]
            if workspace.folder_of(stage.folder) not in seen:
                _bring_up_to_date(group, stage, say)
            seen |= {each.folder_of(stage.folder) for each in group}


def _bring_up_to_date(workspaces: Sequence[W], stage: Stage[W], say: Callable[[str], None]) -> None:
    undone: list[W] = []
    for workspace in workspaces:
        now, place = state(workspace, stage), workspace.folder_of(stage.folder)
        title = stage.name if place.parent == workspace.folder else f"{stage.name} {place.parent.name}"
        if now.status == "done":
            artifact.verify(place)
            say(f"{title}: up to date")
        else:
            say(f"{title}: {stage.doing}" + (f" ({now.reason})" if now.reason else ""))
            undone.append(workspace)
    if undone:
        _do(undone, stage)
    for workspace in workspaces:
        stage.settle(workspace)


def _do(workspaces: Sequence[W], stage: Stage[W]) -> None:
    with ExitStack() as stack:
        drafts = [
            stack.enter_context(
                artifact.writing(
                    workspace.folder_of(stage.folder),
                    settings=_settings(workspace, stage),
                    inputs=_inputs(workspace, stage),
                    seconds_before=stage.seconds_before(workspace),
                )
            )
            for workspace in workspaces
        ]
        if stage.together and len(workspaces) > 1:
            stage.together(workspaces, drafts)
        else:
            stage.work(workspaces[0], drafts[0])
    release()


def _needed(stages: Sequence[Stage[W]], last: str | None) -> list[Stage[W]]:
    """The stages that `last` reads from, directly or not, and itself; in order."""
    if last is None:
        return list(stages)
    folders: set[str] = set()
    needed = []
    for stage in reversed(stages):
        if stage.name == last or stage.folder in folders:
            needed.append(stage)
            folders |= {_folder_of(name) for name in stage.inputs}
    return needed[::-1]


def _state_or_reason(workspace: W, stage: Stage[W]) -> State:
    try:
        return state(workspace, stage)
    except (ValueError, OSError) as error:
        return State("stale", str(error))


def _settings(workspace: W, stage: Stage[W]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    values: list[Any] = [stage.work, *stage.code(workspace)]
    for name in stage.settings:
        value = toml.lookup(workspace.config, name)
        values.append(value)
        found |= toml.flatten(value, name)
    return found | dict(stage.facts(workspace)) | code_hashes(values)


def _inputs(workspace: W, stage: Stage[W]) -> dict[str, str]:
    return {name: _content(workspace, name) for name in stage.inputs}


def _content(workspace: Workspace, name: str) -> str:
    """The hash of an artifact or of one file in it, as its manifest states it; empty where there is none."""
    folder, _, file = name.partition("/")
    manifest = artifact.read_manifest(workspace.folder_of(folder))
    if manifest is None:
        return ""
    return manifest.files.get(file, "") if file else manifest.content


def _folder_of(name: str) -> str:
    return name.partition("/")[0]
