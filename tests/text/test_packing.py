"""How documents become blocks."""

import numpy as np
import pytest

from crosstime.text import packing as packing_module
from crosstime.text.corpus import Corpus
from crosstime.text.packing import DocumentStart, Packed
from crosstime.text.positions import Positions
from tiny import SENTENCES, make_tokenizer

LONG = " ".join(SENTENCES)
DOCUMENTS = [SENTENCES[0], LONG, "Hi.", LONG[::-1], SENTENCES[1]]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("bos", [True, False])
def test_each_block_is_the_beginning_of_one_document(tokenizer, bos):
    corpus = Corpus.from_strings(
        DOCUMENTS, tokenizer, context=16, positions=Positions(bos=bos, encode_first=not bos), packing=DocumentStart()
    )
    room = 15 if bos else 16
    long_enough = [text for text in DOCUMENTS if len(ids(tokenizer, text)) >= room]
    assert 2 <= len(long_enough) < len(DOCUMENTS)
    expected = [[0] * bos + ids(tokenizer, text)[:room] for text in long_enough]
    assert corpus.blocks.tolist() == expected


def test_short_documents_are_passed_over(tokenizer):
    least = len(ids(tokenizer, LONG))
    few = Corpus.from_strings(DOCUMENTS, tokenizer, context=16, packing=DocumentStart(min_tokens=least))
    assert few.blocks.tolist() == [
        [0, *ids(tokenizer, text)[:15]] for text in DOCUMENTS if len(ids(tokenizer, text)) >= least
    ]
    packed = Corpus.from_strings(DOCUMENTS, tokenizer, context=16, packing=Packed(min_tokens=least))
    whole = Corpus.from_strings(
        [text for text in DOCUMENTS if len(ids(tokenizer, text)) >= least], tokenizer, context=16
    )
    assert (packed.blocks == whole.blocks).all()


@pytest.mark.parametrize("packing", [Packed, DocumentStart])
def test_documents_of_few_characters_are_not_even_tokenised(tokenizer, packing, monkeypatch):
    seen = []
    tokenise = packing_module.tokenise
    monkeypatch.setattr(
        packing_module, "tokenise", lambda tokenizer, texts: seen.extend(texts) or tokenise(tokenizer, texts)
    )
    found = Corpus.from_strings(DOCUMENTS, tokenizer, context=16, packing=packing(min_characters=len(LONG)))
    assert seen == [LONG, LONG[::-1]]
    whole = Corpus.from_strings([LONG, LONG[::-1]], tokenizer, context=16, packing=packing())
    assert (found.blocks == whole.blocks).all()


@pytest.mark.parametrize("packing", [Packed(), Packed(min_tokens=20), DocumentStart()])
def test_the_size_of_the_steps_changes_nothing(tokenizer, packing, monkeypatch):
    whole = Corpus.from_strings(DOCUMENTS * 3, tokenizer, context=16, packing=packing)
    for size in (1, 10, 300):
        monkeypatch.setattr(packing_module, "BATCH_CHARACTERS", size)
        again = Corpus.from_strings(DOCUMENTS * 3, tokenizer, context=16, packing=packing)
        assert np.array_equal(again.blocks, whole.blocks)


def test_what_gives_no_block_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"min_tokens = 3 is too small: a block takes 15"):
        Corpus.from_strings(DOCUMENTS, tokenizer, context=16, packing=DocumentStart(min_tokens=3))
    with pytest.raises(ValueError, match=r"fewer than one block .* \(and 2 of its 2 documents are too short"):
        Corpus.from_strings(DOCUMENTS[:1] * 2, tokenizer, context=128, packing=DocumentStart())
