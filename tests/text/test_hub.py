"""Text from the hub: the real library against a server of our own."""

import base64
import gzip
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.json.json import JsonConfig
from huggingface_hub.hf_file_system import HfFileSystemFile

from crosstime.text import packing
from crosstime.text.corpus import Corpus
from crosstime.text.hub import HubText
from data_hub import serving
from tiny import make_tokenizer

REPO = "someone/texts"
PIECE = 10_000
"""Bytes that the library reads at a time."""
CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*}
  - {split: validation, path: en/held-*}
- config_name: fr
  data_files: fr/*
---
"""


def documents(count, seed=0):
    """Texts that no compression makes much smaller."""
    source = random.Random(seed)
    return [f"{i} {base64.b64encode(source.randbytes(1500)).decode()}" for i in range(count)]


ENGLISH, FRENCH, HELDOUT = documents(60), documents(10, seed=1), documents(5, seed=2)


def lines(texts):
    return "".join(json.dumps({"meta": {"n": len(text)}, "text": text}) + "\n" for text in texts).encode()


def write_lines(folder, suffix, compress):
    for name, texts in (
        ("en/train-0", ENGLISH[:30]),
        ("en/train-1", ENGLISH[30:]),
        ("en/held-0", HELDOUT),
        ("fr/0", FRENCH),
    ):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compress(lines(texts)))
    (folder / "README.md").write_text(CARD)
    return folder


def write_parquet(folder):
    (folder / "data").mkdir(parents=True)
    for name, texts in (("train-0", ENGLISH[:30]), ("train-1", ENGLISH[30:]), ("validation-0", HELDOUT)):
        table = pa.table({"meta": [{"n": 1}] * len(texts), "text": texts})
        pq.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=10)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    return {
        "gzip": write_lines(folder / "gzip", ".json.gz", gzip.compress),
        "zstd": write_lines(folder / "zstd", ".jsonl.zst", lambda raw: pa.compress(raw, codec="zstd", asbytes=True)),
        "parquet": write_parquet(folder / "parquet"),
        "main": write_lines(folder / "plain", ".jsonl", bytes),
    }


@pytest.fixture
def server(folders, tmp_path, monkeypatch):
    """The hub. Files are read in small pieces, so that a failure can come in the middle of one."""
    post_init = JsonConfig.__post_init__

    def small(config):
        post_init(config)
        config.chunksize = PIECE

    monkeypatch.setattr(JsonConfig, "__post_init__", small)
    monkeypatch.setattr(HfFileSystemFile, "DEFAULT_BLOCK_SIZE", PIECE)
    with serving(REPO, folders, tmp_path / "cache") as running:
        yield running


FORMATS = [("gzip", "en"), ("zstd", "en"), ("parquet", None), ("main", "en")]


def texts(source, resume_point=None):
    return [document.text for document in source.documents(resume_point)]


@pytest.mark.parametrize(("revision", "config"), FORMATS)
def test_documents_come_in_order_from_the_commit_that_was_named(server, revision, config):
    source = HubText.from_revision(REPO, revision, config)
    assert source.commit == server.commit(revision)
    assert texts(source) == ENGLISH
    after = server.requests.index(f"GET /api/datasets/{REPO}/revision/{revision}") + 1
    assert all(source.commit in request for request in server.requests[after:] if "agent" not in request)


@pytest.mark.usefixtures("server")
def test_configuration_split_and_column_are_chosen(server):
    assert texts(HubText.from_revision(REPO, "gzip", "fr")) == FRENCH
    assert texts(HubText.from_revision(REPO, "gzip", "en", "validation")) == HELDOUT
    assert texts(HubText.from_revision(REPO, server.commit("parquet"), split="validation")) == HELDOUT


@pytest.mark.parametrize(("revision", "config"), FORMATS)
@pytest.mark.usefixtures("server")
def test_reading_goes_on_after_any_document(revision, config):
    source = HubText.from_revision(REPO, revision, config)
    documents = list(source.documents())
    for n in (0, 9, 29, 30, 58):
        resume_point = json.loads(json.dumps(documents[n].resume_point))
        assert texts(source, resume_point) == ENGLISH[n + 1 :], n


@pytest.mark.parametrize(
    ("revision", "config", "status", "failures"),
    [
        *(("gzip", "en", status, failures) for status in (503, 429, None) for failures in (2, 14)),
        *((revision, config, 503, 14) for revision, config in FORMATS[1:]),
    ],
)
def test_a_hub_that_fails_and_then_works_loses_and_repeats_nothing(server, revision, config, status, failures):
    """Two failures are mended by the client; of fourteen, it gives up twice, in the middle of a file."""
    server.status, server.failing = status, "resolve/.*/train-"
    # (pyarrow reads a zstd file of this size, and the rows of a parquet file, at once.)
    read, moments = [], (3,) if revision in ("zstd", "parquet") else (3, 33)
    for document in HubText.from_revision(REPO, revision, config).documents():
        read.append(document.text)
        if len(read) in moments:
            server.failures = failures
    assert server.failures == 0
    assert read == ENGLISH


def test_a_hub_that_fails_for_good_is_named(server):
    source = HubText.from_revision(REPO, "gzip", "en")
    documents = source.documents()
    next(documents)
    server.failing, server.failures = "resolve", 1_000_000
    with pytest.raises(ValueError, match=f"{REPO}/en/train could not be read from the hub: "):
        list(documents)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("someone/else",), "there is no repository someone/else on the hub, or it is private"),
        (("one/two/three",), "is not a repository name"),
        ((REPO, "gzpi", "en"), f"{REPO} has no revision 'gzpi'; the nearest is 'gzip'"),
        ((REPO, "gzip", "eng"), f"{REPO}: there is no configuration 'eng'; the nearest is 'en'"),
        ((REPO, "gzip"), f"{REPO}: name one of its configurations: en, fr"),
        ((REPO, "gzip", "en", "test"), f"{REPO} has no split 'test'; the nearest is 'train'"),
        ((REPO, "gzip", "en", "train", "txt"), f"{REPO}/en/train: there is no column 'txt' among 'meta', 'text'; the"),
        ((REPO, "gzip", "en", "train", "meta"), "the column 'meta' holds dict, not text"),
    ],
)
def test_what_is_not_there_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HubText.from_revision(*arguments).check()


def cut_gzip(raw):
    return gzip.compress(raw)[:-20_000]


def flip_gzip(raw):
    packed = gzip.compress(raw)
    return packed[:30_000] + bytes(100) + packed[30_100:]


def cut_zstd(raw):
    return pa.compress(raw, codec="zstd", asbytes=True)[:-20_000]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".jsonl", lambda raw: raw[:30_000] + b"{oops\n" + raw[30_000:]),
        (".json.gz", cut_gzip),
        (".json.gz", flip_gzip),
        (".jsonl.zst", cut_zstd),
    ],
)
def test_a_damaged_file_is_named(server, tmp_path, suffix, damage):
    server.revisions["damaged"] = write_lines(tmp_path / "damaged", suffix, damage)
    # (Where it is the first, and pyarrow reads it at once, the data set cannot even be opened.)
    with pytest.raises(ValueError, match=f"{REPO}(/en/train: a file of the dataset is damaged| cannot be streamed): "):
        texts(HubText.from_revision(REPO, "damaged", "en"))


def test_a_repository_without_data_is_named(server, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.md").write_text("nothing")
    server.revisions["bare"] = tmp_path / "bare"
    with pytest.raises(ValueError, match=f"{REPO} cannot be streamed: "):
        HubText.from_revision(REPO, "bare").check()


def test_records_without_text_are_no_documents(server, tmp_path):
    (tmp_path / "nulls").mkdir()
    rows = [{"text": "one"}, {"text": None}, {"text": " "}, {"text": "two"}]
    (tmp_path / "nulls" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.revisions["nulls"] = tmp_path / "nulls"
    assert texts(HubText.from_revision(REPO, "nulls")) == ["one", "two"]


@pytest.mark.usefixtures("server")
def test_tokens_of_the_hub_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 10_000)
    tokenizer, source = make_tokenizer(), HubText.from_revision(REPO, "gzip", "en")
    whole = Corpus.from_strings(ENGLISH, tokenizer, context=64)
    for limit in (64 * 50, 64 * 300, None):
        corpus = Corpus.from_text(source, tokenizer, context=64, limit_tokens=limit, folder=tmp_path / "tokens")
        assert np.array_equal(corpus.blocks, whole.blocks[: limit and limit // 64])
