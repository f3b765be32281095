"""Where a prompt ends and its answers begin.

gpt_neox_merges.txt holds those merges of the GPT-NeoX-20B tokenizer (EleutherAI, Apache-2.0) that the subject-verb sets
of BLiMP need, so that prompts can be counted as the paper's code counts them.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from crosstime.tasks.blimp import BlimpPairs
from crosstime.tasks.prompts import Question, cut_prompts
from crosstime.tasks.task import Pair, Task
from crosstime.text.positions import Positions

SETS = (
    "distractor_agreement_relational_noun",
    "distractor_agreement_relative_clause",
    "irregular_plural_subject_verb_agreement_1",
    "regular_plural_subject_verb_agreement_1",
)
NO_BOS = Positions(bos=False)


def byte_level(*merges, words=True):
    """A tokenizer that spells text, cut before spaces if `words`, in bytes but for some merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(a + b for a, b in merges)])
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def asked(how, tokenizer, *pair):
    """The tokens of one pair, cut; or why it gives none."""
    (found,) = cut_prompts(how, tokenizer, *([text] for text in pair))
    if isinstance(found, str):
        return found
    return [tokenizer.convert_ids_to_tokens(ids) for ids in (found.prompt, found.right, found.wrong)]


@pytest.fixture(scope="module")
def gpt_neox():
    text = Path(__file__).with_name("gpt_neox_merges.txt").read_text(encoding="utf-8")
    return byte_level(*(tuple(line.split(" ")) for line in text.splitlines()))


@pytest.mark.parametrize(
    ("how", "counts"),
    [("shared", [917, 866, 857, 829]), ("string", [917, 866, 857, 829]), ("token", [918, 873, 857, 829])],
)
def test_the_papers_counts(gpt_neox, how, counts):
    tasks = [replace(BlimpPairs(name).load(), cut=how) for name in SETS]
    assert [len(task.find_prompts(gpt_neox, NO_BOS)) for task in tasks] == counts


def test_the_default_asks_what_the_published_results_ask_after_a_space(gpt_neox):
    ours, theirs = (
        replace(BlimpPairs(SETS[0]).load(), cut=how).find_prompts(gpt_neox, NO_BOS) for how in ("shared", "string")
    )
    assert ours.pair_index.tolist() == theirs.pair_index.tolist()
    assert ours.right.tolist() == theirs.right.tolist()
    assert ours.wrong.tolist() == theirs.wrong.tolist()
    assert gpt_neox.decode(ours.tokens[0]) == " A niece of most senators"
    assert gpt_neox.decode(theirs.tokens[0]) == "A niece of most senators"
    assert theirs.skipped == {"answers of different length": 82, "answers of more than two tokens": 1}


@pytest.mark.parametrize("how", ["shared", "string", "token"])
def test_of_two_tokens_the_first_that_differs_is_the_answer(how):
    tokenizer = byte_level(("Ġ", "a"), ("b", "c"))
    assert asked(how, tokenizer, "x", " ax", " ay") == [["x", "Ġa"], "x", "y"]
    assert asked(how, tokenizer, "x", " ay", "bcy") == [["x"], "Ġa", "bc"]
    assert asked(how, tokenizer, "x", " ay", "bc") == "answers of different length"


def test_only_the_token_cut_keeps_answers_that_share_more_than_one_token():
    tokenizer = byte_level()
    assert asked("token", tokenizer, "x", "aaaa", "aaab") == [[*"xaaa"], "a", "b"]
    for how in ("shared", "string"):
        assert asked(how, tokenizer, "x", "aaaa", "aaab") == "answers of more than two tokens"


def test_a_token_across_the_cut():
    """Alone, "ak" ends in a token of its own; before "e" it does not."""
    tokenizer = byte_level(("k", "e"), ("k", "t"))
    assert asked("shared", tokenizer, "ak", "e", "t") == [["a"], "ke", "kt"]
    assert asked("token", tokenizer, "ak", "e", "t") == [["a"], "ke", "kt"]
    assert asked("string", tokenizer, "ak", "e", "t") == [["a", "k"], "e", "t"]


def test_spaces_before_a_prefix_are_kept_only_in_ours():
    for how, prompt in (("shared", "Ġx"), ("string", "x"), ("token", "x")):
        assert asked(how, byte_level(("Ġ", "x")), " x", "a", "b") == [[prompt], "a", "b"]


@pytest.mark.parametrize("how", ["shared", "string", "token"])
def test_without_a_prompt_there_is_nothing_to_ask(how):
    assert asked(how, byte_level(), "", "a", "b") == "nothing before the answers"
    assert asked(how, byte_level(), "x", "a", "a") == "the same tokens"


def spelled(raw):
    """Bytes as a byte-level tokenizer writes them: the letter that a byte is, or a stand-in where it is none."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return "".join(chr(byte if byte in plain else 256 + others.index(byte)) for byte in raw)


@pytest.mark.parametrize("how", ["shared", "string", "token"])
@pytest.mark.parametrize(
    ("prefix", "right", "wrong", "pieces", "prompt", "answers"),
    [
        # Hindi, "he was" and "she was": the last two of seven bytes differ, the fifth is a third of a vowel sign.
        ("वह", " था", " थी", [(0, 5), (5, 7)], 5, ((5, 7), (5, 7))),
        # Arabic, "she is" and "he is": the first letter differs, and so does its first byte.
        ("هل", " تكون", " يكون", [(0, 2), (2, 9)], 0, ((0, 2), (0, 2))),
    ],
)
def test_parts_of_letters_are_tokens_like_any_other(how, prefix, right, wrong, pieces, prompt, answers):
    """No text decodes to them, so nothing may be decoded and encoded again."""
    merges: dict[tuple[str, str], None] = {}
    for start, end in pieces:
        for text in (right, wrong):
            token = spelled(text.encode()[start:end])
            merges |= {(token[:n], token[n]): None for n in range(1, len(token))}
    tokenizer = byte_level(*merges, words=False)
    expected = [
        [*spelled(prefix.encode()), *([spelled(right.encode()[:prompt])] if prompt else [])],
        *(spelled(text.encode()[slice(*part)]) for text, part in zip((right, wrong), answers, strict=True)),
    ]
    assert asked(how, tokenizer, prefix, right, wrong) == expected
    (found,) = cut_prompts(how, tokenizer, [prefix], [right], [wrong])
    assert "\ufffd" in tokenizer.decode(found.right)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(("Ġ", "i"), ("Ġi", "s"), ("Ġ", "b"), ("Ġb", "e"))


def prompts_of(tokenizer, *pairs):
    return Task.from_pairs("t", [Pair(None, None, *pair) for pair in pairs]).find_prompts(tokenizer, NO_BOS)


def test_second_prefixes_align_with_the_first(tokenizer):
    prompts = prompts_of(tokenizer, ("ab", " is", " be", "cd"), ("abc", " isa", " isb", "bcd"))
    assert [tokenizer.decode(ids) for ids in prompts.tokens] == ["ab", "abc is"]
    assert prompts.patch is not None
    assert [tokenizer.decode(ids) for ids in prompts.patch] == ["cd", "bcd is"]
    assert [len(ids) for ids in prompts.patch] == [len(ids) for ids in prompts.tokens]
    assert prompts.skipped == {}


def test_pairs_without_an_aligned_second_prefix_are_skipped_where_others_have_one():
    joint = byte_level(("k", "e"), ("k", "t"))
    prompts = prompts_of(
        joint, ("ab", "e", "t", "cd"), ("ab", "e", "t"), ("ab", "e", "t", "abc"), ("ab", "e", "t", "abk"),
        ("ab", "e", "eee", "cd"), ("a", "e", "t", "k"),
    )  # fmt: skip
    assert prompts.pair_index.tolist() == [0]
    assert prompts.skipped == {
        "second prefix: none": 1,
        "second prefix of another length": 1,
        "other answers after the second prefix": 1,
        "answers of different length": 1,
        "second prefix: nothing before the answers": 1,
    }


def test_bos_stands_before_both_prefixes():
    backend = byte_level().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="!")
    prompts = Task.from_pairs("t", [Pair(None, None, "ab", "x", "y", "cd")]).find_prompts(tokenizer)
    assert prompts.patch is not None
    assert [tokenizer.decode(ids) for ids in (*prompts.tokens, *prompts.patch)] == ["!ab", "!cd"]


def test_a_task_without_second_prefixes_has_none(tokenizer):
    assert prompts_of(tokenizer, ("ab", " is", " be")).patch is None
    assert cut_prompts("shared", tokenizer, [], [], []) == []
    assert Question([1], 2, 3).patch is None
