"""Safety, detection, the hub, our own format."""

import json
import os

import foreign
import pytest
import torch
from huggingface_hub import constants

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.formats.importing import import_crosscoder
from hub_server import HubServer


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def _paper(folder, weights):
    torch.save(weights, folder / "20.pt")
    config = {
        "revision_list": "a-b-c",
        "hook_point": "blocks.2.hook_resid_pre",
        "estimated_act_norm_list": [1.0, 2.0, 0.5],
    }
    (folder / "20_cfg.json").write_text(json.dumps(config))
    return folder


def test_a_malicious_pickle_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    _paper(tmp_path, foreign.paper_weights() | {"extra": Malicious(marker)})
    with pytest.raises(ValueError, match="was not read: it is damaged, or holds more than tensors") as error:
        import_crosscoder(tmp_path)
    assert "\n" not in str(error.value)
    assert not marker.exists()
    torch.load(tmp_path / "20.pt", weights_only=False)  # it would have
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 and then nothing"])
def test_a_damaged_file(tmp_path, content):
    _paper(tmp_path, foreign.paper_weights())
    (tmp_path / "20.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged") as error:
        import_crosscoder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_file(tmp_path):
    _paper(tmp_path, foreign.paper_weights())
    whole = (tmp_path / "20.pt").read_bytes()
    (tmp_path / "20.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        import_crosscoder(tmp_path)


def test_files_that_hold_something_else(tmp_path):
    _paper(tmp_path, [1, 2])
    with pytest.raises(ValueError, match="holds a list, not a dictionary of tensors"):
        import_crosscoder(tmp_path)
    (tmp_path / "20_cfg.json").write_text("[]")
    with pytest.raises(ValueError, match="must be a JSON object"):
        import_crosscoder(tmp_path)
    (tmp_path / "20_cfg.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        import_crosscoder(tmp_path)


def test_our_own_format(tmp_path):
    ours = Crosscoder(CrosscoderConfig(("a", "b"), 1, 4, 6))
    ours.save_pretrained(tmp_path)
    assert import_crosscoder(tmp_path).config == ours.config
    with pytest.raises(ValueError, match="describes itself: pass no other facts"):
        import_crosscoder(tmp_path, layer=3)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="holds no crosscoder in a known format \\(crosstime, paper, ckkissane"):
        import_crosscoder(tmp_path)
    with pytest.raises(ValueError, match=r"unknown crosscoder format 'papr': .*; the nearest is 'paper'"):
        import_crosscoder(tmp_path, "papr")


def test_from_the_hub(tmp_path, monkeypatch):
    repo, files = "someone/crosscoder", tmp_path / "files"
    files.mkdir()
    _paper(files, foreign.paper_weights())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer(repo, {"main": files}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for source in (repo, f"{repo}:20.pt"):
            assert import_crosscoder(source).config.checkpoints == ("a", "b", "c")
        with pytest.raises(ValueError, match=r"has no blocks\.14 on the hub"):
            import_crosscoder(f"{repo}:blocks.14")
        with pytest.raises(ValueError, match="has no revision 'nosuch'"):
            import_crosscoder(repo, revision="nosuch")
        with pytest.raises(ValueError, match="is neither a local path nor a repository on the hub"):
            import_crosscoder("someone/nothing")
    with pytest.raises(ValueError, match="is neither a local path nor a repository on the hub"):
        import_crosscoder(str(tmp_path / "no" / "such" / "folder"))
