"""Download from the Hugging Face hub: exactly the revision asked for, or an error."""

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
"""Seconds to wait before each retry. (The client itself doesn't retry all of its requests.)"""

_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
"""HTTP status codes worth a retry."""

_SUBFOLDERS = ["*/*"]
"""Files in subfolders of a repository, which are ignored."""

_METADATA = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
"""Configuration, tokenizer, and indices of shards: enough to refuse a checkpoint before its weights are downloaded."""

T = TypeVar("T")


def fetch_metadata(repo: str, revision: str, *, code: bool = False) -> tuple[Path, str]:
    """Download everything but the weights of a revision, or find it in the cache if the hub can't be reached.

    Args:
        repo: The repository.
        revision: A branch, tag or commit.
        code: Also download the repository's own modelling code.

    Returns:
        The folder in the hub's cache, and the commit that the revision points to.

    Raises:
        InputError: No such repository or revision; or the hub can't be reached and the cache doesn't hold it.
    """
    folder = _download(repo, revision, [*_METADATA, *(["*.py"] if code else [])])
    return folder, folder.name


def fetch_weights(repo: str, commit: str, folder: Path) -> list[Path]:
    """Download the weights of a commit into its cache folder, and compare them with their hashes on the hub.

    Raises:
        InputError: There are none, the download failed, or a file in the cache is damaged.
    """
    for name in WEIGHT_NAMES:
        _download(repo, commit, _weight_patterns(folder / f"{name}.index.json", name))
        if (folder / name).exists() or (folder / f"{name}.index.json").exists():
            break
    files = find_weights(folder)
    for file in files:
        check_blob(file)
    return files


def dataset_commit(repo: str, revision: str) -> str:
    """Return the commit of a dataset repository that a revision points to now.

    Raises:
        InputError: No such repository or revision, or the hub can't be reached.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    info = _ask(repo, revision, partial(HfApi().dataset_info, repo, revision=revision), "dataset")
    return str(info.sha)


def weights_to_download(repo: str, commit: str, folder: Path) -> int | None:
    """Return how many bytes `fetch_weights` would download; None if the hub lists no weights.

    Raises:
        InputError: The hub can't be reached, and the cache doesn't hold the weights.
    """
    if has_weights(folder):
        return 0
    for name in WEIGHT_NAMES:
        patterns = _weight_patterns(folder / f"{name}.index.json", name)
        files = _ask(repo, commit, partial(_list_files, repo, commit, patterns))
        if files:
            return sum(file.file_size or 0 for file in files if file.will_download)
    return None


def _list_files(repo: str, commit: str, patterns: list[str]) -> list[DryRunFileInfo]:
    return snapshot_download(repo, revision=commit, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS, dry_run=True)


def fetch_data(repo: str, name: str) -> Path | None:
    """Download a file of a dataset repository as it is now, or find it in the cache if the hub can't be reached.

    Returns:
        The file in the hub's cache; None if the repository has no such file.

    Raises:
        InputError: No such repository; or the hub can't be reached and the cache doesn't hold the file.
    """
    fetch = partial(snapshot_download, repo, repo_type="dataset", allow_patterns=[name])
    path = Path(_ask(repo, "main", fetch)) / name
    if path.is_file():
        return path
    if not list_data(repo):
        raise InputError(f"{name} of {repo} is not in the cache and the hub cannot be reached")
    return None


def list_data(repo: str) -> list[str]:
    """List the files of a dataset repository; an empty list if the hub doesn't answer."""
    try:
        return HfApi().list_repo_files(repo, repo_type="dataset")
    except (HTTPError, OSError):
        return []


def _weight_patterns(index: Path, name: str) -> list[str]:
    """Return the name of a weight file, and the shards that its index lists."""
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else ()
    return [name, *sorted(set(shards))]


def _download(repo: str, revision: str, patterns: list[str]) -> Path:
    """Download files in the root folder of a revision."""
    fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS)
    return Path(_ask(repo, revision, fetch))


def _ask(repo: str, revision: str, request: Callable[[], T], kind: str = "model") -> T:
    """Send the hub a request about a revision; turn its errors into InputErrors."""
    try:
        return _with_retries(request)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not a repository name on the hub: {first_line(error)}") from None
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
            if not is_transient(error):
                raise
            time.sleep(wait)
    return request()


def is_transient(error: BaseException | None) -> bool:
    """Return whether a retry may succeed: the server is overloaded, or the connection failed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    if isinstance(error, (LocalEntryNotFoundError, DryRunError)):
        # The client falls back to its cache when a request fails; the cause is why it failed.
        return is_transient(error.__cause__)
    return error is not None and not isinstance(error, OfflineModeIsEnabled)


def _revisions(repo: str, kind: str) -> list[str]:
    """List branches and tags; an empty list if the hub doesn't answer, as it only improves an error message."""
    try:
        refs = HfApi().list_repo_refs(repo, repo_type=kind)
    except (HTTPError, OSError):
        return []
    return [ref.name for ref in [*refs.branches, *refs.tags]]
