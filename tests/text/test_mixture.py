"""Several texts in one file."""

import errno
import io

import numpy as np
import pytest

from crosstime.text import mixture
from crosstime.text.corpus import Corpus
from crosstime.text.mixture import hold_out, write_mixed


def blocks(n, first):
    """Blocks that can be told apart."""
    return (first + np.arange(2 * n, dtype=np.uint16)).reshape(n, 2)


def test_a_part_is_held_out_from_the_end():
    train, heldout = hold_out(blocks(10, 0), 0.2)
    assert train.index.tolist() == list(range(8))
    assert heldout.index.tolist() == [8, 9]
    for share, counts in ((0.0, (10, 0)), (1.0, (0, 10))):
        assert tuple(len(p) for p in hold_out(blocks(10, 0), share)) == counts


def test_shuffled_blocks_are_held_out_from_everywhere():
    train, heldout = hold_out(blocks(1000, 0), 0.2, shuffle_seed=42)
    assert sorted([*train.index, *heldout.index]) == list(range(1000))
    assert (heldout.index < 500).any()
    assert (hold_out(blocks(1000, 0), 0.2, shuffle_seed=42)[1].index == heldout.index).all()
    assert (hold_out(blocks(1000, 0), 0.2, shuffle_seed=43)[1].index != heldout.index).any()


def test_one_text_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "WRITE_BLOCKS", 3)
    write_mixed(tmp_path / "a.npy", [hold_out(blocks(10, 0), 0.0)[0]])
    corpus = Corpus.open(tmp_path / "a.npy", bos=True)
    assert (corpus.blocks == blocks(10, 0)).all()
    assert isinstance(corpus.blocks, np.memmap)
    assert corpus.blocks.dtype == np.uint16


def test_every_stretch_has_the_shares_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "WRITE_BLOCKS", 7)
    parts = [hold_out(blocks(n, first), 0.0)[0] for n, first in ((60, 0), (30, 1000), (10, 2000))]
    write_mixed(tmp_path / "a.npy", parts)
    first = np.load(tmp_path / "a.npy")[:, 0]
    assert sorted(first) == sorted(int(row[0]) for p in parts for row in p.blocks)
    owners = first // 1000
    for owner, share in ((0, 0.6), (1, 0.3), (2, 0.1)):
        counts = np.cumsum(owners == owner)
        assert (abs(counts - share * np.arange(1, 101)) <= 1).all()
        assert (np.diff(first[owners == owner]) > 0).all()


def test_a_text_that_is_all_held_out_leaves_nothing_to_the_others(tmp_path):
    parts = [hold_out(blocks(4, 0), 0.0)[0], hold_out(blocks(3, 100), 1.0)[0]]
    write_mixed(tmp_path / "a.npy", parts)
    assert (np.load(tmp_path / "a.npy") == blocks(4, 0)).all()


def test_a_full_disk_is_an_error_and_no_crash(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if memoryview(data).nbytes == 40:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(mixture.Path, "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left"):
        write_mixed(tmp_path / "a.npy", [hold_out(blocks(10, 0), 0.0)[0]])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.write_bytes(b"plain"), "is not a NumPy file"),
        (lambda path: np.save(path, np.zeros(3)), r"holds float64 \(3,\): expected blocks of tokens"),
        (lambda path: np.save(path, np.zeros((0, 4), dtype=np.uint16)), r"expected blocks of tokens"),
    ],
)
def test_what_holds_no_blocks_is_refused(tmp_path, write, message):
    write(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=message):
        Corpus.open(tmp_path / "a.npy", bos=True)
