"""Checkpoints on the Hugging Face hub: exactly the revision that was asked for, or an error."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import DryRunFileInfo, HfApi, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of whichever HTTP library this version of the client uses)
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from crosstime.base.errors import InputError, first_line, nearest
from crosstime.models.weights import WEIGHT_NAMES, check_blob, find_weights, has_weights

RETRY_WAITS = (1.0, 2.0, 4.0)
"""Seconds to wait before each new attempt. (The client itself does not repeat all of its requests.)"""

PASSING_STATUS = (408, 429, 500, 502, 503, 504)
"""Answers of a server that another attempt may better."""

ROOT_ONLY = ["*/*"]
"""Files that are left alone: those in folders of a repository."""

METADATA_PATTERNS = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
"""Configuration, tokenizer, and indices of shards: all that is needed to refuse a checkpoint before its weights."""

T = TypeVar("T")


def fetch_metadata(repo: str, revision: str, *, code: bool = False) -> tuple[Path, str]:
    """Download all but the weights of a revision, or find it in the cache if the hub cannot be reached.

    Args:
        code: also fetch the repository's own modelling code.

    Returns:
        The folder in the hub's cache, and the commit that the revision stands for.

    Raises:
        InputError: no such repository or revision; or the hub cannot be reached and the cache does not hold it.
    """
    patterns = [*METADATA_PATTERNS, *(["*.py"] if code else [])]
    folder = _download(repo, revision, patterns)
    return folder, folder.name


def fetch_weights(repo: str, commit: str, folder: Path) -> list[Path]:
    """Download the weights of a commit into its folder of the cache, and compare them with their hashes on the hub.

    Raises:
        InputError: there are none; the download failed; or a file in the cache was damaged.
    """
    for name in WEIGHT_NAMES:
        _download(repo, commit, _weight_patterns(folder / f"{name}.index.json", name))
        if (folder / name).exists() or (folder / f"{name}.index.json").exists():
            break
    files = find_weights(folder)
    for file in files:
        check_blob(file)
    return files


def data_commit(repo: str, revision: str) -> str:
    """The commit of a dataset repository that a revision stands for now.

    Raises:
        InputError: no such repository or revision, or the hub cannot be reached.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    info = _ask(repo, revision, partial(HfApi().dataset_info, repo, revision=revision), "dataset")
    return str(info.sha)


def weights_to_download(repo: str, commit: str, folder: Path) -> int | None:
    """How many bytes `fetch_weights` would download; None if the hub lists no weights. Nothing is downloaded.

    Raises:
        InputError: the hub cannot be reached, and the cache does not hold the weights.
    """
    if has_weights(folder):
        return 0
    for name in WEIGHT_NAMES:
        patterns = _weight_patterns(folder / f"{name}.index.json", name)
        files = _ask(repo, commit, partial(_listed, repo, commit, patterns))
        if files:
            return sum(file.file_size or 0 for file in files if file.will_download)
    return None


def _listed(repo: str, commit: str, patterns: list[str]) -> list[DryRunFileInfo]:
    return snapshot_download(repo, revision=commit, allow_patterns=patterns, ignore_patterns=ROOT_ONLY, dry_run=True)


def fetch_data(repo: str, name: str) -> Path | None:
    """One file of a dataset repository as it is now, or from the cache if the hub cannot be reached.

    Returns:
        The file in the hub's cache; None if the repository has none of that name.

    Raises:
        InputError: no such repository; or the hub cannot be reached and the cache does not hold the file.
    """
    fetch = partial(snapshot_download, repo, repo_type="dataset", allow_patterns=[name])
    path = Path(_ask(repo, "main", fetch)) / name
    if path.is_file():
        return path
    if not list_data(repo):
        raise InputError(f"{name} of {repo} is not in the cache and the hub cannot be reached")
    return None


def list_data(repo: str) -> list[str]:
    """Paths of the files of a dataset repository; empty if the hub does not answer."""
    try:
        return HfApi().list_repo_files(repo, repo_type="dataset")
    except (HTTPError, OSError):
        return []


def _weight_patterns(index: Path, name: str) -> list[str]:
    """The file of the weights itself, and the shards where there is an index of them."""
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else ()
    return [name, *sorted(set(shards))]


def _download(repo: str, revision: str, patterns: list[str]) -> Path:
    """Files in the root folder of a revision."""
    fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=patterns, ignore_patterns=ROOT_ONLY)
    return Path(_ask(repo, revision, fetch))


def _ask(repo: str, revision: str, request: Callable[[], T], kind: str = "model") -> T:
    """What the hub answers to a request about a revision; its errors in our words."""
    try:
        return _with_retries(request)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no name of a repository on the hub: {first_line(error)}") from None
    except RevisionNotFoundError:
        raise InputError(f"{repo} has no revision {revision!r}{nearest(revision, _revisions(repo, kind))}") from None
    except GatedRepoError:
        raise InputError(f"{repo} is gated: ask for access on its page, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise InputError(f"there is no repository {repo} on the hub, or it is private (`hf auth login`)") from None
    except (LocalEntryNotFoundError, DryRunError) as error:
        reason = first_line(error.__cause__ or error)
        raise InputError(
            f"{repo} at {revision!r} is not in the cache and the hub cannot be reached: {reason}"
        ) from None
    except HTTPError as error:
        raise InputError(f"{repo} at {revision!r} could not be downloaded: {first_line(error)}") from None


def _with_retries(request: Callable[[], T]) -> T:
    for wait in RETRY_WAITS:
        try:
            return request()
        except (HTTPError, LocalEntryNotFoundError, DryRunError) as error:
            if not may_pass(error):
                raise
            time.sleep(wait)
    return request()


def may_pass(error: BaseException | None) -> bool:
    """Whether another attempt may do better: the server is overloaded, or the connection failed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    if isinstance(error, (LocalEntryNotFoundError, DryRunError)):
        # The client looks into its cache when a request fails. The cause says why it failed.
        return may_pass(error.__cause__)
    return error is not None and not isinstance(error, OfflineModeIsEnabled)


def _revisions(repo: str, kind: str) -> list[str]:
    """Branches and tags; empty if the hub does not answer, for this only improves an error message."""
    try:
        refs = HfApi().list_repo_refs(repo, repo_type=kind)
    except (HTTPError, OSError):
        return []
    return [ref.name for ref in [*refs.branches, *refs.tags]]
