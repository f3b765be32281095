"""MultiBLiMP: the real client of the hub against a server of our own."""

import pytest
from huggingface_hub import constants

from crosstime.models import hub
from crosstime.tasks.clams import ClamsPairs
from crosstime.tasks.multiblimp import MultiBlimpPairs
from crosstime.tasks.task import Pair
from hub_server import HubServer

REPO = MultiBlimpPairs().location
COLUMNS = ("sen", "wrong_sen", "verb", "phenomenon")
ROWS = {
    "eng": [
        ("The keys to the cabinet are here.", "The keys to the cabinet is here.", "are", "SV-#"),
        ("I am \u2028 tall.", "I is \u2028 tall.", "am", "SV-P"),
        ("The key is here.", "The key are here.", "is", "SV-#"),
        ("She is good.", "She is best.", "is", "SP-#"),
    ],
    "hin": [
        ("वह था", "वह थी", "था", "SV-G"),
        ('He said "no" once.', 'He says "no" once.', "said", "SV-#"),
    ],
}


def tsv(rows):
    """As pandas writes it: a column of row numbers, quotes where a text holds one."""
    lines = ["\t" + "\t".join(COLUMNS)]
    for n, row in enumerate(rows):
        texts = ['"{}"'.format(text.replace('"', '""')) if '"' in text else text for text in row]
        lines.append("\t".join([str(n), *texts]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path):
    for language, rows in ROWS.items():
        path = tmp_path / "multiblimp" / language / "data.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(tsv(rows), encoding="utf-8")
    return tmp_path / "multiblimp"


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    """The hub, with nothing in the cache, and no waiting between attempts."""
    with HubServer(REPO, {"main": folder}, kind="datasets") as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "RETRY_WAITS", (0.0, 0.0, 0.0))
        yield running


@pytest.mark.usefixtures("server")
def test_sets_come_from_the_hub_phenomenon_by_phenomenon():
    task = MultiBlimpPairs(("eng", "hin")).load()
    assert task.set_names == ("eng_SV-#", "eng_SV-#", "hin_SV-#", "hin_SV-G", "eng_SV-P")
    assert task.pairs[0] == Pair(*ROWS["eng"][0][:2], "The keys to the cabinet", " are", " is")
    assert task.pairs[2].good == 'He said "no" once.'
    assert (task.pairs[3].prefix, task.pairs[3].right, task.pairs[3].wrong) == ("वह", " था", " थी")
    assert task.pairs[4].good == "I am \u2028 tall."


@pytest.mark.usefixtures("server")
def test_named_phenomena_must_be_there():
    assert MultiBlimpPairs("eng", "SP-#").load().set_names == ("eng_SP-#",)
    with pytest.raises(
        ValueError, match=r"no phenomenon 'SV-#' in 'hin'|no phenomenon 'SV-G' in 'eng'; the nearest is 'SV-"
    ):
        MultiBlimpPairs(("hin", "eng"), "SV-G").load()


@pytest.mark.usefixtures("server")
def test_a_missing_language_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=rf"MultiBLiMP in {REPO} has no language 'en'; the nearest is 'eng'"):
        MultiBlimpPairs("en").load()


def test_the_cache_serves_when_the_hub_cannot_be_reached(server, monkeypatch):
    online = MultiBlimpPairs("eng").load()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    before = len(server.requests)
    assert MultiBlimpPairs("eng").load() == online
    assert len(server.requests) == before
    with pytest.raises(ValueError, match="not in the cache and the hub cannot be reached"):
        MultiBlimpPairs("hin").load()


def test_two_failures_then_success(server):
    server.failing, server.failures = "hin/data.tsv", 2
    assert MultiBlimpPairs("hin", "SV-G").load().set_names == ("hin_SV-G",)
    assert server.failures == 0


@pytest.mark.usefixtures("server")
def test_neither_a_folder_nor_a_repository(tmp_path):
    with pytest.raises(
        ValueError, match=r"no folder someone/else, and no such dataset on the hub: there is no repository"
    ):
        MultiBlimpPairs("eng", location="someone/else").load()
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        MultiBlimpPairs("eng", location=str(tmp_path / "none")).load()


def test_a_folder_serves_as_well(folder):
    assert MultiBlimpPairs("hin", location=str(folder)).load().set_names == ("hin_SV-#", "hin_SV-G")
    assert MultiBlimpPairs("hin", location=str(folder)).load().set_names == ("hin_SV-#", "hin_SV-G")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sen\tphenomenon\na\tSV-#\n", ":2: there is no column 'wrong_sen' among 'sen', 'phenomenon'"),
        ("sen\twrong_sen\tphenomenon\na b\ta c\tSV-#\na b\ta c\n", ":3: expected 3 columns, as in the first line"),
        ("sen\twrong_sen\tphenomenon\na b\ta b\tSV-#\n", ":2: both sentences are 'a b'"),
    ],
)
def test_malformed_files_are_named(folder, text, message):
    path = folder / "eng" / "data.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        MultiBlimpPairs("eng", location=str(folder)).load()
    assert str(error.value).startswith(str(path))


def test_clams_may_lie_on_the_hub_too(server, folder):
    (folder / "en_vp_coord.jsonl").write_text(
        '{"sentence_good": "He laughs and is", "sentence_bad": "He laughs and are"}'
    )
    assert ClamsPairs(REPO, "en", "vp_coord").load().pairs[0].prefix == " He laughs and"
    with pytest.raises(ValueError, match="no construction 'vp_cord' in 'en'; the nearest is 'vp_coord'"):
        ClamsPairs(REPO, "en", "vp_cord").load()
    assert any("/api/datasets/" in request for request in server.requests)
