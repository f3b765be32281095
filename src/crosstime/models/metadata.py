"""What is known of checkpoints before their weights are read: that they are there, fit together, and in which order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from crosstime.base.errors import InputError, nearest
from crosstime.models import hub
from crosstime.models.load import load_config, load_tokenizer
from crosstime.models.tokenizer import deciding_files, difference, same_files
from crosstime.models.tokens_seen import tokens_seen
from crosstime.models.weights import find_weights

Tokens = Mapping[str, int] | Sequence[int] | None
"""Tokens seen, from the user: by checkpoint name, or one for each checkpoint, or nothing."""

REQUESTS = 8
"""Revisions about which the hub is asked at a time."""


@dataclass(frozen=True)
class Place:
    """Where the files of one checkpoint are."""

    name: str
    folder: Path
    """The user's folder, or a snapshot in the hub's cache."""
    tokens: int | None
    """Tokens seen in pretraining; None if neither the user nor a rule says."""
    source: str
    """Its folder, or its repository on the hub."""
    revision: str | None = None
    """What the user asked the hub for."""
    commit: str | None = None
    """What the revision stands for."""

    def weights(self) -> list[Path]:
        """Its weight files; from the hub, if need be.

        Raises:
            InputError: there are none, or the download failed.
        """
        return hub.fetch_weights(self.source, self.commit, self.folder) if self.commit else find_weights(self.folder)

    def weights_to_download(self) -> int | None:
        """Bytes that `weights` would download; None if the hub lists no weights.

        Raises:
            InputError: a folder holds no weights; or the hub cannot be reached and the cache does not hold them.
        """
        if self.commit:
            return hub.weights_to_download(self.source, self.commit, self.folder)
        find_weights(self.folder)
        return 0


@dataclass(frozen=True)
class Metadata:
    """Checkpoints that agree in width, number of layers, vocabulary and tokenizer (`agree` makes sure)."""

    places: tuple[Place, ...]
    """In the order of training: by tokens seen where these are known for all, else in the order given."""
    config: PreTrainedConfig
    """Of the first checkpoint given; the others may differ in what a crosscoder does not need."""
    tokenizer: PreTrainedTokenizerBase
    tokenizer_folder: Path | None = None
    """Where the tokenizer comes from, if not from the checkpoints' own folders."""
    trust_remote_code: bool = False

    @property
    def names(self) -> list[str]:
        return [place.name for place in self.places]

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    def deciding_files(self, folder: Path) -> list[Path]:
        """The files of a checkpoint that decide, beside its weights, what it computes from a text."""
        home = self.tokenizer_folder or folder
        return [folder / "config.json", *sorted(home / name for name in deciding_files(self.tokenizer, home))]


def in_folder(folder: Path, names: Sequence[str] | None = None) -> list[Place]:
    """The checkpoints in the subfolders of a folder.

    Args:
        names: the checkpoints to take; None for all, numbers in names counting as numbers.

    Raises:
        InputError: there is no such folder, or no such checkpoint in it (the nearest is named).
    """
    found = _checkpoint_names(folder)
    for name in names or ():
        if name not in found:
            raise InputError(f"{folder} has no checkpoint {name!r}{nearest(name, found)}")
    return in_folders([folder / name for name in (found if names is None else names)])


def in_folders(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Place]:
    """The checkpoints in some folders.

    Args:
        names: what to call them; None for the names of the folders.

    Raises:
        InputError: a folder holds no checkpoint, or there are not as many names as folders.
    """
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is not a checkpoint: it holds no config.json")
    names = [folder.resolve().name for folder in folders] if names is None else names
    if len(names) != len(folders):
        raise InputError(f"{len(names)} names are given for {len(folders)} checkpoints")
    return [
        Place(name, folder, _folder_tokens(folder.resolve()), str(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def on_hub(repo: str, revisions: Sequence[str], *, code: bool = False) -> list[Place]:
    """Revisions of a repository on the hub; all but their weights is downloaded.

    Args:
        code: download also the repository's own modelling code.

    Raises:
        InputError: no such repository or revision, or the hub cannot be reached and the cache does not hold it.
    """
    with ThreadPoolExecutor(REQUESTS) as pool:
        fetched = list(pool.map(partial(hub.fetch_metadata, repo, code=code), revisions))
    return [
        Place(revision, folder, tokens_seen(repo, revision), repo, revision, commit)
        for revision, (folder, commit) in zip(revisions, fetched, strict=True)
    ]


def agree(
    places: Sequence[Place],
    *,
    tokens: Tokens = None,
    tokenizer: Path | str | None = None,
    trust_remote_code: bool = False,
) -> Metadata:
    """Check that checkpoints fit together, cheapest checks first, and put them in the order of training.

    For the arguments see `Suite`.

    Raises:
        InputError: the configurations or tokenizers of two checkpoints differ, one cannot be read, or a name is there
            twice.
    """
    names = [place.name for place in places]
    if not places:
        raise InputError("a suite needs at least one checkpoint")
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two checkpoints are called {min(twice)!r}: each needs a name of its own")
    seen = _with_user_tokens({place.name: place.tokens for place in places}, tokens)
    config = _common_config(places, trust_remote_code)
    home = None if tokenizer is None else _tokenizer_folder(tokenizer)
    if home is None:
        common = _common_tokenizer(places, trust_remote_code)
    else:
        common = load_tokenizer(home, trust_remote_code=trust_remote_code)
    if len(common) > config.vocab_size:
        raise InputError(f"the tokenizer has {len(common)} tokens, but the models only {config.vocab_size}")
    places = [replace(place, tokens=seen[place.name]) for place in places]
    order = _training_order([place.tokens for place in places])
    return Metadata(tuple(places[i] for i in order), config, common, home, trust_remote_code)


def _tokenizer_folder(tokenizer: Path | str) -> Path:
    """A tokenizer's folder: the user's, or that of a repository in the hub's cache."""
    if Path(tokenizer).is_dir():
        return Path(tokenizer)
    try:
        return hub.fetch_metadata(str(tokenizer), "main")[0]
    except ValueError as error:
        raise InputError(f"the tokenizer {tokenizer} is no folder here, and {error}") from None


def _training_order(tokens: list[int | None]) -> list[int]:
    """Indices by tokens seen if they are known for all, else as given."""
    known = [count for count in tokens if count is not None]
    if len(known) < len(tokens):
        return list(range(len(tokens)))
    return sorted(range(len(tokens)), key=known.__getitem__)


def _with_user_tokens(seen: dict[str, int | None], tokens: Tokens) -> dict[str, int | None]:
    """Tokens by name, what the user says before what a rule says."""
    if tokens is None:
        return seen
    if not isinstance(tokens, Mapping):
        if len(tokens) != len(seen):
            raise InputError(f"tokens are given for {len(tokens)} checkpoints, but there are {len(seen)}")
        tokens = dict(zip(seen, tokens, strict=True))
    for name, count in tokens.items():
        if name not in seen:
            raise InputError(f"tokens are given for {name!r}, which is not a checkpoint{nearest(name, seen)}")
        if count < 0:
            raise InputError(f"tokens of {name!r} are negative: {count}")
    return seen | dict(tokens)


def _common_config(places: Sequence[Place], trust_remote_code: bool) -> PreTrainedConfig:
    """The first configuration, with which the others agree in what a crosscoder needs."""
    configs = [load_config(place.folder, trust_remote_code=trust_remote_code) for place in places]
    for place, config in zip(places, configs, strict=True):
        for field, what in (("hidden_size", "width"), ("num_hidden_layers", "layers"), ("vocab_size", "vocabulary")):
            ours, theirs = getattr(configs[0], field), getattr(config, field)
            if ours != theirs:
                raise InputError(
                    f"checkpoints {places[0].name} and {place.name} do not fit together: {what} {ours} and {theirs}"
                )
    return configs[0]


def _common_tokenizer(places: Sequence[Place], trust_remote_code: bool) -> PreTrainedTokenizerBase:
    first = load_tokenizer(places[0].folder, trust_remote_code=trust_remote_code)
    for place in places[1:]:
        if same_files(first, places[0].folder, place.folder):
            continue
        tokenizer = load_tokenizer(place.folder, trust_remote_code=trust_remote_code)
        if found := difference(first, tokenizer):
            raise InputError(f"the tokenizers of {places[0].name} and {place.name} differ: {found}")
    return first


def _checkpoint_names(folder: Path) -> list[str]:
    """The subfolders that hold a configuration, in natural order."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    names = [path.parent.name for path in folder.glob("*/config.json")]
    if not names:
        hint = "is itself a checkpoint: use from_folders" if (folder / "config.json").is_file() else "has none"
        raise InputError(f"a folder that holds one folder for each checkpoint is expected; {folder} {hint}")
    return sorted(names, key=lambda name: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", name)])


def _folder_tokens(folder: Path) -> int | None:
    """Tokens seen by a checkpoint in a folder, by the folders' names or by the log beside it."""
    by_rule = tokens_seen(folder.parent.name, folder.name)
    step = re.fullmatch(r"step(\d+)", folder.name)
    if by_rule is not None or not step:
        return by_rule
    log = _tokens_by_step(folder.parent / "log.json")
    return log.get(int(step[1]))


def _tokens_by_step(log: Path) -> dict[int, int]:
    """Tokens by step from a log of pretraining; empty if the file is missing or is some other log."""
    try:
        tokens = {int(entry["step"]): int(entry["tokens"]) for entry in json.loads(log.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {0: 0} | tokens
