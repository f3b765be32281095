"""Crosscoders on disk and on the hub: model.safetensors, config.json with its hash, and a model card."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from crosstime.base.errors import DamagedArtifact, InputError, first_line

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = "crosstime-crosscoder-3"


def save(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Save a crosscoder. If that fails (a full disk, say), the one saved there before is kept."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensor_bytes({name: tensor.contiguous() for name, tensor in tensors.items()})
    described = {
        "format": FORMAT,
        **config,
        "scale_factors": tensors["scale"].tolist(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    card = _card(described).encode()
    _replace(folder, {WEIGHTS: weights, CARD: card, CONFIG: json.dumps(described, indent=2).encode()})


def load_config(folder: Path) -> dict[str, Any]:
    """Load config.json: the fields of CrosscoderConfig, and `weights_sha256`.

    Raises:
        InputError: The folder holds no crosscoder of this version.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no crosscoder: it has no {CONFIG}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): fetch or train the crosscoder again") from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        raise InputError(f"{path} doesn't describe a crosscoder of this version of crosstime (format {FORMAT!r})")
    config.pop("scale_factors", None)  # for people who read the file; the weights hold the exact values
    return config


def load_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """Load the tensors of a crosscoder.

    Raises:
        DamagedArtifact: They are missing, or their hash isn't the one given.
    """
    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except FileNotFoundError:
        raise DamagedArtifact(f"{path} is missing: fetch or train the crosscoder again") from None
    actual = hashlib.sha256(weights).hexdigest()
    if actual != sha256:
        raise DamagedArtifact(
            f"{path} was truncated or altered: its SHA-256 is {actual[:12]}…, not {sha256[:12]}… as in {CONFIG}; "
            "fetch or train the crosscoder again"
        )
    try:
        return load_tensors(weights)
    except SafetensorError as error:
        raise DamagedArtifact(f"{path} is not a safetensors file: {error}") from None


def locate(source: str | Path, revision: str | None, patterns: Sequence[str] = (WEIGHTS, CONFIG, CARD)) -> Path:
    """Return a local path as it is; download the files of a hub repository that match the patterns into the cache.

    Files in subfolders of a repository match only patterns with a "/".

    Raises:
        InputError: No such path, repository or revision.
    """
    if Path(source).exists():
        return Path(source)
    skipped = None if any("/" in pattern for pattern in patterns) else ["*/*"]
    try:
        folder = huggingface_hub.snapshot_download(
            str(source), revision=revision, allow_patterns=list(patterns), ignore_patterns=skipped
        )
    except RevisionNotFoundError:
        raise InputError(f"{source} has no revision {revision!r} on the hub") from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"{source} is neither a local path nor a repository on the hub ({first_line(error)})"
        ) from None
    return Path(folder)


def upload(save_to: Callable[[str], None], repo: str, *, private: bool, token: str | None) -> str:
    """Upload to the hub what a function saves to a folder, and return the URL of the commit."""
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_to(folder)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload crosscoder"))
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"the hub refused the upload to {repo!r}: {error}") from error


def _replace(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files under temporary names, then rename them in the order given."""
    drafts = {name: folder / f".{name}.{os.getpid()}" for name in contents}
    try:
        for name, content in contents.items():
            with drafts[name].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name, draft in drafts.items():
            draft.replace(folder / name)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _card(config: Mapping[str, Any]) -> str:
    """Return the model card, in the hub's format."""
    number = len(config["checkpoints"])
    rows = "\n".join(
        f"| {name} | {'' if tokens is None else f'{tokens:,}'} | {source} | {scale:.4f} |"
        for name, tokens, source, scale in zip(
            config["checkpoints"],
            config["tokens"] or [None] * number,
            config["sources"] or [""] * number,
            config["scale_factors"],
            strict=True,
        )
    )
    first = "encoded" if config["positions"]["encode_first"] else "not encoded"
    return f"""---
library_name: crosstime
tags: [crosscoder, sparse-autoencoder, interpretability, pretraining-dynamics]
---

# Crosscoder over {number} checkpoint{"s" if number > 1 else ""}

One dictionary of {config["features"]:,} features for the output of block {config["layer"]}, width {config["width"]}:

| checkpoint | tokens seen | source | scale factor |
|---|---|---|---|
{rows}

Sequences start {"with" if config["positions"]["bos"] else "without"} BOS; position 0 is {first}.

```python
from crosstime import Crosscoder

crosscoder = Crosscoder.from_pretrained("…this repository…")
features = crosscoder.encode(activations)  # [tokens, checkpoints, width] -> [tokens, features]
```

The method is that of *Crosscoding Through Time* (arXiv 2509.05291).
"""
