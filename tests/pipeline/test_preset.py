"""Presets: what each says, and what the list says of each."""

import tomllib

import pytest
from transformers import AutoConfig

import families
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU
from crosstime.models.metadata import tokens_seen
from crosstime.models.shape import ModelShape
from crosstime.pipeline import config, preset

EACH = [(name, rule) for name, found in preset.PRESETS.items() for rule in found.rules]
PAPER = [name for name, found in preset.PRESETS.items() if "paper" in found.parts]
THREE_WAY = ("pythia-1b-1B-4B-286B", "olmo-1b-4B-33B-3048B", "bloom-1b1-6B-55B-341B")


@pytest.mark.parametrize(("name", "rule"), EACH)
def test_every_preset_can_be_read_and_says_what_the_defaults_are(tmp_path, name, rule):
    (tmp_path / "run.toml").write_text(preset.text(name, rule))
    (found,) = config.load(tmp_path)
    (tmp_path / "run.toml").write_text(config.resolved(found))
    assert config.load(tmp_path) == (found,)
    assert found.sparsity.rule == rule


@pytest.mark.parametrize("repo", families.CONFIGS)
def test_stated_shapes_are_those_that_transformers_makes(repo):
    shape = ModelShape.from_config(AutoConfig.for_model(**families.CONFIGS[repo]))
    stated = {found.shape for found in preset.PRESETS.values() if found.repo == repo}
    assert stated == {shape}


def test_the_demos_shape_is_that_of_its_checkpoints():
    from crosstime import demo

    names = sorted(path.name for path in demo.SUITE.iterdir() if path.is_dir())
    found = preset.PRESETS["demo"]
    assert sorted(found.checkpoints) == names
    assert ModelShape.from_config(AutoConfig.from_pretrained(demo.SUITE / names[0])) == found.shape


def test_the_papers_comparisons():
    assert len(PAPER) == 4 + 6 + 4
    for name in PAPER:
        found = preset.settings(name)
        assert found.suite.revisions == found.selection.checkpoints == preset.PRESETS[name].checkpoints
        assert found.selection.size == (3 if name in THREE_WAY else 2)


@pytest.mark.parametrize("name", [name for name in preset.PRESETS if name != "demo"])
def test_checkpoints_are_in_order_of_training_and_the_name_says_what_they_have_seen(name):
    found = preset.PRESETS[name]
    seen = [tokens_seen(found.repo, checkpoint) for checkpoint in found.checkpoints]
    assert None not in seen
    assert seen == sorted(seen)
    if name in PAPER:
        sizes = [float(label[:-1]) * {"M": 1e6, "B": 1e9}[label[-1]] for label in name.split("-")[2:]]
        # (The paper counts 2 million tokens to a step of Pythia, and 550,000 to one of BLOOM.)
        assert seen == pytest.approx(sizes, rel=0.1)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    """Table of hyper-parameters of arXiv 2509.05291."""
    found = preset.settings(name)
    assert (found.crosscoder.features, found.crosscoder.layer) == (16_384, 12 if "bloom" in name else 8)
    training = found.training
    assert (training.tokens, training.batch_size, training.steps) == (400_000_000, 4096, 97_656)
    assert (training.lr, training.lr_decay, training.clip, training.seed) == (5e-5, 0.2, 1.0, 124)
    assert (training.decoder_norm, training.tied_init, training.model_dtype) == (0.08, False, "bfloat16")
    assert found.sparsity == L1(weight=2.0, warmup=0.05)
    assert (found.positions.bos, found.positions.first_encoded, found.positions.first_trained) == (False, 0, 1)
    text = found.text
    assert (text.context, text.min_tokens, text.packing, text.shuffle_seed) == (1024, 1024, "document-start", 42)
    batch = preset.settings(name, "batchtopk", 6582)
    assert batch.sparsity == BatchTopK(k=200, k_start=1000, k_steps=5000, threshold_start=1000, threshold_decay=0.999)
    assert (batch.training.decoder_norm, batch.training.seed) == (1.0, 6582)


def test_what_bloom_needs_more():
    found = preset.settings("bloom-1b1-6B-55B-341B")
    assert found.suite.tokenizer == "bigscience/bloom-1b1"
    assert found.text.min_characters == 2048
    assert sum(source.share for source in found.text.hub) == pytest.approx(1)


def test_thirty_two_snapshots():
    found = preset.settings("pythia-160m-32")
    assert found.selection.size == len(set(found.suite.revisions)) == 32
    assert (found.crosscoder.layer, found.crosscoder.features) == (6, 32 * 768)
    assert found.sparsity == JumpReLU(weight=0.3, threshold=0.1, window=4.0, threshold_lr=0.1)
    assert (found.training.lr, found.training.tokens, found.training.tied_init) == (5e-5, 800_000_000, True)


def test_the_list_is_aligned_and_complete():
    header, *rows = preset.table().split("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == list(preset.PRESETS)
    for label in ("GPU time", "download"):
        end = header.index(label) + len(label)
        assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows)
    (row,) = (row for row in rows if row.startswith("pythia-1b-1B-4B-286B "))
    assert row.split() == [
        *(
            "pythia-1b-1B-4B-286B",
            "3",
            "8",
            "16,384",
            "400M",
            "59",
            "min",
            "20.8",
            "GiB",
            "5.7",
            "GiB",
            "l1,",
            "batchtopk",
        )
    ]
    assert all(len(line) <= 120 for line in preset.table().splitlines())


def test_what_there_is_not():
    with pytest.raises(ValueError, match=r"there is no preset 'demos'; the nearest is 'demo'"):
        preset.text("demos")
    with pytest.raises(ValueError, match=r"preset demo has no rule 'topk': it has l1"):
        preset.text("demo", "topk")
    with pytest.raises(ValueError, match=r"the seed must not be negative; got -1"):
        preset.text("demo", seed=-1)


def test_the_seed_reaches_the_demo():
    assert tomllib.loads(preset.text("demo", seed=7))["training"]["seed"] == 7
