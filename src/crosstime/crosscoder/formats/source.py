"""Where a crosscoder lies: a local path, or a place on the hub, which is then brought into the cache."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError

from crosstime.base.errors import InputError

FILES = ("*.json", "*.safetensors", "*.pt")
"""What formats read."""


def locate(source: str, revision: str | None = None) -> Path:
    """A local file or folder. Of the hub's "owner/name" the files at its root; of "owner/name:path" a folder or file.

    Raises:
        InputError: it is nowhere.
    """
    if Path(source).exists():
        return Path(source)
    repo, _, inner = source.partition(":")
    # A file is described by another beside it, so its folder comes whole.
    folder = str(Path(inner).parent) if Path(inner).suffix in (".pt", ".safetensors") else inner
    below = "" if folder in ("", ".") else f"{folder}/"
    patterns = [f"{below}{name}" for name in FILES]
    try:
        root = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=None if below else ["*/*"]
        )
    except RevisionNotFoundError:
        raise InputError(f"{repo} has no revision {revision!r} on the hub") from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source} is neither a file or folder nor a place on the hub ({reason})") from None
    path = Path(root) / inner
    if not path.exists():
        raise InputError(f"{repo} has no {inner} on the hub, or nothing in it that a format reads")
    return path
