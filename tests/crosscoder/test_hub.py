"""A crosscoder goes to the hub and comes back, with the real client against servers of our own."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from hub_server import HubServer

REPO = "someone/crosscoder"


class _Upload(BaseHTTPRequestHandler):
    """The part of the hub's protocol that makes a repository and takes one commit of small files."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self._answer(403, {"error": "no"})
        elif self.path == "/api/repos/create":
            self._answer(200, {"url": f"{self.server.endpoint}/{REPO}", "name": REPO})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    path = self.server.folder / line["value"]["path"]
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            self._answer(200, {"commitUrl": f"{self.server.endpoint}/{REPO}/commit/abc", "commitOid": "abc"})
        else:
            assert self.path == "/api/validate-yaml", self.path  # of the model card
            self._answer(200, {})

    def do_GET(self):
        self._answer(200, {"id": REPO, "modelId": REPO, "sha": "abc", "siblings": []})

    def _answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def upload(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Upload)
    server.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    server.folder, server.refuses = tmp_path / "uploaded", False
    server.folder.mkdir()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _use(monkeypatch, server.endpoint)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _use(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def crosscoder():
    made = Crosscoder(CrosscoderConfig(("a", "b"), 1, 4, 6))
    torch.nn.init.normal_(made.W_dec, generator=torch.Generator().manual_seed(0))
    return made


def test_pushed_and_pulled_it_is_the_same(upload, crosscoder, tmp_path, monkeypatch):
    address = crosscoder.push_to_hub(REPO, token="hf_any")
    assert address.startswith(upload.endpoint)
    assert sorted(p.name for p in upload.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(REPO, {"main": upload.folder}) as hub:
        _use(monkeypatch, hub.endpoint)
        again = Crosscoder.from_pretrained(REPO)
        with pytest.raises(ValueError, match="nosuch"):
            Crosscoder.from_pretrained(REPO, revision="nosuch")
        with pytest.raises(ValueError, match="neither a local path nor a repository"):
            Crosscoder.from_pretrained("someone/nothing")
    assert again.config == crosscoder.config
    assert torch.equal(again.W_dec, crosscoder.W_dec)


def test_a_refused_upload_is_one_clear_error(upload, crosscoder):
    upload.refuses = True
    with pytest.raises(ValueError, match="the hub refused the upload"):
        crosscoder.push_to_hub(REPO, token="hf_any")
