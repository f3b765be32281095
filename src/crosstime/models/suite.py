"""A suite: checkpoints of one pretraining run that fit together, in training order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import nn
from tqdm import tqdm

from crosstime import demo
from crosstime.base.device import available_device
from crosstime.base.errors import InputError, SettingError, nearest
from crosstime.models.metadata import (
    CheckpointFiles,
    SuiteMetadata,
    find_in_folder,
    find_in_folders,
    find_on_hub,
    match_checkpoints,
)
from crosstime.models.split import SplitLM
from crosstime.models.weights import find_weights, hash_weights, load_model


@dataclass(frozen=True)
class SuiteConfig:
    """[suite]: the checkpoints of a pretraining run, from exactly one of `demo`, `folder`, `folders` and `repo`."""

    demo: bool = False
    """Use the checkpoints bundled with crosstime."""
    folder: str | None = None
    """A folder with one checkpoint (config.json, weights, tokenizer) per subfolder."""
    folders: tuple[str, ...] = ()
    """One folder per checkpoint, in training order."""
    repo: str | None = None
    """A repository on the Hugging Face hub; needs `revisions`."""
    revisions: tuple[str, ...] = ()
    """Revisions (branches, tags or commits) of `repo`, in training order."""
    names: tuple[str, ...] = ()
    """With `demo` or `folder`, the subfolders to take; with `folders`, names of the checkpoints."""
    tokens: tuple[int, ...] | dict[str, int] | None = None
    """Tokens seen at each checkpoint, in order or by name. Only needed if neither the name of the revision or folder
    (see `metadata.tokens_seen`) nor a `log.json` next to folders called `step<N>` (a list of
    `{"step": ..., "tokens": ...}`) gives them."""
    tokenizer: str | None = None
    """A folder or hub repository with the tokenizer of all checkpoints; default: each checkpoint has its own."""
    allow_duplicates: bool = False
    """Accept checkpoints with the same weights."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoints."""

    def __post_init__(self) -> None:
        given = [name for name in ("demo", "folder", "folders", "repo") if getattr(self, name)]
        if len(given) != 1:
            listed = " and ".join(f"`{name}`" for name in given) or "none"
            raise InputError(f"a suite needs exactly one of `demo`, `folder`, `folders` and `repo`; it has {listed}")
        if bool(self.repo) != bool(self.revisions):
            raise SettingError("revisions", "and `repo` go together: a repository and a list of its revisions")
        if self.names and self.repo:
            raise SettingError("names", "does not go with `repo`: the revisions are the names")
        if self.folders and self.names and len(self.names) != len(self.folders):
            raise SettingError("names", f"has {len(self.names)} names for {len(self.folders)} `folders`")

    @property
    def source(self) -> str:
        """Describe where the checkpoints come from."""
        if self.demo:
            return "gutenberg-2m, the bundled checkpoints"
        return self.repo or self.folder or str(Path(self.folders[0]).parent)

    def metadata(self, root: Path = Path()) -> SuiteMetadata:
        """Find the checkpoints, and check without reading weights that they fit together.

        Args:
            root: What paths are relative to.

        Raises:
            InputError: A checkpoint doesn't exist, can't be read, or doesn't fit the others.
        """
        return match_checkpoints(
            self._find(root),
            tokens=self.tokens,
            tokenizer=self._tokenizer(root),
            trust_remote_code=self.trust_remote_code,
        )

    def _find(self, root: Path) -> list[CheckpointFiles]:
        if self.repo:
            return find_on_hub(self.repo, self.revisions, code=self.trust_remote_code)
        if self.folders:
            return find_in_folders([_path(root, folder) for folder in self.folders], self.names or None)
        return find_in_folder(demo.SUITE if self.demo else _path(root, self.folder or ""), self.names or None)

    def _tokenizer(self, root: Path) -> Path | str | None:
        """Return the tokenizer's folder, or else its repository on the hub."""
        if self.tokenizer and (folder := _path(root, self.tokenizer)).is_dir():
            return folder
        return self.tokenizer


def _path(root: Path, path: str) -> Path:
    return root / Path(path).expanduser()


class SuiteOptions(TypedDict, total=False):
    """Keyword arguments shared by the constructors of `Suite`."""

    tokens: Mapping[str, int] | Sequence[int] | None
    """Tokens seen, by name or in the order given; see `SuiteConfig.tokens`."""
    tokenizer: Path | str | None
    """A folder or hub repository with the tokenizer of all checkpoints; None if each checkpoint has its own."""
    allow_duplicates: bool
    """Accept checkpoints with the same weights."""
    trust_remote_code: bool
    """Run modelling code that comes with the checkpoints."""


@dataclass(frozen=True)
class Checkpoint(CheckpointFiles):
    """One checkpoint of a suite: its name, origin and weights' hash.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> (checkpoint,) = ct.Suite.from_folder(demo.SUITE, ["step64"])
        >>> checkpoint.name, checkpoint.tokens, checkpoint.sha256[:8]
        ('step64', 524288, '10a22f27')
    """

    sha256: str = field(kw_only=True)
    """Hash of the weights (`weights.hash_weights`)."""

    @property
    def origin(self) -> str:
        """The folder, or "repository@commit"."""
        return self.source if self.commit is None else f"{self.source}@{self.commit}"


@dataclass(frozen=True)
class Suite(SuiteMetadata):
    """Checkpoints that agree in width, number of layers, vocabulary and tokenizer, and differ in weights.

    Make one with `from_folder`, `from_folders`, `from_hub` or `from_config`. These compare configurations and
    tokenizers before any weights are read or downloaded, refuse weights that could run code, and put the checkpoints
    in training order: by tokens seen if known for all, else as given. Their common keyword arguments are
    `SuiteOptions`. All raise InputError if a checkpoint doesn't exist, is damaged, or doesn't fit the others.

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step3786", "step64"])
        >>> suite.names, suite.tokens
        (['step64', 'step3786'], [524288, 31014912])
        >>> suite.load("step64", layer=3).n_layers
        6
    """

    checkpoints: tuple[Checkpoint, ...]
    """In training order."""

    @classmethod
    def from_folder(
        cls, folder: Path | str, names: Sequence[str] | None = None, **options: Unpack[SuiteOptions]
    ) -> Suite:
        """Make a suite of the checkpoints in the subfolders of a folder, in transformers' format.

        Args:
            folder: The folder.
            names: Subfolders to take; None for all that hold a `config.json`.
            options: See `SuiteOptions`.
        """
        return cls._from_checkpoints(find_in_folder(Path(folder), names), **options)

    @classmethod
    def from_folders(
        cls, folders: Sequence[Path | str], *, names: Sequence[str] | None = None, **options: Unpack[SuiteOptions]
    ) -> Suite:
        """Make a suite of folders in transformers' format.

        Args:
            folders: One per checkpoint.
            names: Names of the checkpoints; None for the names of the folders.
            options: See `SuiteOptions`.
        """
        return cls._from_checkpoints(find_in_folders([Path(folder) for folder in folders], names), **options)

    @classmethod
    def from_hub(cls, repo: str, revisions: Sequence[str], **options: Unpack[SuiteOptions]) -> Suite:
        """Make a suite of revisions (branches, tags or commits) of a repository on the Hugging Face hub.

        The revisions are the checkpoints' names; the commits they point to are recorded. Without a network, or with
        HF_HUB_OFFLINE=1, revisions that were loaded before come from the hub's cache.
        """
        code = options.get("trust_remote_code", False)
        return cls._from_checkpoints(find_on_hub(repo, revisions, code=code), **options)

    @classmethod
    def from_config(cls, config: SuiteConfig, root: Path = Path()) -> Suite:
        """Make the suite that a configuration describes; its paths are relative to `root`."""
        return cls.from_metadata(config.metadata(root), allow_duplicates=config.allow_duplicates)

    @classmethod
    def from_metadata(cls, metadata: SuiteMetadata, *, allow_duplicates: bool = False) -> Suite:
        """Read (and, if need be, download) the weights of checkpoints that are known to fit together."""
        hashes = _hash_all(metadata.checkpoints, allow_duplicates)
        checkpoints = (
            Checkpoint(**vars(files), sha256=sha256) for files, sha256 in zip(metadata.checkpoints, hashes, strict=True)
        )
        return cls(**{**vars(metadata), "checkpoints": tuple(checkpoints)})

    @classmethod
    def _from_checkpoints(
        cls, checkpoints: Sequence[CheckpointFiles], *, allow_duplicates: bool = False, **options: Any
    ) -> Suite:
        return cls.from_metadata(match_checkpoints(checkpoints, **options), allow_duplicates=allow_duplicates)

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def select(self, names: Sequence[str]) -> Suite:
        """Return the suite of these checkpoints only, in training order whatever the order of `names`.

        Raises:
            InputError: No checkpoint has such a name, or no name is given.
        """
        kept = sorted({self._index(name) for name in names})
        if not kept:
            raise InputError(f"no checkpoints are selected: choose among {', '.join(self.names)}")
        return replace(self, checkpoints=tuple(self.checkpoints[i] for i in kept))

    def load(
        self, name: str | int, *, layer: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> SplitLM:
        """Load a checkpoint's model, split after block `layer`.

        Args:
            name: The checkpoint's name, or its index in training order.
            layer: The block whose output is the residual stream, counted from 0.
            dtype: Precision of the model.
            device: Where to put it.

        Raises:
            InputError: No such checkpoint, layer or device; or the weights changed after the suite was made.
        """
        index = self._index(name) if isinstance(name, str) else name
        if not 0 <= index < len(self):
            raise InputError(f"there is no checkpoint {index}: the suite has 0 to {len(self) - 1}")
        checkpoint = self.checkpoints[index]
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} is out of range: the checkpoints have blocks 0 to {self.n_layers - 1}")
        device = available_device(device)
        files = find_weights(checkpoint.folder)
        if hash_weights(files) != checkpoint.sha256:
            raise InputError(
                f"the weights of {checkpoint.name} in {checkpoint.folder} have changed since the suite was made: "
                "they are damaged or were overwritten"
            )
        model = load_model(checkpoint.folder, files, dtype, trust_remote_code=self.trust_remote_code)
        nn.Module.to(model, device)
        return SplitLM(model, layer, checkpoint.name)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise InputError(f"the suite has no checkpoint {name!r}{nearest(name, self.names)}")
        return self.names.index(name)


def _hash_all(checkpoints: Sequence[CheckpointFiles], allow_duplicates: bool) -> list[str]:
    """Hash the weights of each checkpoint; those on the hub are downloaded one after another."""
    names: dict[str, str] = {}
    hashes = []
    for checkpoint in tqdm(checkpoints, desc="checking weights", leave=False, disable=None):
        sha256 = hash_weights(checkpoint.weight_files())
        if sha256 in names and not allow_duplicates:
            raise InputError(
                f"checkpoints {names[sha256]} and {checkpoint.name} have the same weights: leave one out, or set "
                "allow_duplicates"
            )
        names.setdefault(sha256, checkpoint.name)
        hashes.append(sha256)
    return hashes
