import os
import signal
import subprocess
import sys

import pytest

from crosstime.pipeline.lock import locked

HOLD = """
import sys
from pathlib import Path
from crosstime.pipeline.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_which_the_first_is(tmp_path, holder):
    with (
        pytest.raises(ValueError, match=rf"another run \(process {holder.pid}\) is working in {tmp_path}"),
        locked(tmp_path),
    ):
        pass


def test_death_lets_go(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_an_end_lets_go(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            pass
