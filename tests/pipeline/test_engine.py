from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from crosstime.base import artifact
from crosstime.pipeline.engine import Stage, Workspace, bring_up_to_date, states


@dataclass(frozen=True)
class Section:
    rate: float = 1.0
    size: int = 2
    device: str = field(default="cpu", metadata={"matters": False})


@dataclass(frozen=True)
class Config:
    first: Section = Section()
    second: Section = Section()


def stage(name, inputs, calls, *, settings, work=None, facts=None, settle=None):
    def default_work(_workspace: Workspace, draft: Path) -> None:
        calls.append(name)
        (draft / "a.txt").write_text(name)
        (draft / "b.txt").write_text(name)

    optional = {key: value for key, value in (("facts", facts), ("settle", settle)) if value}
    return Stage(name, f"{name}-folder", "doing it", settings, inputs, work or default_work, **optional)


@pytest.fixture
def calls():
    return []


@pytest.fixture
def three(calls):
    return [
        stage("one", (), calls, settings=("first",)),
        stage("two", ("one-folder",), calls, settings=("second.rate",)),
        stage("three", ("two-folder/a.txt",), calls, settings=()),
    ]


def go(folder, stages, config=Config(), last=None):
    said = []
    bring_up_to_date([Workspace(folder, config)], stages, said.append, last=last)
    return said


def statuses(folder, stages, config=Config()):
    return {name: state.status for name, state in states(Workspace(folder, config), stages).items()}


def test_every_stage_is_done_once_and_in_order(tmp_path, three, calls):
    assert statuses(tmp_path, three) == {"one": "missing", "two": "missing", "three": "missing"}
    go(tmp_path, three)
    assert calls == ["one", "two", "three"]
    assert statuses(tmp_path, three) == {"one": "done", "two": "done", "three": "done"}
    assert go(tmp_path, three) == ["one: up to date", "two: up to date", "three: up to date"]
    assert calls == ["one", "two", "three"]


def test_a_setting_redoes_the_stages_that_it_matters_to(tmp_path, three, calls):
    go(tmp_path, three)
    calls.clear()
    config = Config(second=Section(rate=2.0, size=9, device="cuda"))
    assert statuses(tmp_path, three, config) == {"one": "done", "two": "stale", "three": "stale"}
    said = go(tmp_path, three, config)
    # What came out is what had been there, so the stage that reads it need not be done again.
    assert calls == ["two"]
    assert "two: doing it (second.rate changed)" in said


def test_what_does_not_matter_redoes_nothing(tmp_path, three, calls):
    go(tmp_path, three)
    calls.clear()
    go(tmp_path, three, Config(first=Section(device="cuda"), second=Section(size=9)))
    assert calls == []


def test_changed_content_redoes_what_reads_it(tmp_path, three, calls):
    go(tmp_path, three)
    three[0] = stage("one", (), calls, settings=("first",), work=lambda _, draft: (draft / "a.txt").write_text("new"))
    calls.clear()
    go(tmp_path, three, Config(first=Section(rate=3.0)))
    assert calls == ["two"]  # and "three" reads only a.txt of "two", which is as before


def test_a_deleted_artifact_is_made_again(tmp_path, three, calls):
    go(tmp_path, three)
    (tmp_path / "two-folder" / "manifest.json").unlink()
    assert statuses(tmp_path, three) == {"one": "done", "two": "missing", "three": "stale"}
    calls.clear()
    go(tmp_path, three)
    assert calls == ["two"]


def test_facts_count_like_settings(tmp_path, calls):
    text = tmp_path / "text.txt"
    text.write_text("one")
    reads = stage("one", (), calls, settings=(), facts=lambda _: {"text": artifact.sha256_of(text)})
    go(tmp_path, [reads])
    text.write_text("two")
    assert states(Workspace(tmp_path, Config()), [reads])["one"].reason == "text changed"
    text.unlink()
    assert "text.txt" in states(Workspace(tmp_path, Config()), [reads])["one"].reason
    with pytest.raises(FileNotFoundError):
        go(tmp_path, [reads])


def test_one_stage_takes_along_only_what_it_reads(tmp_path, three, calls):
    three.insert(0, stage("aside", (), calls, settings=()))
    go(tmp_path, three, last="two")
    assert calls == ["one", "two"]


def test_damage_is_found_before_it_is_read(tmp_path, three):
    go(tmp_path, three)
    (tmp_path / "one-folder" / "b.txt").write_text("oNe")
    with pytest.raises(ValueError, match=r"one-folder/b\.txt is altered or damaged"):
        go(tmp_path, three)


def test_a_stage_that_fails_leaves_those_before_it(tmp_path, three):
    def fail(_workspace: Workspace, draft: Path) -> None:
        (draft / "half").write_text("half")
        raise ValueError("bad input")

    three[1] = stage("two", ("one-folder",), [], settings=(), work=fail)
    with pytest.raises(ValueError, match="bad input"):
        go(tmp_path, three)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one-folder"]


def test_what_a_killed_run_left_is_swept(tmp_path, three):
    (tmp_path / ".one-folder.writing").mkdir()
    go(tmp_path, three)
    assert not (tmp_path / ".one-folder.writing").exists()


@dataclass(frozen=True)
class Named(Workspace):
    """One of several in a run folder, who share the first artifact."""

    name: str

    def folder_of(self, artifact: str) -> Path:
        return self.folder / artifact if artifact == "one-folder" else self.folder / self.name / artifact


def test_several_workspaces_share_do_together_and_do_alone(tmp_path, three, calls):
    def together(workspaces, drafts):
        calls.append("two of " + ", ".join(workspace.name for workspace in workspaces))
        for workspace, draft in zip(workspaces, drafts, strict=True):
            (draft / "a.txt").write_text(workspace.name)

    three[1] = replace(three[1], together=together)
    a, b, c = (Named(tmp_path, Config(), name) for name in "abc")
    said = []
    bring_up_to_date([a, b], three, said.append)
    assert calls == ["one", "two of a, b", "three", "three"]
    assert said == [
        "one: doing it",
        *("two a: doing it", "two b: doing it"),
        *("three a: doing it", "three b: doing it"),
    ]
    assert (tmp_path / "b" / "two-folder" / "a.txt").read_text() == "b"
    assert {state.status for state in states(b, three).values()} == {"done"}
    calls.clear()
    said.clear()
    (tmp_path / "b" / ".three-folder.writing").mkdir()
    bring_up_to_date([a, c, b], three, said.append, last="two")
    assert calls == ["two"]  # of c alone
    assert said == ["one: up to date", "two a: up to date", "two c: doing it", "two b: up to date"]
    assert not (tmp_path / "b" / ".three-folder.writing").exists()


def test_what_is_done_together_stands_whole_or_not_at_all(tmp_path, three):
    def fail(_workspaces, drafts):
        (drafts[0] / "half").write_text("half")
        raise ValueError("bad input")

    three[1] = replace(three[1], together=fail)
    with pytest.raises(ValueError, match="bad input"):
        bring_up_to_date([Named(tmp_path, Config(), name) for name in "ab"], three, lambda _: None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a",
        "a.txt",
        "b",
        "b.txt",
        "manifest.json",
        "one-folder",
    ]


def test_the_seconds_of_unfinished_attempts_count(tmp_path, calls):
    one = replace(stage("one", (), calls, settings=()), seconds_before=lambda _: 1000.0)
    go(tmp_path, [one])
    manifest = artifact.read_manifest(tmp_path / "one-folder")
    assert manifest is not None
    assert 1000 <= manifest.seconds < 1100


def test_settling_happens_to_old_and_new_artifacts(tmp_path, calls):
    settled = []
    one = stage("one", (), calls, settings=(), settle=lambda w: settled.append((w.folder / "one-folder").is_dir()))
    go(tmp_path, [one])
    go(tmp_path, [one])
    assert (calls, settled) == (["one"], [True, True])
