import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from crosstime.tasks.prompts import Prompts
from crosstime.tasks.task import Pair, Task
from crosstime.text.positions import Positions

WORDS = [
    "<s>",
    "The",
    "dog",
    "dogs",
    "that",
    "chase",
    "was",
    "were",
    "is",
    "are",
    "has",
    "n",
    "'t",
    "des",
    "cend",
    "cends",
    "a",
    "b",
    "c",
]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word; `+` joins pieces of a word: des+cend is two tokens."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>", unk_token="<s>")


def word_ids(text):
    return [WORDS.index(word) for word in text.split()]


def prompts_of(tokenizer, *pairs, positions=Positions()):  # noqa: B008
    return Task.from_pairs("t", [Pair(prefix=p, right=r, wrong=w) for p, r, w in pairs]).prompts(tokenizer, positions)


def test_single_token_answers(tokenizer):
    prompts = prompts_of(tokenizer, ("The dog", " was", " were"), ("The dogs that chase", " are", " is"))
    assert prompts.tokens == [[0, *word_ids("The dog")], [0, *word_ids("The dogs that chase")]]
    assert prompts.right.tolist() == word_ids("was are")
    assert prompts.wrong.tolist() == word_ids("were is")
    assert prompts.pair_index.tolist() == [0, 1]
    assert prompts.skipped == {}


def test_of_two_tokens_the_first_decides_if_it_differs(tokenizer):
    prompts = prompts_of(tokenizer, ("The dog", " was n", " were n"))
    assert prompts.tokens == [[0, *word_ids("The dog")]]
    assert (prompts.right.tolist(), prompts.wrong.tolist()) == (word_ids("was"), word_ids("were"))


def test_of_two_tokens_a_shared_first_moves_to_the_prompt(tokenizer):
    prompts = prompts_of(tokenizer, ("The dog", " des cends", " des cend"))
    assert prompts.tokens == [[0, *word_ids("The dog des")]]
    assert (prompts.right.tolist(), prompts.wrong.tolist()) == (word_ids("cends"), word_ids("cend"))


def test_other_answers_are_skipped_and_counted(tokenizer):
    prompts = prompts_of(
        tokenizer,
        ("The dog", " was", " were n"),
        ("The dog", " a b c", " a b a"),
        ("", "was", "were"),
        ("The dog", " was", " were"),
    )
    assert len(prompts) == 1
    assert prompts.pair_index.tolist() == [3]
    assert prompts.skipped == {
        "answers of different length": 1,
        "answers of more than two tokens": 1,
        "nothing before the answers": 1,
    }


def test_where_a_token_spans_the_cut_the_prompt_ends_before_it():
    vocabulary = {"<s>": 0, "a": 1, "k": 2, "e": 3, "t": 4, "i": 5, "ke": 6, "kt": 7}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("k", "e"), ("k", "t")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    prompts = prompts_of(tokenizer, ("ak", "e", "t"), ("ak", "e", "i"))
    assert prompts.tokens == [[0, 1]]
    assert (prompts.right.tolist(), prompts.wrong.tolist()) == ([6], [7])
    assert prompts.skipped == {"answers of different length": 1}


def test_a_task_without_prompts_says_why(tokenizer):
    pairs = [
        Pair(prefix="The dog", right=" was", wrong=" were n"),
        Pair(good="The dog was a", bad="The dog were a"),
        Pair(good="The dog is a", bad="The dog are a"),
    ]
    with pytest.raises(ValueError, match="task agreement: none of its 3 pairs") as error:
        Task.from_pairs("agreement", pairs).prompts(tokenizer)
    assert "no prefix: 2" in str(error.value)
    assert "answers of different length: 1" in str(error.value)
    assert len(Task.from_pairs("agreement", pairs).find_prompts(tokenizer)) == 0


def test_sentences_begin_with_bos_and_fall_back_on_the_answers(tokenizer):
    task = Task.from_pairs(
        "t", [Pair(good="The dog was", bad="The dog were"), Pair(None, None, "The", " dog", " dogs")]
    )
    assert task.sentences(tokenizer) == [
        ([0, *word_ids("The dog was")], [0, *word_ids("The dog were")]),
        ([0, *word_ids("The dog")], [0, *word_ids("The dogs")]),
    ]
    assert task.sentences(tokenizer, Positions(bos=False))[1] == (word_ids("The dog"), word_ids("The dogs"))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(1, 9))
def test_batches_hold_every_prompt_once_and_one_length(lengths, batch_size):
    tokens = [[7] * length for length in lengths]
    n = len(lengths)
    prompts = Prompts("t", tokens, torch.zeros(n).long(), torch.ones(n).long(), torch.arange(n))
    seen = []
    for index, batch in prompts.by_length(batch_size):
        assert 1 <= len(index) <= batch_size
        assert batch.tolist() == [tokens[i] for i in index]
        seen += index.tolist()
    assert sorted(seen) == list(range(n))


def test_join_and_take_keep_sources():
    a = Task.from_pairs("a", [Pair(f"good {i}", f"bad {i}") for i in range(3)])
    b = Task.from_pairs("b", [Pair(f"fine {i}", f"poor {i}") for i in range(2)])
    both = Task.join("both", [a, b])
    assert both.set_names == ("a", "a", "a", "b", "b")
    assert both.take(1).pairs == (a.pairs[0], b.pairs[0])
    assert both.take(10) == both


def test_the_hash_follows_the_pairs_not_the_name():
    pairs = [Pair("a b", "a c"), Pair("d e", "d f")]
    one = Task("x", tuple(pairs), ("s", "s"))
    assert one.sha256 == Task("y", tuple(pairs), ("s", "s")).sha256
    assert one.sha256 != Task("x", tuple(pairs[::-1]), ("s", "s")).sha256
    assert one.sha256 != Task("x", tuple(pairs), ("s", "t")).sha256


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"good": "a"},
        {"prefix": "a", "right": "b"},
        {"good": "a", "bad": "a"},
        {"prefix": "a", "right": "b", "wrong": "b"},
        {"good": "a", "bad": "b", "right": "c"},
    ],
)
def test_half_a_pair_is_refused(fields):
    with pytest.raises(ValueError, match="pair needs"):
        Pair(**fields)


def test_an_empty_task_is_refused():
    with pytest.raises(ValueError, match="no pairs"):
        Task.from_pairs("t", [])
