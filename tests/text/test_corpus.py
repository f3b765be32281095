import gzip
import lzma

import numpy as np
import pytest

from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from tiny import make_tokenizer

DOCUMENTS = ["The keys to the cabinet\nare on the table.", "A dog was barking.", "The children play in the garden."]
TEXT = "\n\n".join(DOCUMENTS) + "\n"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stream(tokenizer):
    """What the three documents should become: one stream, EOS (token 0) between documents."""
    first, second, third = (ids(tokenizer, document) for document in DOCUMENTS)
    return [*first, 0, *second, 0, *third]


def test_blocks_are_bos_and_the_packed_stream(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    corpus = Corpus.from_text(path, tokenizer, context=6)
    expected = stream(tokenizer)
    assert len(corpus) == len(expected) // 5
    assert corpus.n_tokens == len(corpus) * 6
    assert corpus.blocks.dtype == np.uint16
    assert (corpus.blocks[:, 0] == 0).all()
    assert corpus.blocks[:, 1:].reshape(-1).tolist() == expected[: len(corpus) * 5]


def test_without_bos_blocks_are_the_stream_alone(tokenizer):
    corpus = Corpus.from_strings(DOCUMENTS, tokenizer, context=6, positions=Positions(bos=False))
    expected = stream(tokenizer)
    assert corpus.blocks.reshape(-1).tolist() == expected[: len(expected) // 6 * 6]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n\n", "\n \t\n\n\n").encode(),
    ],
    ids=["byte order mark", "Windows line ends", "several blank lines"],
)
def test_text_of_other_editors_gives_the_same_blocks(tokenizer, tmp_path, raw):
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    plain = Corpus.from_strings(DOCUMENTS, tokenizer, context=6)
    assert (Corpus.from_text(path, tokenizer, context=6).blocks == plain.blocks).all()


def test_compressed_files_read_as_plain_ones(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    plain, *packed = (Corpus.from_text(tmp_path / f"a.txt{end}", tokenizer, context=6) for end in ("", ".xz", ".gz"))
    for corpus in packed:
        assert (corpus.blocks == plain.blocks).all()


def test_several_files_follow_one_another(tokenizer, tmp_path):
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / f"{i}.txt").write_text(document)
    corpus = Corpus.from_text([tmp_path / f"{i}.txt" for i in range(3)], tokenizer, context=6)
    assert (corpus.blocks == Corpus.from_strings(DOCUMENTS, tokenizer, context=6).blocks).all()


def test_a_limit_takes_the_beginning(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 50)
    whole = Corpus.from_text(path, tokenizer, context=6)
    limited = Corpus.from_text(path, tokenizer, context=6, limit_tokens=32)
    assert limited.n_tokens == 30
    assert (limited.blocks == whole.blocks[:5]).all()


def test_a_split_loses_and_shares_nothing(tokenizer):
    corpus = Corpus.from_strings(DOCUMENTS * 10, tokenizer, context=6)
    train, heldout = corpus.split(0.25)
    assert len(heldout) == round(len(corpus) * 0.25)
    assert (np.concatenate([train.blocks, heldout.blocks]) == corpus.blocks).all()


def test_a_large_vocabulary_needs_wider_ids():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(1 << 16)])
    corpus = Corpus.from_strings(["<extra65535> and more text to fill a block"], tokenizer, context=4)
    assert corpus.blocks.dtype == np.uint32
    assert corpus.blocks[0, 1] == len(tokenizer) - 1


def test_long_documents_bring_no_warning_and_are_not_cut(tokenizer):
    short = make_tokenizer()
    short.model_max_length = 8
    short(DOCUMENTS, truncation=True, max_length=3, padding=False)  # leaves truncation set in the tokenizer
    blocks = Corpus.from_strings(DOCUMENTS, short, context=6).blocks
    assert (blocks == Corpus.from_strings(DOCUMENTS, tokenizer, context=6).blocks).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n\n ", "empty"),
        (b"hi", "fewer than one block"),
        (b"abc\xff\xfe", "offset 3"),
        (b"\xef\xbb\xbfabc\xff", "offset 6"),
    ],
)
def test_bad_text_is_refused(tokenizer, tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Corpus.from_text(path, tokenizer, context=16)
    assert "bad.txt" in str(error.value)


def test_missing_and_damaged_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Corpus.from_text(tmp_path / "none.txt", tokenizer, context=8)
    with pytest.raises(ValueError, match="not a file"):
        Corpus.from_text(tmp_path, tokenizer, context=8)
    whole = lzma.compress(TEXT.encode())
    (tmp_path / "cut.txt.xz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.txt.gz").write_bytes(b"plain text")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(TEXT.encode())[:-12])
    for name in ("cut.txt.xz", "no.txt.gz", "cut.txt.gz"):
        with pytest.raises(ValueError, match=f"{name} cannot be decompressed"):
            Corpus.from_text(tmp_path / name, tokenizer, context=8)


def test_impossible_sizes_are_refused(tokenizer):
    with pytest.raises(ValueError, match="no room"):
        Corpus.from_strings(DOCUMENTS, tokenizer, context=1)
    with pytest.raises(ValueError, match="held-out fraction"):
        Corpus.from_strings(DOCUMENTS, tokenizer, context=6).split(1.0)
    with pytest.raises(ValueError, match="too few"):
        Corpus.from_strings(DOCUMENTS, tokenizer, context=6).take(1).split(0.5)
    with pytest.raises(ValueError, match="nothing to read"):
        Corpus.from_strings(["", ""], tokenizer, context=6)
