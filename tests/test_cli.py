"""The command line as a user meets it. What needs no process of its own calls `main`, as the installed script does."""

import errno
import os
import signal
import subprocess
import sys
import warnings

import pytest

from crosstime import cli
from crosstime.base import artifact, terminal
from crosstime.base.errors import DamagedArtifact, InputError
from crosstime.pipeline import config, execute, preset


def crosstime(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "crosstime", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture
def errors(capfd):
    """Runs a command that must fail as bad input, and gives its one line."""

    def run(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == cli.BAD_INPUT
        out, err = capfd.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("crosstime: error: ")]
        assert len(lines) == 1
        assert "Traceback" not in err
        return lines[0]

    return run


def test_help_and_version_are_complete():
    shown = crosstime("--help")
    assert shown.returncode == 0
    for command in cli.COMMANDS:
        assert f"• {command} " in shown.stdout
    assert crosstime("--version").stdout.startswith("crosstime ")


def test_help_does_not_import_torch():
    script = "import sys; from crosstime import cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["show"], ["show", "x", "--jsn"], ["demo", "--out"], ["run", "a", "b"]])
def test_wrong_usage_exits_2(arguments, capfd):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err


def test_a_mistyped_command_is_told_the_nearest(errors):
    assert errors("shwo", "runs/demo").endswith("unknown command `shwo`; the nearest is 'show'")


@pytest.mark.parametrize("command", ["run", "plan", "show"])
def test_a_folder_that_is_no_run(tmp_path, errors, command):
    assert "make one with `crosstime new demo" in errors(command, tmp_path / "nothing")
    assert "holds no run.toml" in errors(command, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_writes_a_run_and_never_over_one(tmp_path, errors, capfd):
    assert cli.main(["new", "demo", str(tmp_path / "a" / "b")]) == 0
    assert capfd.readouterr().out.endswith(f"then `crosstime run {tmp_path / 'a' / 'b'}`\n")
    assert config.load(tmp_path / "a" / "b")[0].suite.demo
    (tmp_path / "a" / "b" / "run.toml").write_text("mine")
    assert "already exists" in errors("new", "demo", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "run.toml").read_text() == "mine"
    assert "the nearest is 'demo'" in errors("new", "dmeo", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_demo_leaves_another_run_alone(tmp_path, errors):
    text = preset.text("demo").replace("demo = true                    # the bundled checkpoints", 'folder = "x" #', 1)
    (tmp_path / "run.toml").write_text(text)
    assert "holds a run on other checkpoints" in errors("demo", "--out", tmp_path)


@pytest.mark.parametrize("command", ["run", "show"])
def test_a_mistyped_key(tmp_path, errors, command):
    (tmp_path / "run.toml").write_text(preset.text("demo").replace("context =", "contxt ="))
    line = errors(command, tmp_path)
    assert line.endswith(f"{tmp_path / 'run.toml'}: [text] unknown key `contxt`; the nearest is 'context'")


def test_a_folder_in_which_nothing_may_be_written(tmp_path, errors, monkeypatch):
    def refuse(path, _text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(artifact, "write_text", refuse)
    assert "Permission denied" in errors("new", "demo", tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "some/file"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_the_users_to_mend(tmp_path, errors, monkeypatch, error):
    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(artifact, "write_text", full)
    assert "the disk is full" in errors("new", "demo", tmp_path)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_too_little_memory_is_the_users_to_mend(tmp_path, errors, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(execute, "run", fail)
    assert "out of memory: lower crosscoder.features" in errors("run", str(tmp_path))


def test_a_closed_stdout_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert cli.main(["new", "demo", str(tmp_path / "run")]) == 0


def test_a_terminal_of_unknown_size_still_shows_progress(monkeypatch):
    monkeypatch.delenv("TQDM_NCOLS", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((0, 0)))
    with terminal.own_stderr():
        pass
    assert os.environ.pop("TQDM_NCOLS") == "80"


def test_an_internal_error_exits_1_and_keeps_the_traceback(tmp_path, monkeypatch, capfd):
    (tmp_path / "run.toml").write_text(preset.text("demo"))

    def break_down(*_args, **_kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("crosstime.pipeline.execute.bring_up_to_date", break_down)
    assert cli.main(["run", str(tmp_path)]) == cli.INTERNAL_ERROR
    err = capfd.readouterr().err
    assert err.startswith("crosstime: internal error: RuntimeError: a bug")
    assert str(tmp_path / "error.log") in err
    assert len(err.splitlines()) == 1
    assert "break_down" in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise InputError('text.train is wrong')", cli.BAD_INPUT),
        ("raise DamagedArtifact('run/effects is damaged')", cli.BAD_INPUT),
        ("raise ValueError('of nobody knows whom')", cli.INTERNAL_ERROR),
        ("raise KeyError('out of memory bank')", cli.INTERNAL_ERROR),
        ("import numpy; numpy.ones(2) + numpy.ones(3)", cli.INTERNAL_ERROR),
        ("list(zip([1], [], strict=True))", cli.INTERNAL_ERROR),
        ("int('x')", cli.INTERNAL_ERROR),
        ("import json; json.loads('{')", cli.INTERNAL_ERROR),
    ],
)
def test_only_an_error_of_our_types_is_bad_input(tmp_path, monkeypatch, capfd, body, code):
    (tmp_path / "run.toml").write_text(preset.text("demo"))
    scope = {"InputError": InputError, "DamagedArtifact": DamagedArtifact}
    exec(f"def fail(*_args, **_kwargs):\n    {body}", scope)
    monkeypatch.setattr("crosstime.pipeline.execute.bring_up_to_date", scope["fail"])
    assert cli.main(["run", str(tmp_path)]) == code
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert ("internal error" in err) == (tmp_path / "error.log").exists() == (code == cli.INTERNAL_ERROR)


def test_only_our_own_warnings_are_shown(tmp_path, monkeypatch, capfd):
    def warn(_arguments):
        warnings.warn_explicit("the gap\nis wide", UserWarning, cli.__file__, 1)
        warnings.warn_explicit("something old", DeprecationWarning, cli.__file__, 1)
        warnings.warn_explicit("a library's advice", UserWarning, str(tmp_path / "torch.py"), 1)

    monkeypatch.setattr(cli, "_dispatch", warn)
    assert cli.main([]) == 0
    assert capfd.readouterr().err == "crosstime: warning: the gap is wide\n"


INTERRUPT = """
import os, signal, sys, time
from crosstime import cli
from crosstime.pipeline import execute

def wait(*_):
    try:
        print("waiting", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        if sys.argv[1] == "twice":
            print("saving", flush=True)
            time.sleep(60)
        raise

execute.run = wait
sys.exit(cli.main(["run", "folder"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", ["once", "twice"])
def test_signals_interrupt_and_the_second_at_once(number, times):
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPT, times], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        if times == "twice":
            assert process.stdout.readline() == "saving\n"
            process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "crosstime", "--version"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "Traceback" not in done.stderr
