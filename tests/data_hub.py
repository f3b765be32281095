"""Data sets on a hub of our own, for the real client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfFileSystem

from hub_server import HubServer


@contextmanager
def serving(repo: str, revisions: dict[str, Path], cache: Path) -> Iterator[HubServer]:
    """Serves a repository of data sets to this process. Nothing is waited for between attempts."""
    with HubServer(repo, revisions, kind="datasets") as server, pytest.MonkeyPatch.context() as patch:
        server.serve_client(patch, cache)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        # The package changes this one.
        patch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", datasets.config.STREAMING_READ_MAX_RETRIES)
        patch.setattr(time, "sleep", lambda _: None)
        HfFileSystem.clear_instance_cache()
        yield server
