"""Documents in files: plain text, JSON lines and parquet."""

import gzip
import json
import lzma
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstime.text.files import Files, read_lines

DOCUMENTS = ["The keys\nto the cabinet", "ein Schlüssel", "鑰匙  ", "the last one"]


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write_jsonl(path, documents=DOCUMENTS):
    path.write_bytes(lines({"id": i, "text": document} for i, document in enumerate(documents)))
    return path


def write_parquet(path, documents=DOCUMENTS, **kwargs):
    pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), path, **kwargs)
    return path


def texts(*paths, **kwargs):
    return [document.text for document in Files(paths, **kwargs).documents()]


DOCUMENT_END = re.compile(r"\n[ \t]*(?=\n)")


@settings(max_examples=100, deadline=None)
@given(raw=st.text(alphabet="ab ü\n\r\t", max_size=60).map(str.encode))
def test_lines_and_documents_are_those_of_the_whole_text(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(raw)
    whole = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line, _ in read_lines(path)]
    assert "\n".join(lines) == whole.removesuffix("\n")
    # White space in the first or the last line ends a document too.
    parts = [part.strip("\n") for part in DOCUMENT_END.split(f"\n{whole}\n")]
    found = [part for part in parts if part.strip()]
    if found:
        assert texts(path) == found
    else:
        with pytest.raises(ValueError, match="is empty"):
            texts(path)


def test_the_position_of_a_bad_byte_is_that_of_the_whole_file(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffüüü".encode() + b"\xc3")
    with pytest.raises(ValueError, match="byte 0xc3 at offset 9"):
        list(read_lines(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes("\ufeffüü\r\nü".encode() + b"\xc3\n")
    with pytest.raises(ValueError, match="byte 0xc3 at offset 11"):
        list(read_lines(tmp_path / "a.txt"))


def test_records_give_the_same_documents_in_every_format(tmp_path):
    raw = write_jsonl(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "a.ndjson.xz").write_bytes(lzma.compress(raw))
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(raw, codec="zstd", asbytes=True))
    write_parquet(tmp_path / "a.parquet", row_group_size=2)
    for path in tmp_path.iterdir():
        assert texts(path) == DOCUMENTS, path


def test_text_is_read_from_zstd(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(pa.compress("\n\n".join(DOCUMENTS).encode(), codec="zstd", asbytes=True))
    assert texts(tmp_path / "a.txt.zst") == DOCUMENTS


def test_records_without_text_are_no_documents(tmp_path):
    there = [None, "one", "", " \n", "two"]
    assert (
        texts(write_jsonl(tmp_path / "a.jsonl", there), write_parquet(tmp_path / "a.parquet", there))
        == [
            "one",
            "two",
        ]
        * 2
    )


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines([{"content": "here"}]))
    assert texts(tmp_path / "a.jsonl", column="content") == ["here"]


def test_reading_goes_on_at_any_document(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(DOCUMENTS))
    source = Files([tmp_path / "a.txt", write_jsonl(tmp_path / "b.jsonl"), write_parquet(tmp_path / "c.parquet")])
    documents = list(source.documents())
    assert [document.text for document in documents] == DOCUMENTS * 3
    assert documents[-1].n_read == source.size
    for i, document in enumerate(documents):
        resume_point = json.loads(json.dumps(document.resume_point))
        assert list(source.documents(resume_point)) == documents[i + 1 :]


def test_the_documents_are_known_by_content_and_column(tmp_path):
    a, b = write_jsonl(tmp_path / "a.jsonl"), write_jsonl(tmp_path / "b.jsonl")
    assert Files([a]).identity() == Files([b]).identity()
    assert Files([a]).identity() != Files([a], "id").identity()
    before = Files([a]).identity()
    write_jsonl(a, DOCUMENTS[1:])
    assert Files([a]).identity() != before


def cut_parquet(path):
    pq.write_table(pa.table({"text": DOCUMENTS}), path)
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + b"x" * 20 + raw[24:])


def cut_zstd(path):
    path.write_bytes(pa.compress(lines([{"text": "a"}]), codec="zstd", asbytes=True)[:-3])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.jsonl", lambda path: path.write_bytes(lines([{"text": "a"}]) + b"\n{oops\n"), r"a\.jsonl:3: not JSON"),
        ("a.jsonl", lambda path: path.write_bytes(b"[1]"), r"a\.jsonl:1: expected a JSON object"),
        ("a.jsonl", lambda path: path.write_bytes(b'{"txt": "a", "id": 1}'), r":1: there is no column 'text' among 't"),
        (
            "a.jsonl",
            lambda path: path.write_bytes(b'{"text": 3}'),
            r"a\.jsonl:1: `text` must be a string, not [13]",
        ),
        ("a.jsonl", lambda path: path.write_bytes(b'{"text": "\\ud800"}'), r"a\.jsonl:1: .* half of a surrogate pair"),
        ("a.jsonl", lambda path: path.write_bytes(b'{"text": "a\xff"}'), r"a\.jsonl is not UTF-8: .* at offset 11"),
        ("a.jsonl", lambda path: path.write_bytes(b" \n"), r"a\.jsonl is empty"),
        ("a.jsonl.zst", cut_zstd, r"a\.jsonl\.zst cannot be decompressed"),
        ("a.jsonl.zst", lambda path: path.write_bytes(b"plain"), r"a\.jsonl\.zst cannot be decompressed"),
        ("a.parquet", lambda path: path.write_bytes(b"plain"), r"a\.parquet is not a parquet file, or is damaged"),
        ("a.parquet", cut_parquet, r"a\.parquet is not a parquet file, or is damaged"),
        ("a.parquet", lambda path: write_parquet(path, []), r"a\.parquet is empty"),
        (
            "a.parquet",
            lambda path: pq.write_table(pa.table({"txt": ["a"]}), path),
            r"no column 'text' among 'txt'; the",
        ),
        (
            "a.parquet",
            lambda path: pq.write_table(pa.table({"text": [1]}), path),
            r"a\.parquet, row 1: `text` must be a string, not [13]",
        ),
        ("a.parquet", lambda _: None, r"a\.parquet does not exist"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        texts(tmp_path / name)


def test_no_files_are_no_text():
    with pytest.raises(ValueError, match="at least one file"):
        Files([])
