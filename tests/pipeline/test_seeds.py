"""The table over seeds, from run folders that hold just what it reads."""

import json
import shutil

import numpy as np
import pytest
import torch

from crosstime import cli
from crosstime.base import artifact
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.evaluation.quality import Quality
from crosstime.pipeline.seeds import aligned, markdown, seed_table

NAMES = ("early", "late")


def write_run(folder, seed, *, names=NAMES, features=8, settings=(), evaluation=()):
    """An evaluated run whose numbers follow from its seed."""
    rng = np.random.default_rng(seed)
    crosscoder = Crosscoder(CrosscoderConfig(names, 1, 4, features))
    crosscoder.initialise(
        torch.zeros(2, 4), torch.ones(2), decoder_norm=1.0, tied=True, generator=torch.Generator().manual_seed(seed)
    )
    found = Quality(
        checkpoints=list(names),
        n_tokens=1000,
        l0=10.0 + seed,
        dead=seed,
        frequency=rng.random(features),
        explained_variance=np.array([0.9, 0.8]) + 0.001 * seed,
        ce_clean=np.array([3.0, 2.0]),
        ce_spliced=np.array([3.1, 2.1]) + 0.01 * seed,
        ce_zero=np.array([5.0, 2.0]),
    )
    trained = {"training.seed": seed, "training.lr": 1e-3, "crosscoder.layer": None} | dict(settings)
    with artifact.writing(folder / "crosscoder", settings=trained, inputs={}) as draft:
        crosscoder.save_pretrained(draft)
    content = artifact.verify(folder / "crosscoder").content
    evaluated = {"evaluation.blocks": 4} | dict(evaluation)
    with artifact.writing(folder / "evaluation", settings=evaluated, inputs={"crosscoder": content}) as draft:
        found.save(draft)
    return folder


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / f"seed {seed}", seed) for seed in (1, 2, 6)]


def test_the_table_holds_mean_and_deviation(runs):
    found = seed_table(runs)
    assert found.seeds == [1, 2, 6]
    numbers = found.to_json()
    assert numbers["l0"] == {"mean": pytest.approx(13), "std": pytest.approx(np.std([1, 2, 6], ddof=1))}
    assert numbers["delta_ce"]["late"]["mean"] == pytest.approx(0.13)
    assert numbers["loss_recovered"]["late"] == {"mean": None, "std": None}  # zeros cost nothing there
    assert numbers["stability"] is None


def test_people_get_an_aligned_table_or_markdown(runs, capfd):
    assert cli.main(["table", *map(str, runs)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["3", "seeds", *NAMES]
    assert "explained variance  0.9030 ± 0.0026  0.8030 ± 0.0026" in lines
    assert cli.main(["table", *map(str, runs), "--markdown"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["| 3 seeds | early | late |", "|---|---|---|"]
    assert "| L0 | 13.00 ± 2.65 |  |" in lines
    rows = seed_table(runs).rows()
    assert aligned(rows).count("\n") == markdown(rows).count("\n") - 1


def test_scripts_get_one_object(runs, capfd):
    assert cli.main(["table", *map(str, runs), "--json", "--match"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["dead"]["mean"] == pytest.approx(3)
    assert 0 < found["stability"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"names": ("early", "later")},
            'checkpoints is ["early", "late"] in the first and ["early", "later"] in the second',
        ),
        ({"features": 9}, "features is 8 in the first and 9 in the second"),
        ({"settings": {"training.lr": 1e-4}}, "training.lr is 0.001 in the first and 0.0001 in the second"),
        ({"settings": {"sparsity.weight": 3.0}}, "sparsity.weight is null in the first and 3.0 in the second"),
        ({"evaluation": {"evaluation.blocks": 5}}, "evaluation.blocks is 4 in the first and 5 in the second"),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_refused(runs, tmp_path, capfd, change, message):
    other = write_run(tmp_path / "other", 7, **change)
    assert cli.main(["table", str(runs[0]), str(other)]) == cli.BAD_INPUT
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_default_layer_is_the_one_that_it_means(runs, tmp_path):
    stated = write_run(tmp_path / "stated", 7, settings={"crosscoder.layer": 1})
    assert seed_table([runs[0], stated]).seeds == [1, 7]


def test_one_seed_twice_or_too_few_runs_or_none_are_refused(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    with pytest.raises(ValueError, match=r"have the same seeds, \(1, 1\)"):
        seed_table([*runs, copy])
    with pytest.raises(ValueError, match="at least 2 crosscoders; got 1"):
        seed_table(runs[:1])
    with pytest.raises(ValueError, match="--until evaluate"):
        seed_table([runs[0], tmp_path / "nothing"])


SEVERAL = """
[suite]
demo = true
[text]
demo = true
[[task]]
name = "agreement"
pairs = { source = "blimp", sets = ["subject-verb"] }
"""


def write_several(folder, **crosscoders):
    """A run with several crosscoders: by name, the seed of the start values and other settings."""
    names = "".join(f'[[crosscoder]]\nname = "{name}"\n' for name in crosscoders)
    (folder / "run.toml").write_text(SEVERAL + names)
    for name, (seed, settings) in crosscoders.items():
        write_run(folder / name, 1, settings={"crosscoder.seed": seed} | settings)
    return folder


def test_a_run_stands_for_its_crosscoders_that_differ_in_the_seed_only(tmp_path, runs):
    run_dir = write_several(tmp_path, a=(None, {}), b=(8, {}), c=(8, {"sparsity.weight": 3.0}))
    assert seed_table([run_dir]).seeds == [1, 8]
    assert seed_table([run_dir / "b", runs[1], run_dir / "a"]).seeds == [8, 2, 1]
    with pytest.raises(ValueError, match=r"a and .*c differ in more than their seed: sparsity\.weight is null"):
        seed_table([run_dir / "a", run_dir / "c"])
    with pytest.raises(ValueError, match=r"has several crosscoders: name one \(a, b, c\)"):
        seed_table([run_dir, runs[1]])
    with pytest.raises(ValueError, match=r"has no crosscoder 'd'; the nearest is"):
        seed_table([run_dir / "a", run_dir / "d"])


def test_which_of_several_sets_must_be_said_and_that_one_is_there(tmp_path):
    other = {"sparsity.weight": 3.0}
    run_dir = write_several(tmp_path, a=(None, {}), b=(8, {}), c=(8, other), d=(9, other))
    with pytest.raises(ValueError, match=r"has 2 sets that differ only in their seed \(a, b; c, d\): name one set"):
        seed_table([run_dir])
    write_several(tmp_path, a=(None, {}), c=(8, other))
    with pytest.raises(ValueError, match="differ in more than their seed: sparsity"):
        seed_table([run_dir])
    write_several(tmp_path, a=(8, {}), b=(8, {}))
    with pytest.raises(ValueError, match=r"have the same seeds"):
        seed_table([run_dir])
    shutil.rmtree(run_dir / "b" / "evaluation")
    with pytest.raises(ValueError, match=rf"b has no evaluation .* `crosstime run {run_dir} --until evaluate`"):
        seed_table([run_dir])


def test_seeds_of_the_training_are_told_where_those_of_the_start_values_are_all_one(tmp_path):
    runs = [write_run(tmp_path / f"run {n}", n, settings={"crosscoder.seed": 7}) for n in (1, 2)]
    assert seed_table(runs).seeds == [1, 2]


def test_an_imported_crosscoder_has_no_seed(runs):
    manifest = runs[1] / "crosscoder" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["settings"] = {"crosscoder.from": "somewhere"}
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the crosscoder of .*seed 2 is imported"):
        seed_table(runs)


def test_an_evaluation_of_an_earlier_crosscoder_is_refused(runs):
    write_run(runs[0], 3)
    evaluation = shutil.copytree(runs[0] / "evaluation", runs[0] / "old")
    write_run(runs[0], 4)
    shutil.rmtree(runs[0] / "evaluation")
    evaluation.rename(runs[0] / "evaluation")
    with pytest.raises(ValueError, match="has no evaluation of its crosscoder"):
        seed_table(runs)
