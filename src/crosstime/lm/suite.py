"""A suite: checkpoints of one pretraining run that fit together, in the order of training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from crosstime.lm import hub
from crosstime.lm.device import available_device
from crosstime.lm.load import load_config, load_model, load_tokenizer
from crosstime.lm.nearest import nearest
from crosstime.lm.split import SplitLM
from crosstime.lm.tokenizer import difference, same_files
from crosstime.lm.tokens_seen import tokens_seen
from crosstime.lm.weights import find_weights, hash_weights

Tokens = Mapping[str, int] | Sequence[int] | None
"""Tokens seen, from the user: by checkpoint name, or one for each checkpoint, or nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """Where one checkpoint came from, and what it holds."""

    name: str
    tokens: int | None
    """Tokens seen in pretraining; None if neither the user nor a rule says."""
    source: str
    """Its folder, or its repository on the hub."""
    revision: str | None
    """What the user asked the hub for."""
    commit: str | None
    """What the revision stood for when the suite was made."""
    sha256: str
    """Hash of its weights (`weights.hash_weights`)."""

    @property
    def origin(self) -> str:
        """The folder, or repository@commit: where its weights are found again."""
        return self.source if self.commit is None else f"{self.source}@{self.commit}"


@dataclass(frozen=True)
class _Place:
    """A checkpoint that has not been checked yet."""

    name: str
    folder: Path
    tokens: int | None
    source: str
    revision: str | None = None
    commit: str | None = None

    def weights(self) -> list[Path]:
        return hub.fetch_weights(self.source, self.commit, self.folder) if self.commit else find_weights(self.folder)


@dataclass(frozen=True)
class Suite:
    """Checkpoints that agree in width, number of layers, vocabulary and tokenizer, and differ in weights.

    Make one with `from_folder`, `from_folders` or `from_hub`. They compare configurations and tokenizers before any
    weights are read or downloaded, refuse weights that could run code, and put the checkpoints in the order of
    training: by tokens seen where these are known for all, else in the order given.

    Their common arguments:
        tokens: tokens seen in pretraining, by name or one for each checkpoint in the order given. Where the user says
            nothing, the name of the revision does if a rule is known (`tokens_seen`), or else a `log.json` beside the
            folders, a list of `{"step": ..., "tokens": ...}`, for folders called `step<N>`.
        allow_duplicates: accept checkpoints with the same weights.
        trust_remote_code: run modelling code that comes with the checkpoints.

    All raise ValueError if a checkpoint does not exist, is damaged, or does not fit the others.
    """

    checkpoints: tuple[Checkpoint, ...]
    tokenizer: PreTrainedTokenizerBase
    width: int
    n_layers: int
    vocab_size: int
    folders: tuple[Path, ...]
    """Where the files of each checkpoint are: the user's folders, or snapshots in the hub's cache."""
    trust_remote_code: bool = False

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        names: Sequence[str] | None = None,
        *,
        tokens: Tokens = None,
        allow_duplicates: bool = False,
        trust_remote_code: bool = False,
    ) -> Suite:
        """A suite from a folder that holds one folder for each checkpoint, in transformers' format.

        Args:
            names: the checkpoints to take; None for all subfolders with a `config.json`, numbers in names counting as
                numbers (step64 before step512).
        """
        folder = Path(folder)
        found = _checkpoint_names(folder)
        for name in names or ():
            if name not in found:
                raise ValueError(f"{folder} has no checkpoint {name!r}{nearest(name, found)}")
        return cls.from_folders(
            [folder / name for name in (found if names is None else names)],
            tokens=tokens,
            allow_duplicates=allow_duplicates,
            trust_remote_code=trust_remote_code,
        )

    @classmethod
    def from_folders(
        cls,
        folders: Sequence[Path | str],
        *,
        names: Sequence[str] | None = None,
        tokens: Tokens = None,
        allow_duplicates: bool = False,
        trust_remote_code: bool = False,
    ) -> Suite:
        """A suite from folders in transformers' format.

        Args:
            names: what to call the checkpoints; None for the names of the folders.
        """
        paths = [Path(folder) for folder in folders]
        for path in paths:
            if not (path / "config.json").is_file():
                raise ValueError(f"{path} is not a checkpoint: it holds no config.json")
        names = [path.resolve().name for path in paths] if names is None else list(names)
        if len(names) != len(paths):
            raise ValueError(f"{len(names)} names are given for {len(paths)} checkpoints")
        places = [
            _Place(name, path, _folder_tokens(path.resolve()), str(path))
            for name, path in zip(names, paths, strict=True)
        ]
        return _assemble(places, tokens, allow_duplicates, trust_remote_code)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        revisions: Sequence[str],
        *,
        tokens: Tokens = None,
        allow_duplicates: bool = False,
        trust_remote_code: bool = False,
    ) -> Suite:
        """A suite from revisions (branches, tags or commits) of a repository on the Hugging Face hub.

        Without a network, or with HF_HUB_OFFLINE=1, revisions that were loaded before come from the hub's cache.
        The checkpoints are called by their revisions, and the commits they stand for are recorded.
        """
        places = []
        for revision in revisions:
            folder, commit = hub.fetch_metadata(repo, revision, code=trust_remote_code)
            places.append(_Place(revision, folder, tokens_seen(repo, revision), repo, revision, commit))
        return _assemble(places, tokens, allow_duplicates, trust_remote_code)

    @property
    def names(self) -> list[str]:
        return [checkpoint.name for checkpoint in self.checkpoints]

    @property
    def tokens(self) -> list[int | None]:
        return [checkpoint.tokens for checkpoint in self.checkpoints]

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def select(self, names: Sequence[str]) -> Suite:
        """The suite of these checkpoints only, in the order of training whatever the order of `names`.

        Raises:
            ValueError: there is no checkpoint of such a name, or no name is given.
        """
        wanted = {self._index(name) for name in names}
        if not wanted:
            raise ValueError(f"no checkpoints are selected: choose among {', '.join(self.names)}")
        kept = sorted(wanted)
        return replace(
            self,
            checkpoints=tuple(self.checkpoints[i] for i in kept),
            folders=tuple(self.folders[i] for i in kept),
        )

    def load(
        self,
        name: str | int,
        *,
        layer: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> SplitLM:
        """A checkpoint's model, cut after block `layer`.

        Args:
            name: the checkpoint's name, or its index in the order of training.

        Raises:
            ValueError: no such checkpoint, layer or device; or the weights are not those of when the suite was made.
        """
        index = self._index(name) if isinstance(name, str) else name
        if not 0 <= index < len(self):
            raise ValueError(f"there is no checkpoint {index}: the suite has 0 to {len(self) - 1}")
        checkpoint, folder = self.checkpoints[index], self.folders[index]
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"layer {layer} is out of range: the checkpoints have blocks 0 to {self.n_layers - 1}")
        device = available_device(device)
        files = find_weights(folder)
        if hash_weights(files) != checkpoint.sha256:
            raise ValueError(
                f"the weights of {checkpoint.name} in {folder} have changed since the suite was made: they are damaged "
                "or were overwritten"
            )
        model = load_model(folder, files, dtype, trust_remote_code=self.trust_remote_code)
        nn.Module.to(model, device)
        return SplitLM(model, layer, checkpoint.name)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"the suite has no checkpoint {name!r}{nearest(name, self.names)}")
        return self.names.index(name)


def _assemble(places: Sequence[_Place], tokens: Tokens, allow_duplicates: bool, trust_remote_code: bool) -> Suite:
    """Check that the checkpoints fit together, cheapest checks first, and put them in the order of training."""
    names = [place.name for place in places]
    if not places:
        raise ValueError("a suite needs at least one checkpoint")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two checkpoints are called {min(twice)!r}: each needs a name of its own")
    seen = _with_user_tokens({place.name: place.tokens for place in places}, tokens)
    config = _common_config(places, trust_remote_code)
    tokenizer = _common_tokenizer(places, trust_remote_code)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but the models only {config.vocab_size}")
    hashes = _hash_all(places, allow_duplicates)
    checkpoints = [
        Checkpoint(place.name, seen[place.name], place.source, place.revision, place.commit, digest)
        for place, digest in zip(places, hashes, strict=True)
    ]
    order = _training_order([checkpoint.tokens for checkpoint in checkpoints])
    return Suite(
        checkpoints=tuple(checkpoints[i] for i in order),
        tokenizer=tokenizer,
        width=config.hidden_size,
        n_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        folders=tuple(places[i].folder for i in order),
        trust_remote_code=trust_remote_code,
    )


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
            raise ValueError(f"tokens are given for {len(tokens)} checkpoints, but there are {len(seen)}")
        tokens = dict(zip(seen, tokens, strict=True))
    for name, count in tokens.items():
        if name not in seen:
            raise ValueError(f"tokens are given for {name!r}, which is not a checkpoint{nearest(name, seen)}")
        if count < 0:
            raise ValueError(f"tokens of {name!r} are negative: {count}")
    return seen | dict(tokens)


def _common_config(places: Sequence[_Place], trust_remote_code: bool) -> PreTrainedConfig:
    """The first configuration, with which the others agree in what a crosscoder needs."""
    configs = [load_config(place.folder, trust_remote_code=trust_remote_code) for place in places]
    for place, config in zip(places, configs, strict=True):
        for field, what in (("hidden_size", "width"), ("num_hidden_layers", "layers"), ("vocab_size", "vocabulary")):
            ours, theirs = getattr(configs[0], field), getattr(config, field)
            if ours != theirs:
                raise ValueError(
                    f"checkpoints {places[0].name} and {place.name} do not fit together: {what} {ours} and {theirs}"
                )
    return configs[0]


def _common_tokenizer(places: Sequence[_Place], trust_remote_code: bool) -> PreTrainedTokenizerBase:
    first = load_tokenizer(places[0].folder, trust_remote_code=trust_remote_code)
    for place in places[1:]:
        if same_files(first, places[0].folder, place.folder):
            continue
        tokenizer = load_tokenizer(place.folder, trust_remote_code=trust_remote_code)
        if found := difference(first, tokenizer):
            raise ValueError(f"the tokenizers of {places[0].name} and {place.name} differ: {found}")
    return first


def _hash_all(places: Sequence[_Place], allow_duplicates: bool) -> list[str]:
    """The hash of each checkpoint's weights, which come from the hub one after another."""
    owners: dict[str, str] = {}
    hashes = []
    for place in tqdm(places, desc="checking weights", leave=False, disable=None):
        digest = hash_weights(place.weights())
        if digest in owners and not allow_duplicates:
            raise ValueError(
                f"checkpoints {owners[digest]} and {place.name} have the same weights: leave one out, or set "
                "allow_duplicates"
            )
        owners.setdefault(digest, place.name)
        hashes.append(digest)
    return hashes


def _checkpoint_names(folder: Path) -> list[str]:
    """The subfolders that hold a configuration, in natural order."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    names = [path.parent.name for path in folder.glob("*/config.json")]
    if not names:
        hint = "is itself a checkpoint: use from_folders" if (folder / "config.json").is_file() else "has none"
        raise ValueError(f"a folder that holds one folder for each checkpoint is expected; {folder} {hint}")
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
