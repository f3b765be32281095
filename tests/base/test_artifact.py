import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from crosstime.base import artifact
from crosstime.base.errors import is_disk_full


def write(folder, text="content", *, settings=None, inputs=None):
    with artifact.writing(folder, settings=settings or {}, inputs=inputs or {}) as draft:
        (draft / "data.bin").write_text(text)
        (draft / "inner").mkdir()
        (draft / "inner" / "more.txt").write_text("more")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_holds_what_was_written_and_a_manifest_of_it(tmp_path):
    write(tmp_path / "stage", settings={"a.b": [1, 2.5, None]}, inputs={"before": "hash"})
    manifest = artifact.verify(tmp_path / "stage")
    assert sorted(manifest.files) == ["data.bin", "inner/more.txt"]
    assert manifest.settings == {"a.b": [1, 2.5, None]}
    assert manifest.inputs == {"before": "hash"}
    assert manifest.versions["torch"]
    assert manifest.seconds >= 0
    assert names(tmp_path) == ["stage"]


def test_the_content_hash_sees_the_files_and_nothing_else(tmp_path):
    write(tmp_path / "a", settings={"x": 1})
    write(tmp_path / "b", settings={"x": 2})
    write(tmp_path / "c", "other")
    a, b, c = (artifact.verify(tmp_path / name).content for name in "abc")
    assert a == b != c


def test_a_folder_without_a_manifest_does_not_exist(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "data.bin").write_text("half")
    assert artifact.read_manifest(tmp_path / "stage") is None
    assert artifact.read_manifest(tmp_path / "nothing") is None
    with pytest.raises(FileNotFoundError):
        artifact.verify(tmp_path / "stage")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()],
    ids=["one flipped bit", "truncated", "missing"],
)
@pytest.mark.parametrize("name", ["data.bin", "inner/more.txt"])
def test_damage_is_found_and_the_file_named(tmp_path, damage, name):
    write(tmp_path / "stage")
    damage(tmp_path / "stage" / name)
    with pytest.raises(
        ValueError, match=f"{name} is altered or damaged: delete the folder .*stage to compute it again"
    ):
        artifact.verify(tmp_path / "stage")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": 3, "settings": {}, "inputs": {}, "versions": {}, "seconds": 1}']
)
def test_a_damaged_manifest_is_an_error_of_its_own(tmp_path, text):
    write(tmp_path / "stage")
    (tmp_path / "stage" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is altered or damaged"):
        artifact.read_manifest(tmp_path / "stage")


def test_a_new_artifact_replaces_the_old_one_whole(tmp_path):
    write(tmp_path / "stage")
    with artifact.writing(tmp_path / "stage", settings={}, inputs={}) as draft:
        (draft / "other").write_text("new")
    assert names(tmp_path / "stage") == ["manifest.json", "other"]
    assert names(tmp_path) == ["stage"]


def test_an_error_leaves_the_old_artifact_and_nothing_else(tmp_path):
    write(tmp_path / "stage", "old")

    def fail():
        with artifact.writing(tmp_path / "stage", settings={}, inputs={}) as draft:
            (draft / "data.bin").write_text("new")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == ["stage"]
    assert (tmp_path / "stage" / "data.bin").read_text() == "old"
    artifact.verify(tmp_path / "stage")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_artifact(tmp_path, monkeypatch, call):
    write(tmp_path / "stage", "old")

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rename = Path.rename
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "rename", lambda a, b: full() if a.name == ".stage.writing" else rename(a, b))
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "stage", "new")
    assert is_disk_full(caught.value)
    monkeypatch.undo()
    artifact.sweep(tmp_path)
    assert names(tmp_path) == ["stage"]
    assert (tmp_path / "stage" / "data.bin").read_text() == "old"


def test_a_full_disk_is_known_through_the_errors_of_libraries():
    assert is_disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    wrapped = RuntimeError("write failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.EACCES, "no"))


KILLED = """
    import os, signal
    from pathlib import Path
    from crosstime.base import artifact

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    {break_point}
    with artifact.writing(Path("stage"), settings={{}}, inputs={{}}) as draft:
        (draft / "data.bin").write_text("new")
        {inside}
"""


@pytest.mark.parametrize(
    ("break_point", "inside", "kept"),
    [
        ("", "die()", "old"),
        ("artifact._sync_tree = die", "", "old"),
        ("artifact._replace = die", "", "old"),
        ("artifact._sync = lambda path: path == Path('.') and die()", "", "new"),
        (
            "rename = Path.rename; Path.rename = lambda a, b: die() if a.name == '.stage.writing' else rename(a, b)",
            "",
            "old",
        ),
    ],
    ids=["between files", "before the sync", "before the renames", "after the renames", "between the renames"],
)
def test_a_killed_writer_leaves_a_whole_artifact(tmp_path, break_point, inside, kept):
    write(tmp_path / "stage", "old")
    script = textwrap.dedent(KILLED.format(break_point=break_point, inside=inside))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    artifact.sweep(tmp_path)
    assert names(tmp_path) == ["stage"]
    artifact.verify(tmp_path / "stage")
    assert (tmp_path / "stage" / "data.bin").read_text() == kept


def test_the_sweep_leaves_everything_else_alone(tmp_path):
    write(tmp_path / "stage")
    (tmp_path / "run.toml").write_text("x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".run.toml.writing").write_text("half a file")
    artifact.sweep(tmp_path)
    assert names(tmp_path) == [".hidden", "run.toml", "stage"]


def test_a_folder_is_discarded(tmp_path):
    write(tmp_path / "training" / "state")
    artifact.discard(tmp_path / "training" / "state", tmp_path)
    artifact.discard(tmp_path / "training" / "state", tmp_path)
    assert names(tmp_path) == ["training"]
    assert names(tmp_path / "training") == []


def test_half_a_discarded_folder_is_swept(tmp_path, monkeypatch):
    """A process that dies while it deletes has already taken the folder out of its place."""
    write(tmp_path / "training" / "state")

    def die(path):
        (path / "data.bin").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact.shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        artifact.discard(tmp_path / "training" / "state", tmp_path)
    monkeypatch.undo()
    assert names(tmp_path / "training") == []
    artifact.sweep(tmp_path)
    assert names(tmp_path) == ["training"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.toml"
    artifact.write_text(path, "first\n")
    artifact.write_text(path, "zweiter ü\n")
    assert path.read_text(encoding="utf-8") == "zweiter ü\n"

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        artifact.write_text(path, "third\n")
    assert path.read_text(encoding="utf-8") == "zweiter ü\n"
    assert names(tmp_path) == ["run.toml"]


def test_a_value_that_json_cannot_hold_makes_no_artifact(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "stage", settings={"x": float("nan")})
    assert names(tmp_path) == []
    write(tmp_path / "stage", settings={"x": 1e-4})
    assert json.loads((tmp_path / "stage" / "manifest.json").read_text())["settings"] == {"x": 1e-4}
