"""What a run makes of run.toml: its tasks, and the sets that the survey looks at one by one."""

import json
import shutil

import pytest

import tiny
from crosstime.pipeline import config, stages
from crosstime.pipeline.run import runs
from crosstime.pipeline.toml import build

DISTRACTOR = {"name": "some", "pairs": {"source": "blimp", "sets": ["distractor"]}}
RUN = {"suite": {"demo": True}, "text": {"demo": True}}


@pytest.fixture
def make(tmp_path):
    """A run with some tasks in its run.toml."""

    def make(*tasks, **sections):
        (run,) = runs(tmp_path, [build(config.RunConfig, {**RUN, **sections, "task": list(tasks)})])
        return run

    return make


@pytest.fixture
def pairs(tmp_path):
    """A file of minimal pairs, told apart by a word."""

    def pairs(path, *words):
        lines = [json.dumps({"prefix": f"The {word}", "right": " is", "wrong": " are"}) for word in words]
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("\n".join(lines))
        return str(path)

    return pairs


def jsonl(name, *files):
    """A task of some files."""
    return {"name": name, "pairs": {"source": "jsonl", "files": list(files)}}


def sets(run):
    return {group: [part.name for part in parts] for group, parts in run.shared.surveyed.items()}


def test_sets_of_one_name_with_other_pairs_are_both_surveyed(make, pairs):
    first = jsonl("first", pairs("x/pairs.jsonl", "cat"), pairs("more.jsonl", "cow"))
    second = jsonl("second", pairs("y/pairs.jsonl", "dog", "fox"), "more.jsonl")
    run = make(first, second)
    assert sets(run) == {"first": ["pairs", "more"], "second": ["second: pairs", "more"]}
    assert {part.name: len(part) for part in run.shared.sets} == {"pairs": 1, "more": 1, "second: pairs": 2}


def test_a_set_of_two_groups_is_surveyed_once_and_told_in_both(make):
    run = make(DISTRACTOR, {"name": "all", "pairs": {"source": "blimp", "sets": ["subject-verb"]}})
    found = sets(run)
    assert set(found["some"]) < set(found["all"])
    names = [part.name for part in run.shared.sets]
    assert sorted(names) == sorted(found["all"])


def test_the_survey_takes_no_more_pairs_than_it_is_to(make, pairs):
    run = make(jsonl("mine", pairs("p.jsonl", "cat", "dog", "fox")), survey={"max_pairs": 2})
    assert [len(part) for part in run.shared.surveyed["mine"]] == [2]


def test_the_order_of_the_tasks_counts(make, pairs):
    """Effects are kept by the number of their task."""
    one, two = (jsonl(name, pairs(f"{name}.jsonl", name)) for name in ("cat", "dog"))
    assert stages._tasks(make(one, two)) != stages._tasks(make(two, one))
    assert stages._tasks_and_groups(make(one, two)) != stages._tasks_and_groups(make(two, one))
    assert stages._tasks(make(one, two)) == stages._tasks(make(one, two))


def test_unfinished_training_is_timed_by_its_log(make, tmp_path):
    run = make(DISTRACTOR)
    log = tmp_path / "training" / "log.jsonl"
    log.parent.mkdir()
    records = [{"tokens": 100, "tokens_per_second": 10.0}, {"tokens": 300, "tokens_per_second": 50.0}]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert stages.unfinished_seconds(run) == 0  # a log without a state is that of a finished training
    (tmp_path / "training" / "state").mkdir()
    assert stages.unfinished_seconds(run) == 14
    others = [record | {"crosscoder": name, "tokens_per_second": 20.0} for name in ("a", "b") for record in records]
    log.write_text("".join(json.dumps(record) + "\n" for record in others))
    assert stages.unfinished_seconds(run) == 0
    assert stages.unfinished_seconds(make(DISTRACTOR, crosscoder={"name": "b"})) == 15
    log.unlink()
    assert stages.unfinished_seconds(run) == 0


def test_a_task_without_the_second_prefixes_that_effects_need_is_found_before_any_work(make, pairs):
    mine = jsonl("mine", pairs("p.jsonl", "cat", "dog"))
    make(mine).shared._check_tasks()
    with pytest.raises(ValueError, match="task mine has no second prefixes"):
        make(mine, attribution={"baseline": "patch"}).shared._check_tasks()


def test_a_tokenizer_beside_the_checkpoints_is_that_of_all_and_decides(make, tiny_suite, tmp_path):
    bare = shutil.copytree(tiny_suite, tmp_path / "suite", ignore=shutil.ignore_patterns("*token*"))
    shutil.copytree(tiny_suite / "step0", tmp_path / "words", ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    run = make(DISTRACTOR, suite={"folder": "suite", "tokenizer": "words"})
    assert run.shared.tokenizer.get_vocab() == tiny.make_tokenizer().get_vocab()
    decide = run.shared.metadata.input_files(bare / "step0")
    assert decide[0] == bare / "step0" / "config.json"
    assert {path.parent for path in decide[1:]} == {tmp_path / "words"}
    assert {"config.json", "tokenizer.json"} <= set(run.shared.fingerprints()[0]["files"])
