"""How a crosscoder lies on disk and on the hub: model.safetensors, config.json with its hash, and a card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes

from crosstime.base.errors import InputError
from crosstime.crosscoder.sparsity.rules import Sparsity
from crosstime.text.positions import Positions

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = "crosstime-crosscoder-2"


def save(crosscoder: Any, folder: str | Path) -> None:
    """Write a crosscoder. Where one lies already, a failure (a full disk, say) leaves it as it was."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensor_bytes({name: tensor.contiguous() for name, tensor in crosscoder.state_dict().items()})
    config = {
        "format": FORMAT,
        **dataclasses.asdict(crosscoder.config),
        "scale_factors": crosscoder.scale.tolist(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    card, described = _card(config).encode(), json.dumps(config, indent=2).encode()
    _replace(folder, {WEIGHTS: weights, CARD: card, CONFIG: described})


def load(
    source: str | Path, config_class: Callable[..., Any], *, revision: str | None
) -> tuple[Any, dict[str, Tensor]]:
    """The configuration, as CrosscoderConfig or whatever takes its fields, and the tensors, whose hash was right."""
    folder = _folder(source, revision)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{source} holds no crosscoder: there is no {CONFIG} in it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder / CONFIG} is not valid JSON ({error}): fetch or train the crosscoder again"
        ) from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        raise InputError(f"{folder / CONFIG} does not describe a crosscoder of crosstime (format {FORMAT!r})")
    try:
        config.pop("scale_factors")  # for people who read the file; the weights hold them exactly
        expected = config.pop("weights_sha256")
        for name in ("checkpoints", "tokens", "sources", "weights"):
            config[name] = tuple(config[name])
        parts = {"positions": Positions(**config["positions"]), "sparsity": Sparsity.from_dict(config["sparsity"])}
        described = config_class(**{**config, **parts})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / CONFIG} is damaged or of another version of crosstime ({error!r}): update crosstime, or train "
            "the crosscoder again"
        ) from None
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    return described, _verified_tensors(folder / WEIGHTS, expected)


def fill(crosscoder: Any, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Copy the tensors into the module; a missing, surplus or misshapen one is an error."""
    try:
        crosscoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"the weights in {source} do not fit its {CONFIG}: {error}") from None


def push(crosscoder: Any, repo: str, *, private: bool, token: str | None) -> str:
    """Upload a crosscoder to the hub."""
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save(crosscoder, folder)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload crosscoder"))
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"the hub refused the upload to {repo!r}: {error}") from error


def _folder(source: str | Path, revision: str | None) -> Path:
    """The local folder of a crosscoder; a hub repository is brought into the cache first."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(
            huggingface_hub.snapshot_download(str(source), revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD])
        )
    except RevisionNotFoundError as error:
        raise InputError(f"{source} has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source} is neither a folder nor a repository of the hub ({reason})") from error


def _verified_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        weights = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: fetch or train the crosscoder again") from None
    found = hashlib.sha256(weights).hexdigest()
    if found != expected:
        raise InputError(
            f"{path} was truncated or altered: its SHA-256 is {found[:12]}…, {CONFIG} says {str(expected)[:12]}…; "
            "fetch or train the crosscoder again"
        )
    try:
        return load_tensors(weights)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from None


def _replace(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files so that none takes its place before all of them are on the disk; they do so in the order given."""
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


def _card(config: dict[str, Any]) -> str:
    """The model card, in the hub's format."""
    rows = "\n".join(
        f"| {name} | {'' if tokens is None else f'{tokens:,}'} | {source} | {scale:.4f} |"
        for name, tokens, source, scale in zip(
            config["checkpoints"],
            config["tokens"] or [None] * len(config["checkpoints"]),
            config["sources"] or [""] * len(config["checkpoints"]),
            config["scale_factors"],
            strict=True,
        )
    )
    number = len(config["checkpoints"])
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
