"""The command line: one thin function per command.

Exit codes: 0 success, 2 bad input (one line on stderr says what and where), 1 an internal error, 130 interrupted. What
a command was asked for goes to stdout; everything else goes to stderr.
"""

from __future__ import annotations

import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from crosstime.base import artifact
from crosstime.base.errors import InputError, describe, first_line, nearest
from crosstime.base.terminal import INTERRUPTED, echo, interruptible, own_stderr, silence_libraries

if TYPE_CHECKING:
    from crosstime.pipeline.run import Run

STDOUT = 1
OK, INTERNAL_ERROR, BAD_INPUT = 0, 1, 2

Flag = tyro.conf.FlagCreatePairsOff[bool]
RunDir = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]]
RunOrOne = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR[/NAME]")]]
OutDir = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT_DIR")]]
Source = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
Settings = tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="SECTION.KEY=VALUE")]]


def demo(out: Path = Path("runs/demo")) -> None:
    """Run the full pipeline on the bundled checkpoints.

    Args:
        out: Folder of the run.
    """
    from crosstime.pipeline import config

    if not (out / config.FILE).exists():
        _write_preset("demo", out)
    elif not config.load(out)[0].suite.demo:
        raise InputError(f"{out} holds a run on other checkpoints: use `crosstime run {out}`, or choose another --out")
    run(out)


def new(
    preset: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[PRESET]")]] = None,
    run_dir: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[RUN_DIR]")]] = None,
    rule: Annotated[str | None, tyro.conf.arg(metavar="RULE")] = None,
    seed: int = 124,
    list: Flag = False,
) -> None:
    """Write a run.toml to edit; without arguments, list the presets and their costs.

    Args:
        preset: Preset to start from.
        run_dir: A new folder for the run.
        rule: Sparsity rule of the crosscoder, if not the preset's first.
        seed: Seed of the training.
        list: List the presets.
    """
    from crosstime.pipeline import config
    from crosstime.pipeline import preset as presets

    if list or preset is None:
        print(presets.table())
        return
    if run_dir is None:
        raise InputError(f"name a new folder for the run: `crosstime new {preset} RUN_DIR`")
    if (run_dir / config.FILE).exists():
        raise InputError(f"{run_dir / config.FILE} already exists: edit it, or choose another folder")
    _write_preset(preset, run_dir, rule, seed)
    print(f"{run_dir / config.FILE}: edit it, then `crosstime run {run_dir}`")


def run(
    run_dir: RunDir,
    until: Annotated[str | None, tyro.conf.arg(metavar="STAGE")] = None,
    settings: Settings = (),
) -> None:
    """Compute every stage that is missing or stale, and print the headline metrics.

    Args:
        run_dir: A folder with a run.toml.
        until: Stop after this stage; only the stages that it depends on are computed.
        settings: Use a value in place of run.toml's, which stays as it is; may be repeated.
    """
    from crosstime.pipeline.execute import run as execute

    silence_libraries()
    print(_summary(_headlines(execute(run_dir, until, _parse(settings)))))


def plan(run_dir: RunDir, settings: Settings = (), no_measure: Flag = False, json: Flag = False) -> None:
    """Check a run without weights, and predict its time, memory and disk; takes about half a minute.

    Args:
        run_dir: A folder with a run.toml.
        settings: Use a value in place of run.toml's; may be repeated.
        no_measure: Don't time the stages on this machine: check the run, and estimate from its settings alone.
        json: Print one JSON object.
    """
    from crosstime.pipeline import plan as planning

    found = planning.plan(_open(run_dir, settings), timed=not no_measure)
    print(_json(found.to_json()) if json else found.screen())


def show(run_dir: RunOrOne, settings: Settings = (), json: Flag = False) -> None:
    """Show the state of each stage and the headline metrics.

    Args:
        run_dir: A folder with a run.toml, or RUN_DIR/NAME, one of its crosscoders.
        settings: Use a value in place of run.toml's, as `crosstime run` did; may be repeated.
        json: Print one JSON object.
    """
    from crosstime.pipeline import summary
    from crosstime.pipeline.engine import states

    found = _find(run_dir, settings)
    from crosstime.pipeline.stages import stages

    metrics = _headlines(found)
    state = {one.name: states(one, stages(one.config)) for one in found}
    if json:
        for name, of_one in state.items():
            metrics[name]["stages"] = {stage: each.status for stage, each in of_one.items()}
        print(_json({"crosscoders": metrics} if len(metrics) > 1 else next(iter(metrics.values()))))
    else:
        print(f"{summary.statuses(state)}\n\n{_summary(metrics)}")


def table(
    run_dirs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_DIR[/NAME] ...")]],
    json: Flag = False,
    markdown: Flag = False,
    match: Flag = False,
) -> None:
    """Compare crosscoders that differ only in their seed: mean and standard deviation of each quality metric.

    Args:
        run_dirs: At least two evaluated runs, or crosscoders of runs; or one run with several.
        json: Print one JSON object.
        markdown: Print a Markdown table.
        match: Also match the features of each pair; slow for large dictionaries.
    """
    from crosstime.pipeline import seeds

    found = seeds.seed_table(run_dirs, match=match)
    if json:
        print(_json(found.to_json()))
    else:
        print((seeds.markdown if markdown else seeds.aligned)(found.rows()))


def import_(
    source: Source,
    out_dir: OutDir,
    format: Annotated[str | None, tyro.conf.arg(metavar="FORMAT")] = None,
    checkpoints: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None,
    layer: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None,
    scale: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="FLOAT ...")] = None,
    tokens: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT ...")] = None,
    bos: Annotated[bool | None, tyro.conf.arg(metavar="True|False")] = None,
    encode_first: Annotated[bool | None, tyro.conf.arg(metavar="True|False")] = None,
    revision: Annotated[str | None, tyro.conf.arg(metavar="REVISION")] = None,
) -> None:
    """Convert another project's crosscoder into crosstime's format (see docs/formats.md).

    Args:
        source: A folder or a file of weights; on the hub owner/name, or owner/name:path.
        out_dir: Folder to write.
        format: paper, ckkissane, dictionary-learning or llamascopium; by default the one that fits.
        checkpoints: Names of its checkpoints, in the order of training.
        layer: The block whose output it reads, counted from 0.
        scale: Factor of each checkpoint's activations, if the files don't contain it.
        tokens: Tokens that each checkpoint had seen.
        bos: Whether its sequences began with BOS.
        encode_first: Whether it reads position 0.
        revision: Revision of the hub repository.
    """
    from crosstime.crosscoder.formats.importing import import_crosscoder
    from crosstime.pipeline import config as run_config
    from crosstime.text.positions import Positions

    if (out_dir / run_config.FILE).exists():
        raise InputError(f"{out_dir} is a run folder: choose another one, and set crosscoder.from in run.toml to it")
    policy = {name: value for name, value in (("bos", bos), ("encode_first", encode_first)) if value is not None}
    crosscoder = import_crosscoder(
        source,
        format,
        checkpoints=checkpoints,
        layer=layer,
        scale=scale,
        tokens=tokens,
        positions=Positions(**policy) if policy else None,
        revision=revision,
    )
    crosscoder.save_pretrained(out_dir)
    config = crosscoder.config
    print(
        f"{out_dir}: {config.features:,} features (rule {config.sparsity.rule}) for the output of block "
        f"{config.layer}, width {config.width}, of {', '.join(config.checkpoints)}"
    )


def export(source: Source, out_dir: OutDir, format: Literal["saelens"] = "saelens") -> None:
    """Convert a crosscoder for another project; for SAELens: one autoencoder per checkpoint (see docs/formats.md).

    Args:
        source: A run folder, RUN_DIR/NAME if it has several crosscoders, or anything `crosstime import` reads.
        out_dir: Where to write, one folder per autoencoder.
        format: The other project's format.
    """
    from crosstime.crosscoder.formats.importing import import_crosscoder
    from crosstime.crosscoder.formats.saelens import export_saelens

    write = {"saelens": export_saelens}[format]
    for folder in write(import_crosscoder(_trained(source)), out_dir):
        print(folder)


def annotate_export(
    run_dir: RunOrOne,
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SHEET")]],
    top: int = 10,
    blind: Flag = False,
    seed: int = 0,
) -> None:
    """Write a sheet of the strongest features for annotators to fill in.

    Args:
        run_dir: A folder with a finished run, or RUN_DIR/NAME if that has several crosscoders.
        out: The new sheet: a .csv file for a spreadsheet, or a .json file.
        top: Features of each task and checkpoint, by |IE|.
        blind: Hide task, class and RelIE, and shuffle.
        seed: Seed of the shuffling.
    """
    from crosstime.pipeline.annotations import export_sheet

    export_sheet(_only(run_dir), out, top=top, blind=blind, seed=seed)
    print(f"{out}: fill it in, then `crosstime annotate import {run_dir} {out}`")


def annotate_import(
    run_dir: RunOrOne, files: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="SHEET ...")]]
) -> None:
    """Import filled-in sheets into a run, replacing earlier ones, and print the annotators' agreement.

    Args:
        run_dir: The run, or RUN_DIR/NAME, that the sheets came from.
        files: The sheets; several annotators may share one sheet or have one each.
    """
    from crosstime.pipeline.annotations import import_sheets
    from crosstime.pipeline.execute import locked

    if not files:
        raise InputError(f"name the sheets: `crosstime annotate import {run_dir} SHEET.csv`")
    one = _only(run_dir)
    with locked(one.folder):
        agreed = import_sheets(one, files)
    for pair in agreed:
        kappa = "undefined, all are of one category" if pair.kappa is None else f"{pair.kappa:.2f}"
        print(
            f"{' and '.join(pair.annotators)}: {pair.features} features, {pair.same:.0%} alike, Cohen's kappa {kappa}"
        )
    print(f"`crosstime run {one.folder}` adds them to the report")


def annotate(action: tyro.conf.Positional[Literal["export", "import"]]) -> None:
    """Export features for manual annotation, or import the annotations.

    Args:
        action: See `crosstime annotate export --help` and `crosstime annotate import --help`.
    """


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.removesuffix("_"): command
    for command in (demo, new, plan, run, show, table, annotate, import_, export)
}

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "annotate": {"export": annotate_export, "import": annotate_import},
}
"""Commands with subcommands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with interruptible(), own_stderr():
            _dispatch(arguments)
            if sys.stdout is not None:  # a shell may have closed it
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has closed it; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return OK
    except KeyboardInterrupt as interrupt:
        echo(": ".join(["interrupted", *map(str, interrupt.args)]))
        return INTERRUPTED
    except Exception as error:
        if (line := describe(error)) is not None:
            echo(f"error: {line}")
            return BAD_INPUT
        if notes := getattr(error, "__notes__", None):  # the traceback is in a file
            echo(f"internal error: {type(error).__name__}: {first_line(error)} ({notes[-1]})")
        else:
            traceback.print_exception(error)
        return INTERNAL_ERROR
    return OK


def _dispatch(arguments: Sequence[str]) -> None:
    if arguments == ["--version"]:
        print(f"crosstime {version('crosstime')}")
        return
    commands, prog, description = COMMANDS, "crosstime", "When did this model learn that, and which feature carries it?"
    if arguments and (group := arguments[0]) in GROUPS:
        description = str(COMMANDS[group].__doc__).splitlines()[0]
        commands, prog, arguments = GROUPS[group], f"crosstime {group}", arguments[1:]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise InputError(f"unknown command `{arguments[0]}`{nearest(arguments[0], commands)}")
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=arguments)


def _parse(settings: Sequence[str]) -> dict[str, Any]:
    """The values of `--set SECTION.KEY=VALUE`, in which VALUE is TOML, or a string without its quotes."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {setting}: write --set SECTION.KEY=VALUE")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = value
    return values


def _open(run_dir: Path, settings: Sequence[str]) -> list[Run]:
    """All crosscoders of a run folder."""
    from crosstime.pipeline import config

    configs = config.load(run_dir, _parse(settings))
    from crosstime.pipeline.run import runs

    silence_libraries()
    return runs(run_dir, configs)


def _find(place: Path, settings: Sequence[str] = ()) -> list[Run]:
    """All crosscoders of RUN_DIR, or the one of RUN_DIR/NAME."""
    from crosstime.pipeline import config

    run_dir, configs = config.find(place, _parse(settings))
    from crosstime.pipeline.run import runs

    return runs(run_dir, configs)


def _only(place: Path) -> Run:
    """The only crosscoder of RUN_DIR, or the one of RUN_DIR/NAME."""
    from crosstime.pipeline import config

    config.only(place, config.find(place)[1])
    (one,) = _find(place)
    return one


def _trained(source: str) -> str | Path:
    """The crosscoder of a run if `source` is one, else `source`."""
    from crosstime.pipeline import config

    if not config.is_of_run(Path(source)):
        return source
    one = _only(Path(source))
    if artifact.read_manifest(one.folder_of("crosscoder")) is None:
        raise InputError(f"{source} has no crosscoder yet: `crosstime run {one.folder} --until train` trains it")
    return one.folder_of("crosscoder")


def _headlines(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The headline metrics of each crosscoder of a run, by its name."""
    from crosstime.pipeline import summary
    from crosstime.pipeline.stages import stages

    folders = {stage.name: stage.folder for stage in stages(runs[0].config)}
    return {run.name: summary.headline(run, folders) for run in runs}


def _summary(metrics: Mapping[str, dict[str, Any]]) -> str:
    """Headline metrics for a terminal."""
    from crosstime.pipeline import summary

    return summary.comparison(metrics) if len(metrics) > 1 else summary.table(next(iter(metrics.values())))


def _json(value: Any) -> str:
    import json

    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _write_preset(name: str, run_dir: Path, rule: str | None = None, seed: int = 124) -> None:
    from crosstime.pipeline import config, preset

    text = preset.text(name, rule, seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    artifact.write_text(run_dir / config.FILE, text)
