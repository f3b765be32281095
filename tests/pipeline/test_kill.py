"""A run that is killed again and again ends as one in peace does."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from users_run import ARTIFACTS, edit, write_inputs

KILLS = 20


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "crosstime", "run", str(folder)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_leave_the_same_weights(tmp_path, users_suite):
    peaceful, killed = (write_inputs(tmp_path / name, users_suite) for name in ("peaceful", "killed"))
    for folder in (peaceful, killed):
        edit(folder, "tokens = 4096", "tokens = 65_536")
        edit(folder, "save_seconds = 300", "save_seconds = 0.2")
    with start(peaceful) as process:
        process.communicate()
    assert process.returncode == 0
    order = random.Random(0)
    for _ in range(KILLS):
        if (killed / "crosscoder").exists():
            # It got through: train again, from wherever the killed training state stands.
            for name in ARTIFACTS[3:]:
                shutil.rmtree(killed / name, ignore_errors=True)
        with start(killed) as process:
            assert process.stderr is not None
            process.stderr.readline()  # the first stage is at work; before that the process only imports
            time.sleep(order.uniform(0, 3))
            process.send_signal(signal.SIGKILL)
            err = process.stderr.read()
        assert process.returncode in (-signal.SIGKILL, 0), err
    with start(killed) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    before, after = (folder / "crosscoder" / "model.safetensors" for folder in (peaceful, killed))
    assert before.read_bytes() == after.read_bytes()
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".") and path.name != ".lock"]
