"""Tokens on disk, and what a kill leaves of them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crosstime.text import corpus, packing
from crosstime.text.corpus import Corpus, TokenFile, read_progress
from crosstime.text.files import Files
from crosstime.text.packing import DocumentStart, Packed, Tokenisation
from crosstime.text.positions import Positions
from crosstime.text.sources import Strings
from tiny import SENTENCES, make_tokenizer

PACKED = Packed()
DOCUMENTS = [f"{sentence} {i}" for i in range(6) for sentence in SENTENCES]

KILLED = """
import os, signal, sys, types
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from crosstime.text import corpus, packing
from crosstime.text.files import Files
from crosstime.text.packing import DocumentStart, Packed
from crosstime.text.positions import Positions
from tiny import make_tokenizer

packing.BATCH_CHARACTERS = 100
files, out = [Path(path) for path in sys.argv[3:]], Path(sys.argv[2])
tokenizer = make_tokenizer()

def fill(folder, rule):
    tokenisation = packing.Tokenisation(Files(files), tokenizer, 16, Positions(), rule)
    corpus.TokenFile(folder, tokenisation).fill()

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(name, call, before):
    # The process dies at one call of a function, before or after what it does.
    real, calls = getattr(corpus, name), []
    def function(*arguments):
        calls.append(arguments)
        if before and len(calls) == call:
            before(*arguments)
        real(*arguments)
        if not before and len(calls) == call:
            die()
    setattr(corpus, name, function)

def tear(file):
    # Of the bytes of the last step, some were written.
    os.ftruncate(file, os.fstat(file).st_size - 5)
    die()

corpus.fsync = os.fsync
corpus.os = types.SimpleNamespace(fsync=lambda file: corpus.fsync(file))  # and not that of others

moments = [
    ("fsync", 1, die), ("fsync", 1, tear), ("write_text", 1, die), ("write_text", 1, None),
    ("fsync", 4, die), ("fsync", 4, tear), ("write_text", 4, die), ("write_text", 4, None),
]
for rule in (Packed(), DocumentStart()):
    for number, moment in enumerate([*moments, *moments[4:]]):
        # Some folders are killed in once, and one again and again.
        folder = out / type(rule).__name__ / ("often" if number < len(moments) else f"once-{number}")
        process = os.fork()
        if not process:
            die_at(*moment)
            fill(folder, rule)
            os._exit(1)  # it lived
        status = os.waitpid(process, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
"""


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 300)


def tokenisation(tokenizer, documents=DOCUMENTS, rule=PACKED, context=16):
    return Tokenisation(Strings(documents), tokenizer, context, Positions(), rule)


@pytest.mark.usefixtures("small_steps")
def test_a_kill_at_any_moment_changes_no_byte(tmp_path, tokenizer):
    half = len(DOCUMENTS) // 2
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("\n\n".join(DOCUMENTS[:half]))
    files[1].write_text("\n\n".join(DOCUMENTS[half:]))
    arguments = [str(Path(__file__).parents[1]), str(tmp_path), *map(str, files)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    for rule in (Packed(), DocumentStart()):
        whole = Corpus.from_text(files, tokenizer, context=16, packing=rule)
        killed = sorted((tmp_path / type(rule).__name__).iterdir())
        assert len(killed) == 5
        for folder in killed:
            text = Tokenisation(Files(files), tokenizer, 16, Positions(), rule)
            found = TokenFile(folder, text).fill()
            assert isinstance(found, np.memmap)
            assert np.array_equal(found, whole.blocks), folder
            assert (folder / "blocks.bin").read_bytes() == whole.blocks.tobytes()


@pytest.mark.usefixtures("small_steps")
def test_it_goes_on_and_does_not_begin_anew(tmp_path, tokenizer, monkeypatch):
    first = TokenFile(tmp_path, tokenisation(tokenizer)).fill(limit=10)
    read = read_progress(tmp_path)["progress"]["documents"]
    assert len(first) == 10
    assert 0 < read < len(DOCUMENTS)
    seen = []
    tokenise = packing.tokenise
    monkeypatch.setattr(packing, "tokenise", lambda tokenizer, texts: seen.extend(texts) or tokenise(tokenizer, texts))
    whole = TokenFile(tmp_path, tokenisation(tokenizer)).fill()
    assert seen == DOCUMENTS[read:]
    assert np.array_equal(whole, Corpus.from_strings(DOCUMENTS, tokenizer, context=16).blocks)
    assert np.array_equal(whole[:10], first)
    seen.clear()
    again = TokenFile(tmp_path, tokenisation(tokenizer)).fill()
    assert np.array_equal(again, whole)
    assert not seen


def test_a_corpus_may_lie_in_a_folder(tmp_path, tokenizer):
    found = Corpus.from_text(Strings(DOCUMENTS), tokenizer, context=16, limit_tokens=70, folder=tmp_path / "a" / "b")
    assert isinstance(found.blocks, np.memmap)
    assert np.array_equal(found.blocks, Corpus.from_strings(DOCUMENTS, tokenizer, context=16).blocks[:4])


def other_tokenizer(_):
    return tokenisation(make_tokenizer(vocab_size=300))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda tokenizer: tokenisation(tokenizer, context=8), "context was 16 and is 8"),
        (lambda tokenizer: tokenisation(tokenizer, DOCUMENTS[1:]), r"text\.texts was"),
        (lambda tokenizer: tokenisation(tokenizer, rule=DocumentStart()), "packing was 'Packed' and is 'Document"),
        (
            lambda tokenizer: tokenisation(tokenizer, rule=Packed(min_tokens=2)),
            r"packing\.min_tokens was None and is 2",
        ),
        (other_tokenizer, "tokenizer was"),
    ],
)
def test_long_work_of_other_settings_is_not_thrown_away(tmp_path, tokenizer, monkeypatch, other, message):
    TokenFile(tmp_path, tokenisation(tokenizer)).fill()
    before = (tmp_path / "blocks.bin").read_bytes()
    monkeypatch.setattr(corpus, "SECONDS_TO_KEEP", -1.0)
    with pytest.raises(ValueError, match=rf"{message}.*delete that folder"):
        TokenFile(tmp_path, other(tokenizer)).fill()
    assert (tmp_path / "blocks.bin").read_bytes() == before
    monkeypatch.setattr(corpus, "SECONDS_TO_KEEP", 60.0)
    text = other(tokenizer)
    fresh = [found for found, _ in text.steps()]
    assert np.array_equal(TokenFile(tmp_path, text).fill(), np.concatenate(fresh))


def test_a_file_shorter_than_its_position_is_damaged(tmp_path, tokenizer):
    TokenFile(tmp_path, tokenisation(tokenizer)).fill()
    with (tmp_path / "blocks.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"blocks\.bin is damaged: delete the folder"):
        TokenFile(tmp_path, tokenisation(tokenizer)).fill()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("call", ["fsync", "write_text"])
def test_a_full_disk_costs_one_step(tmp_path, tokenizer, monkeypatch, call):
    home = corpus.os if call == "fsync" else corpus
    real, calls = getattr(home, call), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(home, call, full)
        with pytest.raises(OSError, match="No space left"):
            TokenFile(tmp_path, tokenisation(tokenizer)).fill()
    assert json.loads((tmp_path / "progress.json").read_text())["progress"]["documents"] > 0
    whole = Corpus.from_strings(DOCUMENTS, tokenizer, context=16)
    assert np.array_equal(TokenFile(tmp_path, tokenisation(tokenizer)).fill(), whole.blocks)


def test_a_text_that_was_too_short_may_grow(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("short")
    with pytest.raises(ValueError, match="fewer than one block"):
        Corpus.from_text(path, tokenizer, context=16, folder=tmp_path / "tokens")
    path.write_text("\n\n".join(DOCUMENTS))
    found = Corpus.from_text(path, tokenizer, context=16, folder=tmp_path / "tokens")
    assert np.array_equal(found.blocks, Corpus.from_strings(DOCUMENTS, tokenizer, context=16).blocks)


def test_a_text_that_was_removed_is_named(tmp_path, tokenizer):
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(DOCUMENTS))
    Corpus.from_text(text, tokenizer, context=16, folder=tmp_path / "tokens")
    text.unlink()
    with pytest.raises(ValueError, match=r"a\.txt does not exist"):
        Corpus.from_text(text, tokenizer, context=16, folder=tmp_path / "tokens")
