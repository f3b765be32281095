"""The command line: one thin function a command.

Exit codes: 0 done, 2 bad input (one line says what and where), 1 a fault of ours, 130 interrupted. What a command was
asked for goes to stdout; everything else goes to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from crosstime.base import artifact
from crosstime.base.errors import InputError, describe, nearest
from crosstime.base.terminal import INTERRUPTED, mend_terminal, quiet, quiet_libraries, say, say_progress, signals

if TYPE_CHECKING:
    from crosstime.pipeline.run import Run

STDOUT = 1
DONE, FAULT, BAD_INPUT = 0, 1, 2

RunDir = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]]
Place = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR[/NAME]")]]


def demo(out: Path = Path("runs/demo")) -> None:
    """The whole way on the embedded suite, from checkpoints to a report.

    Args:
        out: Folder of the run.
    """
    from crosstime.pipeline import config

    if not (out / config.FILE).exists():
        _write_preset("demo", out)
    elif not config.load(out)[0].suite.demo:
        raise InputError(
            f"{out} holds a run on another suite: go on with `crosstime run {out}`, or choose another --out"
        )
    run(out)


def new(
    preset: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[PRESET]")]] = None,
    run_dir: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[RUN_DIR]")]] = None,
    rule: Annotated[str | None, tyro.conf.arg(metavar="RULE")] = None,
    seed: int = 124,
    list: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Write a run.toml to edit; without arguments, list the presets and what each costs.

    Args:
        preset: What to start from.
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
        raise InputError(f"{run_dir / config.FILE} is already there: edit it, or choose another folder")
    _write_preset(preset, run_dir, rule, seed)
    print(f"{run_dir / config.FILE}: edit it, then `crosstime run {run_dir}`")


def run(run_dir: RunDir, dry_run: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """Do every stage that is out of date, in order.

    Args:
        run_dir: A folder with a run.toml.
        dry_run: Check everything that can be checked without weights, say what would be done, and write nothing.
    """
    if dry_run:
        _rehearse(run_dir)
        return
    print(_summary(_headlines(_bring_up_to_date(run_dir, None))))


def plan(run_dir: RunDir, json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """Predict time, memory and disk of a run on this machine, and say what limits it; takes about 10 seconds.

    Args:
        run_dir: A folder with a run.toml.
        json: Print one JSON object.
    """
    import json as json_format

    from crosstime.pipeline import config

    configs = config.load(run_dir)
    from crosstime.pipeline import plan as planning
    from crosstime.pipeline.run import runs

    quiet_libraries()
    found = planning.plan(runs(run_dir, configs))
    print(json_format.dumps(found.to_json(), allow_nan=False) if json else found.screen())


def tokens(run_dir: RunDir) -> None:
    """Tokenise the text, or go on where that was interrupted. Needs no GPU.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "tokens")


def survey(run_dir: RunDir) -> None:
    """Every checkpoint on every task.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "survey")


def train(run_dir: RunDir) -> None:
    """Train the crosscoder, or go on where its training was interrupted.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "train")


def evaluate(run_dir: RunDir) -> None:
    """Measure the crosscoder on held-out text.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "evaluate")


def diagnose(run_dir: RunDir) -> None:
    """Hold every feature's decoder against the data, and label it.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "diagnose")


def attribute(run_dir: RunDir) -> None:
    """Indirect effects of every feature on every task.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "attribute")


def ablate(run_dir: RunDir) -> None:
    """Check the effects: set the strongest features to zero.

    Args:
        run_dir: A folder with a run.toml.
    """
    _bring_up_to_date(run_dir, "ablate")


def report(run_dir: RunDir) -> None:
    """Write the report.

    Args:
        run_dir: A folder with a run.toml.
    """
    for one in _bring_up_to_date(run_dir, "report"):
        print((one.at("report") / "index.html").resolve())


def show(run_dir: Place, json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """What is there, what is stale, and the headline numbers.

    Args:
        run_dir: A folder with a run.toml, or RUN_DIR/NAME, one of its crosscoders.
        json: Print one JSON object.
    """
    import json as json_format

    from crosstime.pipeline import config

    folder, configs = config.find(run_dir)
    from crosstime.pipeline import summary
    from crosstime.pipeline.engine import states
    from crosstime.pipeline.run import runs
    from crosstime.pipeline.stages import stages

    found = runs(folder, configs)
    numbers = _headlines(found)
    of_stages = {run.name: states(run, stages(run.config)) for run in found}
    if json:
        objects = {
            name: {**numbers[name], "stages": {stage: state.status for stage, state in of_one.items()}}
            for name, of_one in of_stages.items()
        }
        shown = {"crosscoders": objects} if len(objects) > 1 else next(iter(objects.values()))
        print(json_format.dumps(shown, allow_nan=False, ensure_ascii=False))
        return
    print(f"{summary.statuses(of_stages)}\n\n{_summary(numbers)}")


def table(
    run_dirs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_DIR[/NAME] ...")]],
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    markdown: tyro.conf.FlagCreatePairsOff[bool] = False,
    match: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Quality of several crosscoders that differ in their seed only: mean and standard deviation.

    Args:
        run_dirs: At least two evaluated runs, or crosscoders of runs; or one run with several.
        json: Print one JSON object.
        markdown: Print a Markdown table.
        match: Also match the features of every two; slow for large dictionaries.
    """
    import json as json_format

    from crosstime.pipeline import seeds

    found = seeds.seed_table(run_dirs, match=match)
    if json:
        print(json_format.dumps(found.to_json(), allow_nan=False, ensure_ascii=False))
    else:
        print((seeds.markdown if markdown else seeds.aligned)(found.rows()))


def import_(
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]],
    out_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT_DIR")]],
    format: Annotated[str | None, tyro.conf.arg(metavar="FORMAT")] = None,
    checkpoints: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None,
    layer: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None,
    scale: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="FLOAT ...")] = None,
    tokens: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT ...")] = None,
    bos: Annotated[bool | None, tyro.conf.arg(metavar="True|False")] = None,
    encode_first: Annotated[bool | None, tyro.conf.arg(metavar="True|False")] = None,
    revision: Annotated[str | None, tyro.conf.arg(metavar="REVISION")] = None,
) -> None:
    """Turn another project's crosscoder into one of ours (docs/formats.md).

    Args:
        source: A folder or a file of weights; on the hub owner/name, or owner/name:path.
        out_dir: Where to put it.
        format: paper, ckkissane, dictionary-learning or llamascopium; else that which fits.
        checkpoints: Names of its checkpoints, in the order of training.
        layer: The block whose output it reads, counted from 0.
        scale: Factor of each checkpoint's activations, where the files do not say.
        tokens: Tokens that each checkpoint had seen.
        bos: Whether its sequences began with BOS.
        encode_first: Whether it reads position 0.
        revision: Of a repository of the hub.
    """
    from crosstime.crosscoder.formats.importing import import_crosscoder
    from crosstime.pipeline import config as run_config
    from crosstime.text.positions import Positions

    if (out_dir / run_config.FILE).exists():
        raise InputError(
            f"{out_dir} is a run folder: choose another one, and name it there as `from` under [crosscoder]"
        )
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


def export(
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]],
    out_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT_DIR")]],
    format: Literal["saelens"] = "saelens",
) -> None:
    """Write a crosscoder for another project: for SAELens, an autoencoder a checkpoint (docs/formats.md).

    Args:
        source: A run folder, RUN_DIR/NAME where it has several, or a crosscoder as `crosstime import` takes it.
        out_dir: Where to put them, a folder each.
        format: Whose format.
    """
    from crosstime.crosscoder.formats.importing import import_crosscoder
    from crosstime.crosscoder.formats.saelens import export_saelens

    write = {"saelens": export_saelens}[format]
    for folder in write(import_crosscoder(_trained(source)), out_dir):
        print(folder)


def annotate_export(
    run_dir: Place,
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SHEET")]],
    top: int = 10,
    blind: tyro.conf.FlagCreatePairsOff[bool] = False,
    seed: int = 0,
) -> None:
    """Write a sheet of the strongest features, for annotators to fill in.

    Args:
        run_dir: A folder with a finished run, or RUN_DIR/NAME where that has several crosscoders.
        out: The new sheet: a .csv file for a spreadsheet, or a .json file.
        top: Features of each task and checkpoint, by |IE|.
        blind: Hide task, class and RelIE, and shuffle.
        seed: Of the shuffling.
    """
    from crosstime.pipeline.annotations import export_sheet

    export_sheet(_only(run_dir), out, top=top, blind=blind, seed=seed)
    print(f"{out}: fill it in, then `crosstime annotate import {run_dir} {out}`")


def annotate_import(
    run_dir: Place, files: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="SHEET ...")]]
) -> None:
    """Take filled-in sheets into the run, in place of earlier ones, and say how far the annotators agree.

    Args:
        run_dir: The run, or RUN_DIR/NAME, that the sheets came from.
        files: The sheets; several annotators may share one or have one each.
    """
    from crosstime.pipeline.annotations import import_sheets
    from crosstime.pipeline.lock import locked

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
    print(f"`crosstime report {one.folder}` shows them")


def annotate(action: tyro.conf.Positional[Literal["export", "import"]]) -> None:
    """Features in people's words: a sheet for annotators to fill in, and back.

    Args:
        action: `crosstime annotate export --help` and `crosstime annotate import --help` say more.
    """


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.removesuffix("_"): command
    for command in (
        *(demo, new, plan, run, tokens, survey, train, evaluate, diagnose, attribute, ablate, report, show, table),
        *(annotate, import_, export),
    )
}

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "annotate": {"export": annotate_export, "import": annotate_import},
}
"""Commands that have commands of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with signals(), warnings.catch_warnings():
            quiet()
            mend_terminal()
            say_progress()
            _dispatch(arguments)
            if sys.stdout is not None:  # a shell may have closed it
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough of it; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return DONE
    except KeyboardInterrupt as interrupt:
        say(" ".join(["interrupted", *map(str, interrupt.args)]))
        return INTERRUPTED
    except _Fault as fault:
        say(f"fault: {fault}")
        return FAULT
    except Exception as error:
        line = describe(error)
        if line is None:
            traceback.print_exception(error)
            return FAULT
        say(f"error: {line}")
        return BAD_INPUT
    return DONE


class _Fault(Exception):
    """A fault of ours, already on record."""


def _bring_up_to_date(run_dir: Path, last: str | None) -> list[Run]:
    """Does the stages up to one of them, or all, in a run folder that no one else is writing to."""
    from crosstime.pipeline import config
    from crosstime.pipeline.lock import locked

    configs = config.load(run_dir)
    with locked(run_dir), _on_record(run_dir):
        from crosstime.pipeline.engine import bring_up_to_date
        from crosstime.pipeline.run import runs
        from crosstime.pipeline.stages import stages

        quiet_libraries()
        found = runs(run_dir, configs)
        for one in found:
            one.own_folder.mkdir(exist_ok=True)
            artifact.write_text(one.own_folder / "resolved.toml", config.resolved(one.config))
        bring_up_to_date(found, stages(configs[0]), say, last=last)
    return found


def _rehearse(run_dir: Path) -> None:
    """Checks a run, and says what it would do and cost."""
    from crosstime.pipeline import config

    configs = config.load(run_dir)
    from crosstime.pipeline.dry_run import dry_run
    from crosstime.pipeline.run import runs

    quiet_libraries()
    print(dry_run(runs(run_dir, configs)))


def _only(place: Path) -> Run:
    """The one crosscoder that a place means."""
    from crosstime.pipeline import config

    run_dir, configs = config.find(place)
    config.only(place, configs)
    from crosstime.pipeline.run import runs

    (one,) = runs(run_dir, configs)
    return one


def _trained(source: str) -> str | Path:
    """The crosscoder of a run, if one is named; else what is named."""
    from crosstime.pipeline import config

    if not config.is_of_run(Path(source)):
        return source
    one = _only(Path(source))
    if artifact.read_manifest(one.at("crosscoder")) is None:
        raise InputError(f"{source} has no crosscoder yet: `crosstime train {one.folder}` makes it")
    return one.at("crosscoder")


def _headlines(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The headline numbers of each crosscoder of a run, by its name."""
    from crosstime.pipeline import summary
    from crosstime.pipeline.stages import stages

    folders = {stage.name: stage.folder for stage in stages(runs[0].config)}
    return {run.name: summary.headline(run, folders) for run in runs}


def _summary(numbers: dict[str, dict[str, Any]]) -> str:
    """Them, for a terminal."""
    from crosstime.pipeline import summary

    return summary.comparison(numbers) if len(numbers) > 1 else summary.table(next(iter(numbers.values())))


@contextmanager
def _on_record(run_dir: Path) -> Iterator[None]:
    """Puts the traceback of a fault of ours into the run folder, and says how to go on after an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"- go on with `crosstime run {run_dir}`") from None
    except Exception as error:
        if describe(error) is not None:
            raise
        path = run_dir / "error.log"
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:
            raise error from None
        last = traceback.format_exception_only(error)[-1].splitlines()[0]
        raise _Fault(f"{last} (this should not happen; the traceback is in {path})") from error


def _write_preset(name: str, run_dir: Path, rule: str | None = None, seed: int = 124) -> None:
    from crosstime.pipeline import config, preset

    text = preset.text(name, rule, seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    artifact.write_text(run_dir / config.FILE, text)


def _dispatch(arguments: Sequence[str]) -> None:
    if arguments == ["--version"]:
        print(f"crosstime {version('crosstime')}")
        return
    commands, prog, description = COMMANDS, "crosstime", "When did this model learn that, and which feature carries it?"
    if arguments and (group := arguments[0]) in GROUPS:
        description = str(COMMANDS[group].__doc__).splitlines()[0]
        commands, prog, arguments = GROUPS[group], f"crosstime {group}", arguments[1:]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise InputError(f"there is no command `{arguments[0]}`{nearest(arguments[0], commands)}")
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=arguments)
