"""Bring a run folder up to date: what `crosstime run` does, for Python."""

from __future__ import annotations

import fcntl
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosstime.base import artifact
from crosstime.base.errors import InputError, describe, first_line, nearest
from crosstime.base.terminal import echo
from crosstime.pipeline import config
from crosstime.pipeline.engine import bring_up_to_date
from crosstime.pipeline.plugins import blame

if TYPE_CHECKING:
    from crosstime.pipeline.run import Run


def run(folder: str | Path, until: str | None = None, settings: Mapping[str, Any] | None = None) -> list[Run]:
    """Compute every stage of a run folder that is missing or stale.

    Each crosscoder's full configuration goes into its `resolved.toml`. A process that is killed resumes here.

    Args:
        folder: A run folder: a folder with a run.toml.
        until: The last stage to compute, "train" say; it and the stages that it depends on are brought up to date.
        settings: Values to use in place of run.toml's, by section and key: `{"training.lr": 1e-3}`. See
            `config.override`. run.toml isn't changed: a later run without these settings recomputes what they affect.

    Returns:
        One `Run` per crosscoder, in the order of run.toml.

    Raises:
        InputError: run.toml, a setting or an input file is wrong, or another process is using the folder.

    Example:
        A run of the bundled checkpoints up to the survey:

        >>> import tempfile
        >>> import crosstime as ct
        >>> from crosstime.pipeline import preset
        >>> folder = tempfile.mkdtemp()
        >>> with open(f"{folder}/run.toml", "w") as file:
        ...     _ = file.write(preset.text("demo"))
        >>> settings = {"survey.blocks": 1, "task.max_pairs": 2, "text.limit_tokens": 5000}
        >>> (run,) = ct.run(folder, until="suite", settings=settings)
        >>> sorted(path.name for path in run.folder_of("suite").iterdir())
        ['checkpoints.json', 'manifest.json', 'sources.json', 'tokenizer.json']
    """
    folder = Path(folder)
    configs = config.load(folder, settings)
    # Imported only now, for it takes seconds: a mistake in run.toml is reported before.
    from crosstime.pipeline.run import runs
    from crosstime.pipeline.stages import stages

    todo = stages(configs[0])
    names = [stage.name for stage in todo]
    if until is not None and until not in names:
        raise InputError(f"unknown stage {until!r}: choose one of {', '.join(names)}{nearest(until, names)}")
    with locked(folder), _error_log(folder):
        found = runs(folder, configs)
        for one in found:
            one.own_folder.mkdir(exist_ok=True)
            artifact.write_text(one.own_folder / config.RESOLVED, config.resolved(one.config, settings))
        bring_up_to_date(found, todo, echo, last=until)
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from running in a folder. The lock ends with the process, however it ends.

    Raises:
        InputError: another process holds the lock.
    """
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"another run (process {holder}) is working in {folder}: wait until it ends, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


@contextmanager
def _error_log(folder: Path) -> Iterator[None]:
    """Write the traceback of a bug into the run folder, and note on the error where; say how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to resume") from None
    except Exception as error:
        if describe(error) is not None:
            raise
        path = folder / config.ERROR_LOG
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:
            raise error from None
        if (where := blame(error)) is not None:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"plugin {where}: {what} (traceback in {path})") from error
        error.add_note(f"traceback in {path}")
        raise
