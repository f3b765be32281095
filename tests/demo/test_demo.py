import pytest
from transformers import AutoTokenizer

from crosstime import demo
from crosstime.models.suite import Suite
from crosstime.tasks.blimp import DETERMINER_NOUN, GROUPS, BlimpPairs
from crosstime.text.corpus import Corpus
from crosstime.text.files import read_lines


def read_text(path):
    return "\n".join(line for line, _ in read_lines(path))


def test_every_checkpoint_is_there_with_its_tokens():
    folders = {path.name for path in demo.SUITE.iterdir() if path.is_dir()}
    suite = Suite.from_folder(demo.SUITE)
    tokens = dict(zip(suite.names, suite.tokens, strict=True))
    assert folders == set(tokens)
    assert len(tokens) >= 7
    assert list(tokens.values()) == sorted(tokens.values())
    # 64 sequences of 128 tokens a step.
    assert all(count == int(name.removeprefix("step")) * 64 * 128 for name, count in tokens.items())
    for name in folders:
        files = {path.name for path in (demo.SUITE / name).iterdir()}
        assert files == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }


def test_the_package_stays_small():
    size = sum(path.stat().st_size for path in demo.FOLDER.rglob("*") if path.is_file())
    assert size < 45_100_000


def test_texts_are_whole_and_do_not_overlap():
    train, heldout = read_text(demo.TRAIN_TEXT), read_text(demo.HELDOUT_TEXT)
    assert len(train) > 10_000_000
    assert len(heldout) > 800_000
    assert not {line for line in heldout.split("\n") if len(line) > 200} & set(train.split("\n"))


def test_the_beginning_of_the_training_text_fills_blocks():
    tokenizer = AutoTokenizer.from_pretrained(demo.SUITE / "step64")
    corpus = Corpus.from_text(demo.TRAIN_TEXT, tokenizer, context=128, limit_tokens=128_000)
    assert corpus.n_tokens == 128_000
    assert (corpus.blocks[:, 0] == tokenizer.bos_token_id).all()
    beginning = tokenizer.decode(corpus.blocks[0, 1:].tolist())
    assert read_text(demo.TRAIN_TEXT).startswith(beginning)


@pytest.mark.parametrize(("group", "n_sets"), [("subject-verb", 6), ("determiner-noun", 8)])
def test_all_sets_are_there(group, n_sets):
    task = BlimpPairs(group).load()
    assert len(GROUPS[group]) == n_sets
    assert len(task) == 1000 * n_sets
    assert set(task.set_names) == set(GROUPS[group])


def test_sets_ask_for_the_next_token_as_published():
    tokenizer = AutoTokenizer.from_pretrained(demo.SUITE / "step64")
    task = BlimpPairs(DETERMINER_NOUN[0]).load()
    assert task.pairs[0].sentences == (" Raymond is selling this sketch.", " Raymond is selling this sketches.")
    prompts = task.prompts(tokenizer)
    assert len(prompts) + sum(prompts.skipped.values()) == 1000
    assert len(prompts) == 307
    assert tokenizer.decode(prompts.tokens[3]) == "<|endoftext|> A lot of patients resemble these"
    assert (tokenizer.decode(prompts.right[3]), tokenizer.decode(prompts.wrong[3])) == (" pictures", " picture")


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match=r"no BLiMP set 'determiner-nouns'.*'determiner-noun'"):
        BlimpPairs("determiner-nouns").load()
