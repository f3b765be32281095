"""A Hugging Face hub on the loopback interface: the part of its protocol that downloads of models and data sets use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE_SUFFIXES = (".safetensors", ".bin")
"""Files that the hub keeps by LFS, under the SHA-256 of their contents."""


@dataclass
class HubServer:
    """Serves a repository, and others if need be. Use as a context manager.

    Args:
        repo: its name, "owner/name".
        revisions: the folder of files of each branch.
        kind: "models" or "datasets".
    """

    repo: str
    revisions: dict[str, Path]
    kind: str = "models"
    others: tuple[HubServer, ...] = ()
    """Further repositories, served at the same address."""
    failures: int = 0
    """This many of the coming requests whose path matches `failing` fail."""
    failing: str = ""
    status: int | None = 503
    """What a failing request is answered with; None to hang up without an answer."""
    requests: list[str] = field(default_factory=list)
    """Method and path of all requests so far."""

    def __enter__(self) -> HubServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve_client(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make this the hub that the client asks, with a cache of its own."""
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        if any(hub.kind == "datasets" for hub in (self, *self.others)):
            from datasets import config  # (it takes a second)

            monkeypatch.setattr(config, "HF_ENDPOINT", self.endpoint)
            monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(cache / "datasets"))

    @staticmethod
    def commit(revision: str) -> str:
        """The commit that a branch stands for."""
        return hashlib.sha1(revision.encode()).hexdigest()

    def find(self, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of a branch or commit."""
        for name, folder in self.revisions.items():
            if revision in (name, self.commit(name)):
                return self.commit(name), folder
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        served = type(self).hub
        self.hub = next((hub for hub in served.others if f"/{hub.repo}/" in f"{path}/"), served)
        served.requests.append(f"{self.command} {path}")
        if self.hub.failures and re.search(self.hub.failing, path):
            self.hub.failures -= 1
            self._fail()
            return
        api = f"/api/{self.hub.kind}/{self.hub.repo}"
        files = f"{'' if self.hub.kind == 'models' else f'/{self.hub.kind}'}/{self.hub.repo}/resolve"
        if path == f"{api}/refs":
            self._refs()
        elif match := re.fullmatch(f"{api}(?:/revision/([^/]+))?", path):
            self._revision(match[1] or "main")
        elif match := re.fullmatch(f"{api}/tree/([^/]+)(?:/(.+))?", path):
            self._tree(match[1], match[2] or "")
        elif match := re.fullmatch(f"{api}/paths-info/([^/]+)", path):
            self._paths(match[1])
        elif match := re.fullmatch(f"{files}/([^/]+)/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._error("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # (the base class writes to stderr)
        pass

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self) -> None:
        if self.hub.status is None:
            self.close_connection = True
        else:
            self._send(self.hub.status, b"")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: str) -> None:
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def _refs(self) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": self.hub.commit(name)}
            for name in self.hub.revisions
        ]
        self._json({"branches": branches, "converts": [], "tags": []})

    def _folder(self, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of a revision; where there is none, the client is told so."""
        found = self.hub.find(revision)
        if found is None:
            self._error("RevisionNotFound")
        return found

    def _revision(self, revision: str) -> None:
        if found := self._folder(revision):
            commit, folder = found
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
            about = {"id": self.hub.repo, "sha": commit, "siblings": siblings, "tags": []}
            self._json(about | {"modelId": self.hub.repo} if self.hub.kind == "models" else about)

    def _tree(self, revision: str, below: str) -> None:
        if found := self._folder(revision):
            _, folder = found
            if not (folder / below).is_dir():
                self._error("EntryNotFound")
                return
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"]) != ["false"]
            paths = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
            self._json([self._entry(folder, path) for path in sorted(paths)])

    def _paths(self, revision: str) -> None:
        """Of the paths that were asked for, those that are there."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        if found := self._folder(revision):
            _, folder = found
            self._json([self._entry(folder, folder / name) for name in names if (folder / name).exists()])

    @staticmethod
    def _entry(folder: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
        data = path.read_bytes()
        entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if path.suffix in LARGE_SUFFIXES:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _file(self, revision: str, name: str) -> None:
        if (found := self._folder(revision)) is None:
            return
        commit, folder = found
        if not (folder / name).is_file():
            self._error("EntryNotFound")
            return
        data = (folder / name).read_bytes()
        large = (folder / name).suffix in LARGE_SUFFIXES
        digest = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and int(asked[1]) >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        elif asked:
            start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._send(206, data[start : end + 1], headers)
        else:
            self._send(200, data, headers)
