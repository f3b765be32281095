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
from typing import Annotated, Literal

import tyro

from crosstime import artifact
from crosstime.errors import users_line
from crosstime.lm.nearest import nearest
from crosstime.terminal import INTERRUPTED, mend_terminal, quiet, quiet_libraries, say, say_progress, signals

STDOUT = 1
DONE, FAULT, BAD_INPUT = 0, 1, 2

RunDir = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]]


def demo(out: Path = Path("runs/demo")) -> None:
    """The whole way on the embedded suite, from checkpoints to a report.

    Args:
        out: Folder of the run.
    """
    from crosstime.run import config

    if not (out / config.FILE).exists():
        _write_preset("demo", out)
    elif not config.load(out).suite.demo:
        raise ValueError(
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
    from crosstime.run import config
    from crosstime.run import preset as presets

    if list or preset is None:
        print(presets.table())
        return
    if run_dir is None:
        raise ValueError(f"name a new folder for the run: `crosstime new {preset} RUN_DIR`")
    if (run_dir / config.FILE).exists():
        raise ValueError(f"{run_dir / config.FILE} is already there: edit it, or choose another folder")
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
    from crosstime.run import summary

    _bring_up_to_date(run_dir, None)
    print(summary.table(summary.headline(run_dir, _folders(run_dir))))


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
    _bring_up_to_date(run_dir, "report")
    print((run_dir / "report" / "index.html").resolve())


def show(run_dir: RunDir, json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """What is there, what is stale, and the headline numbers.

    Args:
        run_dir: A folder with a run.toml.
        json: Print one JSON object.
    """
    import json as json_format

    from crosstime.run import config

    configuration = config.load(run_dir)
    from crosstime.run import summary
    from crosstime.run.stage import states
    from crosstime.run.stages import stages
    from crosstime.run.values import Run

    numbers = summary.headline(run_dir, _folders(run_dir))
    found = states(Run(run_dir, configuration), stages(configuration))
    if json:
        statuses = {name: state.status for name, state in found.items()}
        print(json_format.dumps({**numbers, "stages": statuses}, allow_nan=False, ensure_ascii=False))
        return
    width = max(map(len, found))
    for name, state in found.items():
        print(f"{name.ljust(width)}  {state.status}" + (f": {state.reason}" if state.reason else ""))
    print(f"\n{summary.table(numbers)}")


def table(
    run_dirs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_DIR ...")]],
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    markdown: tyro.conf.FlagCreatePairsOff[bool] = False,
    match: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Quality of several runs that differ in their seed only: mean and standard deviation.

    Args:
        run_dirs: Folders of at least two evaluated runs.
        json: Print one JSON object.
        markdown: Print a Markdown table.
        match: Also match the features of every two runs; slow for large dictionaries.
    """
    import json as json_format

    from crosstime.run import seeds

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
    from crosstime.data.positions import Positions
    from crosstime.run import config as run_config

    if (out_dir / run_config.FILE).exists():
        raise ValueError(
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
        source: A run folder, or a crosscoder as `crosstime import` takes it.
        out_dir: Where to put them, a folder each.
        format: Whose format.
    """
    from crosstime.crosscoder.formats.importing import import_crosscoder
    from crosstime.crosscoder.formats.saelens import export_saelens
    from crosstime.run import config

    write = {"saelens": export_saelens}[format]
    is_run, trained = (Path(source) / config.FILE).exists(), Path(source) / "crosscoder"
    if is_run and artifact.read_manifest(trained) is None:
        raise ValueError(f"{source} has no crosscoder yet: `crosstime train {source}` makes it")
    for folder in write(import_crosscoder(trained if is_run else source), out_dir):
        print(folder)


def annotate_export(
    run_dir: RunDir,
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SHEET")]],
    top: int = 10,
    blind: tyro.conf.FlagCreatePairsOff[bool] = False,
    seed: int = 0,
) -> None:
    """Write a sheet of the strongest features, for annotators to fill in.

    Args:
        run_dir: A folder with a finished run.
        out: The new sheet: a .csv file for a spreadsheet, or a .json file.
        top: Features of each task and checkpoint, by |IE|.
        blind: Hide task, class and RelIE, and shuffle.
        seed: Of the shuffling.
    """
    from crosstime.run.annotations import export_sheet

    export_sheet(run_dir, out, top=top, blind=blind, seed=seed)
    print(f"{out}: fill it in, then `crosstime annotate import {run_dir} {out}`")


def annotate_import(
    run_dir: RunDir, files: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="SHEET ...")]]
) -> None:
    """Take filled-in sheets into the run, in place of earlier ones, and say how far the annotators agree.

    Args:
        run_dir: The folder that the sheets came from.
        files: The sheets; several annotators may share one or have one each.
    """
    from crosstime.run.annotations import import_sheets
    from crosstime.run.lock import locked

    if not files:
        raise ValueError(f"name the sheets: `crosstime annotate import {run_dir} SHEET.csv`")
    with locked(run_dir):
        agreed = import_sheets(run_dir, files)
    for pair in agreed:
        kappa = "undefined, all are of one category" if pair.kappa is None else f"{pair.kappa:.2f}"
        print(
            f"{' and '.join(pair.annotators)}: {pair.features} features, {pair.same:.0%} alike, Cohen's kappa {kappa}"
        )
    print(f"`crosstime report {run_dir}` shows them")


def annotate(action: tyro.conf.Positional[Literal["export", "import"]]) -> None:
    """Features in people's words: a sheet for annotators to fill in, and back.

    Args:
        action: `crosstime annotate export --help` and `crosstime annotate import --help` say more.
    """


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.removesuffix("_"): command
    for command in (
        *(demo, new, run, tokens, survey, train, evaluate, diagnose, attribute, ablate, report, show, table),
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
        line = users_line(error)
        if line is None:
            traceback.print_exception(error)
            return FAULT
        say(f"error: {line}")
        return BAD_INPUT
    return DONE


class _Fault(Exception):
    """A fault of ours, already on record."""


def _bring_up_to_date(run_dir: Path, last: str | None) -> None:
    """Does the stages up to one of them, or all, in a run folder that no one else is writing to."""
    from crosstime.run import config
    from crosstime.run.lock import locked

    configuration = config.load(run_dir)
    with locked(run_dir), _on_record(run_dir):
        from crosstime.run.stage import bring_up_to_date
        from crosstime.run.stages import stages
        from crosstime.run.values import Run

        quiet_libraries()
        artifact.write_text(run_dir / "resolved.toml", config.resolved(configuration))
        bring_up_to_date(Run(run_dir, configuration), stages(configuration), say, last=last)


def _rehearse(run_dir: Path) -> None:
    """Checks a run, and says what it would do and cost."""
    from crosstime.run import config

    configuration = config.load(run_dir)
    from crosstime.run.dry_run import dry_run
    from crosstime.run.values import Run

    quiet_libraries()
    print(dry_run(Run(run_dir, configuration)))


@contextmanager
def _on_record(run_dir: Path) -> Iterator[None]:
    """Puts the traceback of a fault of ours into the run folder, and says how to go on after an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"- go on with `crosstime run {run_dir}`") from None
    except Exception as error:
        if users_line(error) is not None:
            raise
        path = run_dir / "error.log"
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:
            raise error from None
        last = traceback.format_exception_only(error)[-1].splitlines()[0]
        raise _Fault(f"{last} (this should not happen; the traceback is in {path})") from error


def _folders(run_dir: Path) -> dict[str, str]:
    """The artifact folder of each stage."""
    from crosstime.run import config
    from crosstime.run.stages import stages

    return {stage.name: stage.folder for stage in stages(config.load(run_dir))}


def _write_preset(name: str, run_dir: Path, rule: str | None = None, seed: int = 124) -> None:
    from crosstime.run import config, preset

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
        raise ValueError(f"there is no command `{arguments[0]}`{nearest(arguments[0], commands)}")
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=arguments)
