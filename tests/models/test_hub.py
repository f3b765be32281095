"""Suites from the hub: the real client against a server of our own."""

import shutil

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import tiny
from crosstime.models import hub
from crosstime.models.suite import Suite
from hub_server import HubServer

REPO = "someone/pythia-tiny"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_suite(tmp_path_factory.mktemp("repository"), steps=(0, 512, 1000))


@pytest.fixture
def server(folders, tmp_path, monkeypatch):
    """The hub, with nothing in the cache, and no waiting between attempts."""
    revisions = {name: folders / name for name in ("step0", "step512", "step1000")}
    # A wrong fall-back would find its weights here.
    with HubServer(REPO, revisions | {"main": folders / "step1000"}) as running:
        running.serve_client(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(hub, "RETRY_WAITS", (0.0, 0.0, 0.0))
        yield running


def test_revisions_are_loaded_by_name_and_their_commits_recorded(server, folders):
    suite = Suite.from_hub(REPO, ["step0", "step512", "step1000"])
    assert suite.names == ["step0", "step512", "step1000"]
    assert suite.tokens == [0, 512 * 2_097_152, 1000 * 2_097_152]
    assert [checkpoint.revision for checkpoint in suite] == suite.names
    assert [checkpoint.commit for checkpoint in suite] == [server.commit(name) for name in suite.names]
    assert {checkpoint.source for checkpoint in suite} == {REPO}
    local = Suite.from_folder(folders)
    assert [checkpoint.sha256 for checkpoint in suite] == [checkpoint.sha256 for checkpoint in local]
    tokens = torch.tensor([[0, 5, 7, 9]])
    for name in suite.names:
        ours, theirs = (s.load(name, layer=1).logits(tokens) for s in (suite, local))
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("server")
def test_revisions_come_in_order_of_training():
    assert Suite.from_hub(REPO, ["step1000", "step0", "step512"]).names == ["step0", "step512", "step1000"]


def test_a_commit_is_a_revision(server):
    commit = server.commit("step512")
    (checkpoint,) = Suite.from_hub(REPO, [commit])
    assert checkpoint.commit == commit


def test_missing_revision_is_an_error_and_never_main(server):
    with pytest.raises(ValueError, match=rf"{REPO} has no revision 'step100'; the nearest is 'step1000'"):
        Suite.from_hub(REPO, ["step0", "step100"])
    assert not any("model.safetensors" in request for request in server.requests)


@pytest.mark.usefixtures("server")
def test_missing_repository():
    with pytest.raises(ValueError, match="there is no repository someone/else"):
        Suite.from_hub("someone/else", ["step0"])


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("repo", ["one/two/three", "some one/else"])
def test_what_cannot_be_a_repository(repo):
    with pytest.raises(ValueError, match=f"'{repo}' is not a repository name on the hub") as caught:
        Suite.from_hub(repo, ["step0"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("failing", ["/revision/", "/tree/", "config.json", "model.safetensors"])
def test_two_failures_then_success(server, failing):
    server.failing, server.failures = failing, 2
    suite = Suite.from_hub(REPO, ["step0", "step512"])
    assert server.failures == 0
    assert suite.names == ["step0", "step512"]


def test_two_broken_connections_then_success(server):
    server.failing, server.failures, server.status = "/revision/", 2, None
    assert Suite.from_hub(REPO, ["step0"]).names == ["step0"]
    assert server.failures == 0


@pytest.mark.parametrize(("status", "message"), [(503, "503"), (None, "disconnected")])
def test_failures_that_do_not_end(server, status, message):
    server.failing, server.failures, server.status = "/revision/", 1000, status
    with pytest.raises(ValueError, match=rf"{REPO} at 'step0' .*{message}"):
        Suite.from_hub(REPO, ["step0"])
    assert server.failures > 900


def test_cache_serves_when_the_hub_cannot_be_reached(server, monkeypatch):
    online = Suite.from_hub(REPO, ["step0", "step512"])
    before = len(server.requests)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    offline = Suite.from_hub(REPO, ["step0", "step512"])
    assert offline.checkpoints == online.checkpoints
    assert offline.load("step0", layer=0).lower(torch.tensor([[1, 2]])).isfinite().all()
    assert len(server.requests) == before


def test_offline_mode_asks_nobody(server, monkeypatch):
    online = Suite.from_hub(REPO, ["step0"])
    before = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Suite.from_hub(REPO, ["step0"]).checkpoints == online.checkpoints
    with pytest.raises(ValueError, match=rf"{REPO} at 'step512' is not in the cache"):
        Suite.from_hub(REPO, ["step512"])
    assert len(server.requests) == before


def test_misfits_are_refused_before_any_weights(server, tmp_path):
    other = tiny.write_suite(tmp_path / "wide", steps=(2000,), config=tiny.neox_config(width=64))
    server.revisions["step2000"] = other / "step2000"
    with pytest.raises(ValueError, match="step0 and step2000 do not fit together: width 32 and 64"):
        Suite.from_hub(REPO, ["step0", "step2000"])
    assert not any("model.safetensors" in request for request in server.requests)


@pytest.mark.usefixtures("server")
def test_damaged_cache_is_found():
    suite = Suite.from_hub(REPO, ["step0", "step512"])
    blob = (suite.checkpoints[0].folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Suite.from_hub(REPO, ["step0", "step512"])
    with pytest.raises(ValueError, match=r"the weights of step0 .* have changed"):
        suite.load("step0", layer=0)


def test_sharded_and_pickled_weights(server, folders, tmp_path, monkeypatch):
    for name, step in {"sharded": "step0", "pickled": "step512"}.items():
        model = AutoModelForCausalLM.from_pretrained(folders / step)
        shutil.copytree(folders / step, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        if name == "sharded":
            model.save_pretrained(tmp_path / name, max_shard_size="50KB")
        else:
            torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")
        server.revisions[name] = tmp_path / name
    suite, plain = Suite.from_hub(REPO, ["sharded", "pickled"]), Suite.from_hub(REPO, ["step0", "step512"])
    assert len(list(suite.checkpoints[0].folder.glob("model-*.safetensors"))) > 1
    assert suite.checkpoints[0].sha256 == plain.checkpoints[0].sha256
    tokens = torch.tensor([[0, 5, 7, 9]])
    for index in range(2):
        ours, theirs = (s.load(index, layer=1).logits(tokens) for s in (suite, plain))
        assert torch.equal(ours, theirs)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Suite.from_hub(REPO, ["sharded", "pickled"]).checkpoints == suite.checkpoints


def describe(revision):
    folder, commit = hub.fetch_metadata(REPO, revision)
    return hub.weights_to_download(REPO, commit, folder)


def test_how_much_there_is_to_download_is_known_without_downloading_it(server, folders):
    size = (folders / "step0" / "model.safetensors").stat().st_size
    assert describe("step0") == size
    assert not any(request.startswith("GET") and "model.safetensors" in request for request in server.requests)
    Suite.from_hub(REPO, ["step0"])
    assert describe("step0") == 0


def test_weights_of_other_kinds_are_counted_too(server, folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders / "step0")
    for name in ("sharded", "pickled", "bare"):
        shutil.copytree(folders / "step0", tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        server.revisions[name] = tmp_path / name
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    shards = [path.stat().st_size for path in (tmp_path / "sharded").glob("model-*.safetensors")]
    assert len(shards) > 1
    assert describe("sharded") == sum(shards)
    assert describe("pickled") == (tmp_path / "pickled" / "pytorch_model.bin").stat().st_size
    assert describe("bare") is None


@pytest.mark.usefixtures("server")
def test_weights_that_are_not_in_the_cache_cannot_be_counted_offline(monkeypatch):
    hub.fetch_metadata(REPO, "step0")
    Suite.from_hub(REPO, ["step512"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert describe("step512") == 0
    with pytest.raises(ValueError, match=rf"{REPO} at .* is not in the cache and the hub cannot be reached"):
        describe("step0")


def test_a_tokenizer_of_another_repository(server, folders, tmp_path):
    for step in ("step0", "step512"):
        bare = shutil.copytree(folders / step, tmp_path / step, ignore=shutil.ignore_patterns("*token*"))
        server.revisions[step] = bare
    (tmp_path / "tokenizer").mkdir()
    tiny.make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    server.others = (HubServer("someone/tokenizer", {"main": tmp_path / "tokenizer"}),)
    with pytest.raises(ValueError, match="has no tokenizer"):
        Suite.from_hub(REPO, ["step0", "step512"])
    for source in ("someone/tokenizer", tmp_path / "tokenizer"):
        suite = Suite.from_hub(REPO, ["step0", "step512"], tokenizer=source)
        assert suite.tokenizer.get_vocab() == tiny.make_tokenizer().get_vocab()
    with pytest.raises(ValueError, match=r"the tokenizer no/where is not a folder here, and there is no repository"):
        Suite.from_hub(REPO, ["step0", "step512"], tokenizer="no/where")
