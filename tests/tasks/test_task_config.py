from collections import Counter

import pytest
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from crosstime.tasks.task import Pair, Task
from crosstime.tasks.task_config import first_pairs, sample_pairs
from crosstime.text.positions import Positions

NO_BOS = Positions(bos=False)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter; spaces count for nothing."""
    letters = {letter: i for i, letter in enumerate("?abcdefghijklmnopqrstuvwxyz0123456789")}
    backend = Tokenizer(models.WordLevel(letters, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def pairs(name, size, *, mute=()):
    """Numbered pairs; those of `mute` give no prompt, for their answers differ in length."""
    return Task.from_pairs(
        name, [Pair(prefix=f"{name}{n}", right=" a", wrong=" bc" if n in mute else " b") for n in range(size)]
    )


def names(task):
    return [pair.prefix for pair in task.pairs]


def test_draws_are_those_of_datasets(tokenizer):
    """The paper: shuffle each set of what gives a prompt, cut it, join the sets, shuffle them together."""
    task = Task.join("both", [pairs("x", 50), pairs("y", 7)])
    sets = [Dataset.from_list([{"prefix": f"{name}{n}"} for n in range(size)]) for name, size in (("x", 50), ("y", 7))]
    kept = [rows.shuffle(seed=42).select(range(min(20, len(rows)))) for rows in sets]
    assert (
        names(sample_pairs(task, 20, 42, tokenizer, NO_BOS)) == concatenate_datasets(kept).shuffle(seed=42)["prefix"][:]
    )


def test_pairs_that_give_a_prompt_come_first_and_are_drawn_as_if_alone(tokenizer):
    with_mute, without = pairs("x", 40, mute=range(0, 40, 2)), pairs("x", 40).select(range(1, 40, 2))
    drawn = names(sample_pairs(with_mute, 25, 3, tokenizer, NO_BOS))
    assert drawn[:20] == names(sample_pairs(without, None, 3, tokenizer, NO_BOS))
    assert drawn[20:] == [f"x{n}" for n in range(0, 10, 2)]
    assert names(sample_pairs(with_mute, 5, 3, tokenizer, NO_BOS)) != drawn[:5]


def test_another_seed_draws_others(tokenizer):
    task = pairs("x", 40)
    assert len({sample_pairs(task, 10, seed, tokenizer, NO_BOS).sha256 for seed in (1, 2, 1)}) == 2


def test_limits_by_name_take_the_first_that_fits(tokenizer):
    task = Task.join("three", [pairs("en_long", 9), pairs("fr_long", 9), pairs("en_short", 9)])
    limits = {"*_long": 3, "en_*": 5}
    for taken in (first_pairs(task, limits), sample_pairs(task, limits, 0, tokenizer, NO_BOS)):
        assert Counter(taken.set_names) == {"en_long": 3, "fr_long": 3, "en_short": 5}
    assert Counter(first_pairs(task, {"fr_long": 2}).set_names) == {"en_long": 9, "fr_long": 2, "en_short": 9}
    assert first_pairs(task, 2) == task.take(2)
    assert first_pairs(task, None) == task


def test_a_limit_of_no_set_is_refused():
    task = Task.join("both", [pairs("en_long", 2), pairs("fr_long", 2)])
    with pytest.raises(
        ValueError, match=r"max_pairs names a set 'en_lng' that the task doesn't have; the nearest is 'en_long'"
    ):
        first_pairs(task, {"en_lng": 3})


def test_mixed_sets_are_told_apart_in_alphabetical_order(tokenizer):
    task = Task.join("both", [pairs("y", 30), pairs("x", 30)])
    assert [part.name for part in task.by_set()] == ["y", "x"]
    mixed = sample_pairs(task, None, 0, tokenizer, NO_BOS)
    assert [part.name for part in mixed.by_set()] == ["x", "y"]
    assert {part.name: set(names(part)) for part in mixed.by_set()} == {
        part.name: set(names(part)) for part in task.by_set()
    }
