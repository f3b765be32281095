"""[[task]]: which pairs a section of run.toml stands for."""

import json
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crosstime import demo
from crosstime.pipeline import config, stages
from crosstime.pipeline.run import runs
from crosstime.pipeline.toml import build
from crosstime.tasks.pair_source import PairSource
from crosstime.tasks.task import Pair, Task


@pytest.fixture
def make(tmp_path):
    """A run with some tasks in its run.toml."""

    def make(*tasks):
        found = {"suite": {"demo": True}, "text": {"demo": True}, "task": list(tasks)}
        return runs(tmp_path, [build(config.RunConfig, found)])[0]

    return make


@pytest.fixture
def folders(tmp_path):
    """Small folders of published sets beside run.toml."""
    clams, multiblimp = tmp_path / "clams", tmp_path / "multi" / "eng"
    clams.mkdir()
    multiblimp.mkdir(parents=True)
    for language, verbs in (("en", ("is", "are")), ("fr", ("est", "sont"))):
        for name in ("vp_coord", "long_vp_coord"):
            lines = [
                json.dumps(
                    {
                        f"sentence_{which}": f"The cat {n} {verb}"
                        for which, verb in zip(("good", "bad"), verbs, strict=True)
                    }
                )
                for n in range(9)
            ]
            (clams / f"{language}_{name}.jsonl").write_text("\n".join(lines))
    rows = [f"The keys {n} are\tThe keys {n} is\tSV-{which}" for n in range(3) for which in "#P"]
    (multiblimp / "data.tsv").write_text("\n".join(["sen\twrong_sen\tphenomenon", *rows]))
    (tmp_path / "mine.jsonl").write_text('{"prefix": "The keys", "right": " are", "wrong": " is", "patch": "The key"}')


CONSTRUCTIONS = ["long_vp_coord", "vp_coord"]
PAIRS = {"source": "clams", "location": "clams", "constructions": CONSTRUCTIONS}
CLAMS = {"name": "c", "pairs": PAIRS}
MULTI = {"source": "multiblimp", "location": "multi", "languages": ["eng"]}
MINE = {"source": "jsonl", "files": "mine.jsonl"}


def sources(run, name):
    """Number of pairs by set."""
    return Counter(run.shared.tasks[name].set_names)


@pytest.mark.usefixtures("folders")
def test_every_place_gives_its_pairs(make):
    run = make(
        CLAMS,
        {"name": "french", "pairs": PAIRS | {"languages": ["fr"]}},
        {"name": "m", "pairs": MULTI},
        {"name": "p", "pairs": [MULTI | {"phenomena": ["SV-P"]}, MINE]},
        {"name": "own", "pairs": MINE},
        {"name": "both", "pairs": {"source": "jsonl", "files": ["mine.jsonl", "clams/en_vp_coord.jsonl"]}},
        {
            "name": "b",
            "pairs": {"source": "blimp", "location": str(demo.BLIMP), "sets": ["distractor"]},
            "max_pairs": 5,
        },
        {"name": "all", "pairs": {"source": "blimp"}, "max_pairs": 1},
    )
    assert sources(run, "c") == {f"{code}_{name}": 9 for code in ("en", "fr") for name in CONSTRUCTIONS}
    assert sources(run, "french") == {"fr_long_vp_coord": 9, "fr_vp_coord": 9}
    assert sources(run, "m") == {"eng_SV-#": 3, "eng_SV-P": 3}
    assert sources(run, "p") == {"eng_SV-P": 3, "mine": 1}
    assert sources(run, "own") == {"own": 1}, "the only file goes by the task's name"
    assert sources(run, "both") == {"mine": 1, "en_vp_coord": 9}
    assert sources(run, "b") == {"distractor_agreement_relational_noun": 5, "distractor_agreement_relative_clause": 5}
    assert len(sources(run, "all")) == 14


@pytest.mark.usefixtures("folders")
def test_pairs_are_drawn_by_seed_within_limits_by_name(make):
    drawn = {**CLAMS, "max_pairs": {"*_long_*": 3, "en_*": 5}, "sample_seed": 42}
    run, again, other = make(drawn), make(drawn), make({**drawn, "sample_seed": 43})
    assert sources(run, "c") == {"en_long_vp_coord": 3, "fr_long_vp_coord": 3, "en_vp_coord": 5, "fr_vp_coord": 9}
    assert run.shared.tasks == again.shared.tasks != other.shared.tasks
    assert [part.name for part in run.shared.surveyed["c"]] == sorted(sources(run, "c"))


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    "change",
    [
        {"sample_seed": 1},
        {"max_pairs": 8},
        {"prefix": "string"},
        {"pairs": PAIRS | {"languages": ["en"]}},
        {"pairs": PAIRS | {"constructions": ["vp_coord"]}},
    ],
)
def test_what_chooses_or_cuts_pairs_makes_effects_and_survey_stale(make, change):
    before, after = make(CLAMS), make(CLAMS | change)
    assert stages._tasks(before) != stages._tasks(after)
    assert stages._surveyed(before) != stages._surveyed(after)
    assert stages._tasks(before) == stages._tasks(make(CLAMS))


@pytest.mark.usefixtures("folders")
def test_the_manifest_states_how_pairs_were_chosen(make):
    drawn = {**CLAMS, "max_pairs": {"en_*": 5}, "sample_seed": 42, "prefix": "token"}
    stated = stages._tasks(make(drawn))["task 1 max_pairs, sample_seed, prefix"]
    assert stated == [{"en_*": 5}, 42, "token"]
    assert json.loads(json.dumps(stated)) == stated


@pytest.mark.usefixtures("folders")
def test_prompts_are_cut_as_the_task_says_and_have_second_prefixes(make):
    run = make(
        {"name": "string", "pairs": {"source": "blimp", "sets": ["distractor"]}, "prefix": "string", "max_pairs": 20},
        {
            "name": "counter",
            "pairs": {"source": "blimp", "sets": ["plain-subject-verb"], "counterfactual": True},
            "max_pairs": 50,
        },
        {"name": "mine", "pairs": MINE},
        {"name": "surveyed", "pairs": MINE, "attribute": False},
    )
    prompts = {prompts.task: prompts for prompts in run.shared.prompts}
    assert list(prompts) == ["string", "counter", "mine"]
    assert run.shared.prompts is run.shared.prompts, "they are made once"
    assert run.shared.tokenizer.decode(prompts["string"].tokens[0][1:]).startswith("A newspaper")
    assert {part.cut for part in run.shared.surveyed["string"]} == {"string"}
    assert prompts["string"].patch is None
    for name in ("counter", "mine"):
        patch = prompts[name].patch
        assert patch is not None
        assert [len(ids) for ids in patch] == [len(ids) for ids in prompts[name].tokens]
    assert run.shared.tokenizer.decode(prompts["counter"].tokens[0][1:]) == " The customer"
    assert run.shared.tokenizer.decode(prompts["counter"].patch[0][1:]) == " The customers"


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"source": "blimp", "sets": ["distractors"]}, "no BLiMP set 'distractors'"),
        (PAIRS | {"languages": ["eng"]}, "no language 'eng'; the nearest is 'en'"),
        (PAIRS | {"constructions": ["vp"]}, "no construction 'vp' in 'en'; the nearest is 'vp_coord'"),
        (MULTI | {"languages": ["en"]}, "no language 'en'; the nearest is 'eng'"),
        (MULTI | {"phenomena": ["SV-N"]}, "no phenomenon 'SV-N' in 'eng'"),
        (MINE | {"files": "none.jsonl"}, "none.jsonl does not exist"),
    ],
)
def test_what_is_not_there_is_told_with_the_tasks_name(make, pairs, message):
    with pytest.raises(ValueError, match=rf"task 'mine': .*{message}"):
        make({"name": "mine", "pairs": pairs}).shared.tasks  # noqa: B018


@dataclass(frozen=True)
class Countdown(PairSource):
    """A source that only this file knows."""

    source: str = field(default="countdown", init=False)
    start: int = 3

    def load(self, folder=Path()):
        assert folder.is_dir()
        return Task.from_pairs("countdown", [Pair(prefix=f"{n}", right=" a", wrong=" b") for n in range(self.start)])


def test_a_source_is_usable_once_it_is_defined(make):
    run = make({"name": "mine", "pairs": [{"source": "countdown"}, {"source": "countdown", "start": 2}]})
    assert sources(run, "mine") == {"countdown": 5}
    resolved = config.resolved(run.config)
    assert 'source = "countdown"\nstart = 2' in resolved
    assert build(config.RunConfig, tomllib.loads(resolved)) == run.config
    with pytest.raises(ValueError, match=r"unknown key `sart`; the nearest is 'start'"):
        make({"name": "mine", "pairs": {"source": "countdown", "sart": 2}})
    with pytest.raises(ValueError, match=r"the nearest is 'countdown'"):
        make({"name": "mine", "pairs": {"source": "countdwn"}})
