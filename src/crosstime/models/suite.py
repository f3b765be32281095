"""A suite: checkpoints of one pretraining run that fit together, in the order of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crosstime.base.device import available_device
from crosstime.base.errors import InputError, nearest
from crosstime.models.load import load_model
from crosstime.models.metadata import Metadata, Place, Tokens, agree, in_folder, in_folders, on_hub
from crosstime.models.split import SplitLM
from crosstime.models.weights import find_weights, hash_weights


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
class Suite:
    """Checkpoints that agree in width, number of layers, vocabulary and tokenizer, and differ in weights.

    Make one with `from_folder`, `from_folders` or `from_hub`. They compare configurations and tokenizers before any
    weights are read or downloaded, refuse weights that could run code, and put the checkpoints in the order of
    training: by tokens seen where these are known for all, else in the order given.

    Their common arguments:
        tokens: tokens seen in pretraining, by name or one for each checkpoint in the order given. Where the user says
            nothing, the name of the revision does if a rule is known (`tokens_seen`), or else a `log.json` beside the
            folders, a list of `{"step": ..., "tokens": ...}`, for folders called `step<N>`.
        tokenizer: a folder, or a repository on the hub, that holds the tokenizer of all checkpoints; None where each
            checkpoint comes with its own.
        allow_duplicates: accept checkpoints with the same weights.
        trust_remote_code: run modelling code that comes with the checkpoints.

    All raise InputError if a checkpoint does not exist, is damaged, or does not fit the others.
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
        tokenizer: Path | str | None = None,
        allow_duplicates: bool = False,
        trust_remote_code: bool = False,
    ) -> Suite:
        """A suite from a folder that holds one folder for each checkpoint, in transformers' format.

        Args:
            names: the checkpoints to take; None for all subfolders with a `config.json`, numbers in names counting as
                numbers (step64 before step512).
        """
        places = in_folder(Path(folder), names)
        metadata = agree(places, tokens=tokens, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
        return cls.from_metadata(metadata, allow_duplicates=allow_duplicates)

    @classmethod
    def from_folders(
        cls,
        folders: Sequence[Path | str],
        *,
        names: Sequence[str] | None = None,
        tokens: Tokens = None,
        tokenizer: Path | str | None = None,
        allow_duplicates: bool = False,
        trust_remote_code: bool = False,
    ) -> Suite:
        """A suite from folders in transformers' format.

        Args:
            names: what to call the checkpoints; None for the names of the folders.
        """
        places = in_folders([Path(folder) for folder in folders], names)
        metadata = agree(places, tokens=tokens, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
        return cls.from_metadata(metadata, allow_duplicates=allow_duplicates)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        revisions: Sequence[str],
        *,
        tokens: Tokens = None,
        tokenizer: Path | str | None = None,
        allow_duplicates: bool = False,
        trust_remote_code: bool = False,
    ) -> Suite:
        """A suite from revisions (branches, tags or commits) of a repository on the Hugging Face hub.

        Without a network, or with HF_HUB_OFFLINE=1, revisions that were loaded before come from the hub's cache.
        The checkpoints are called by their revisions, and the commits they stand for are recorded.
        """
        places = on_hub(repo, revisions, code=trust_remote_code)
        metadata = agree(places, tokens=tokens, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
        return cls.from_metadata(metadata, allow_duplicates=allow_duplicates)

    @classmethod
    def from_metadata(cls, metadata: Metadata, *, allow_duplicates: bool = False) -> Suite:
        """A suite of checkpoints whose configurations and tokenizers are known to agree: reads their weights."""
        hashes = _hash_all(metadata.places, allow_duplicates)
        return cls(
            checkpoints=tuple(
                Checkpoint(place.name, place.tokens, place.source, place.revision, place.commit, digest)
                for place, digest in zip(metadata.places, hashes, strict=True)
            ),
            tokenizer=metadata.tokenizer,
            width=metadata.config.hidden_size,
            n_layers=metadata.n_layers,
            vocab_size=metadata.config.vocab_size,
            folders=tuple(place.folder for place in metadata.places),
            trust_remote_code=metadata.trust_remote_code,
        )

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
            InputError: there is no checkpoint of such a name, or no name is given.
        """
        wanted = {self._index(name) for name in names}
        if not wanted:
            raise InputError(f"no checkpoints are selected: choose among {', '.join(self.names)}")
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
            InputError: no such checkpoint, layer or device; or the weights are not those of when the suite was made.
        """
        index = self._index(name) if isinstance(name, str) else name
        if not 0 <= index < len(self):
            raise InputError(f"there is no checkpoint {index}: the suite has 0 to {len(self) - 1}")
        checkpoint, folder = self.checkpoints[index], self.folders[index]
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} is out of range: the checkpoints have blocks 0 to {self.n_layers - 1}")
        device = available_device(device)
        files = find_weights(folder)
        if hash_weights(files) != checkpoint.sha256:
            raise InputError(
                f"the weights of {checkpoint.name} in {folder} have changed since the suite was made: they are damaged "
                "or were overwritten"
            )
        model = load_model(folder, files, dtype, trust_remote_code=self.trust_remote_code)
        nn.Module.to(model, device)
        return SplitLM(model, layer, checkpoint.name)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise InputError(f"the suite has no checkpoint {name!r}{nearest(name, self.names)}")
        return self.names.index(name)


def _hash_all(places: Sequence[Place], allow_duplicates: bool) -> list[str]:
    """The hash of each checkpoint's weights, which come from the hub one after another."""
    owners: dict[str, str] = {}
    hashes = []
    for place in tqdm(places, desc="checking weights", leave=False, disable=None):
        digest = hash_weights(place.weights())
        if digest in owners and not allow_duplicates:
            raise InputError(
                f"checkpoints {owners[digest]} and {place.name} have the same weights: leave one out, or set "
                "allow_duplicates"
            )
        owners.setdefault(digest, place.name)
        hashes.append(digest)
    return hashes
