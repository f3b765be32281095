"""What is known about checkpoints before their weights are read: that they exist, fit together, and their order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from crosstime.base.errors import InputError, first_line, nearest
from crosstime.models import hub
from crosstime.models.tokenizer import find_difference, have_same_files, load_tokenizer, tokenizer_files
from crosstime.models.weights import find_weights

HUB_THREADS = 8
"""Revisions requested from the hub at a time."""


@dataclass(frozen=True)
class CheckpointFiles:
    """One checkpoint in transformers' format: a local folder, or a revision on the hub."""

    name: str
    folder: Path
    """The user's folder, or a snapshot in the hub's cache."""
    tokens: int | None
    """Tokens seen in pretraining; None if unknown."""
    source: str
    """The folder, or the repository on the hub."""
    revision: str | None = None
    """The revision asked for."""
    commit: str | None = None
    """The commit that the revision points to."""

    def weight_files(self) -> list[Path]:
        """Return the weight files, downloading them if needed.

        Raises:
            InputError: There are none, or the download failed.
        """
        return hub.fetch_weights(self.source, self.commit, self.folder) if self.commit else find_weights(self.folder)

    def bytes_to_download(self) -> int | None:
        """Return how much `weight_files` would download; None if the hub lists no weights.

        Raises:
            InputError: A folder holds no weights; or the hub can't be reached and the cache doesn't hold them.
        """
        if self.commit:
            return hub.weights_to_download(self.source, self.commit, self.folder)
        find_weights(self.folder)
        return 0


def find_in_folders(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[CheckpointFiles]:
    """Find the checkpoint in each folder; without names, they are called as their folders.

    Raises:
        InputError: A folder holds no checkpoint, or the number of names differs from the number of folders.
    """
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is not a checkpoint: it holds no config.json")
    names = [folder.resolve().name for folder in folders] if names is None else names
    if len(names) != len(folders):
        raise InputError(f"{len(names)} names are given for {len(folders)} checkpoints")
    return [
        CheckpointFiles(name, folder, _tokens_of_folder(folder.resolve()), str(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def find_in_folder(folder: Path, names: Sequence[str] | None = None) -> list[CheckpointFiles]:
    """Find the checkpoints in the subfolders of a folder.

    Args:
        folder: The folder.
        names: Subfolders to take; None for all, sorted with numbers compared as numbers (step64 before step512).

    Raises:
        InputError: No such folder, or no such checkpoint in it (the message names the nearest).
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    known = [path.parent.name for path in folder.glob("*/config.json")]
    if not known:
        hint = "is itself a checkpoint: use from_folders" if (folder / "config.json").is_file() else "has none"
        raise InputError(f"expected a folder with one subfolder per checkpoint; {folder} {hint}")
    for name in names or ():
        if name not in known:
            raise InputError(f"{folder} has no checkpoint {name!r}{nearest(name, sorted(known))}")
    if names is None:
        names = sorted(known, key=lambda name: [(s.isdigit(), s.zfill(20)) for s in re.split(r"(\d+)", name)])
    return find_in_folders([folder / name for name in names])


def find_on_hub(repo: str, revisions: Sequence[str], *, code: bool = False) -> list[CheckpointFiles]:
    """Find revisions of a repository on the hub, and download everything but their weights.

    Args:
        repo: The repository.
        revisions: Branches, tags or commits.
        code: Also download the repository's own modelling code.

    Raises:
        InputError: No such repository or revision; or the hub can't be reached and the cache doesn't hold it.
    """
    with ThreadPoolExecutor(HUB_THREADS) as pool:
        fetched = list(pool.map(partial(hub.fetch_metadata, repo, code=code), revisions))
    return [
        CheckpointFiles(revision, folder, tokens_seen(repo, revision), repo, revision, commit)
        for revision, (folder, commit) in zip(revisions, fetched, strict=True)
    ]


@dataclass(frozen=True)
class SuiteMetadata:
    """Checkpoints that agree in width, number of layers, vocabulary and tokenizer; see `match_checkpoints`."""

    checkpoints: tuple[CheckpointFiles, ...]
    """In training order: by tokens seen if known for all, else as given."""
    config: PreTrainedConfig
    """Configuration of the first checkpoint given; the others may differ where it doesn't matter to a crosscoder."""
    tokenizer: PreTrainedTokenizerBase
    tokenizer_folder: Path | None = None
    """Where the tokenizer comes from, if not from the checkpoints' own folders."""
    trust_remote_code: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the checkpoints."""
        return [checkpoint.name for checkpoint in self.checkpoints]

    @property
    def tokens(self) -> list[int | None]:
        """Tokens seen at each checkpoint."""
        return [checkpoint.tokens for checkpoint in self.checkpoints]

    @property
    def width(self) -> int:
        """Dimensions of the residual stream, D."""
        return self.config.hidden_size

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return self.config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, V."""
        return self.config.vocab_size

    def input_files(self, folder: Path) -> list[Path]:
        """Return the files that, with its weights, determine what the checkpoint in a folder computes from a text."""
        home = self.tokenizer_folder or folder
        return [folder / "config.json", *sorted(home / name for name in tokenizer_files(self.tokenizer, home))]


def match_checkpoints(
    checkpoints: Sequence[CheckpointFiles],
    *,
    tokens: Mapping[str, int] | Sequence[int] | None = None,
    tokenizer: Path | str | None = None,
    trust_remote_code: bool = False,
) -> SuiteMetadata:
    """Check that checkpoints fit together, cheapest checks first, and put them in training order.

    Args:
        checkpoints: The checkpoints, in any order.
        tokens: See `SuiteConfig`, as are the other arguments.

    Raises:
        InputError: Two configurations or tokenizers differ, one can't be read, or two names are equal.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    if not checkpoints:
        raise InputError("a suite needs at least one checkpoint")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two checkpoints are called {min(repeated)!r}: give each its own name")
    seen = _override_tokens({checkpoint.name: checkpoint.tokens for checkpoint in checkpoints}, tokens)
    config = _common_config(checkpoints, trust_remote_code)
    folder = None if tokenizer is None else _tokenizer_folder(tokenizer)
    if folder is None:
        common = _common_tokenizer(checkpoints, trust_remote_code)
    else:
        common = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if len(common) > config.vocab_size:
        raise InputError(f"the tokenizer has {len(common)} tokens, but the models only {config.vocab_size}")
    ordered = [replace(checkpoint, tokens=seen[checkpoint.name]) for checkpoint in checkpoints]
    if all(checkpoint.tokens is not None for checkpoint in ordered):
        ordered.sort(key=lambda checkpoint: checkpoint.tokens or 0)
    return SuiteMetadata(tuple(ordered), config, common, folder, trust_remote_code)


def _tokenizer_folder(tokenizer: Path | str) -> Path:
    """Return a tokenizer's folder: the user's, or that of a repository in the hub's cache."""
    if Path(tokenizer).is_dir():
        return Path(tokenizer)
    try:
        return hub.fetch_metadata(str(tokenizer), "main")[0]
    except InputError as error:
        raise InputError(f"the tokenizer {tokenizer} is not a folder here, and {error}") from None


def _override_tokens(
    seen: dict[str, int | None], tokens: Mapping[str, int] | Sequence[int] | None
) -> dict[str, int | None]:
    """Replace the tokens seen by those that the user gives."""
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


def _load_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Load the configuration of a checkpoint's language model."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from None
    return config.get_text_config()


def _common_config(checkpoints: Sequence[CheckpointFiles], trust_remote_code: bool) -> PreTrainedConfig:
    """Return the first configuration, after comparing the others with it."""
    configs = [_load_config(checkpoint.folder, trust_remote_code) for checkpoint in checkpoints]
    for checkpoint, config in zip(checkpoints, configs, strict=True):
        for field, what in (("hidden_size", "width"), ("num_hidden_layers", "layers"), ("vocab_size", "vocabulary")):
            ours, theirs = getattr(configs[0], field), getattr(config, field)
            if ours != theirs:
                raise InputError(
                    f"checkpoints {checkpoints[0].name} and {checkpoint.name} do not fit together: {what} {ours} and "
                    f"{theirs}"
                )
    return configs[0]


def _common_tokenizer(checkpoints: Sequence[CheckpointFiles], trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the first tokenizer, after comparing the others with it."""
    first = checkpoints[0]
    common = load_tokenizer(first.folder, trust_remote_code=trust_remote_code)
    for checkpoint in checkpoints[1:]:
        if have_same_files(common, first.folder, checkpoint.folder):
            continue
        tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
        if difference := find_difference(common, tokenizer):
            raise InputError(f"the tokenizers of {first.name} and {checkpoint.name} differ: {difference}")
    return common


# ------------------------------------------------------------------------------------------------------- tokens seen

_M, _B, _T = 10**6, 10**9, 10**12

_STEP_RULES = (
    # Pythia: 1024 sequences of 2048 tokens per step (arXiv 2304.01373, table 1), in all sizes.
    (r"\bpythia-", r"step(\d+)", 2_097_152),
    # BLOOM's intermediate checkpoints: the figure of Crosscoding Through Time (arXiv 2509.05291), averaged over the
    # ramp of the batch size.
    (r"\bbloom\b", r"global_step(\d+)", 550_000),
    # OLMo's revisions give their tokens: "step1000-tokens2B", "stage1-step1000-tokens5B". In later stages
    # ("stage2-...") the label counts from the start of the stage, and nothing tells which checkpoint that was.
    ("", r"(?:stage1-)?step\d+-tokens(\d+)M", _M),
    ("", r"(?:stage1-)?step\d+-tokens(\d+)B", _B),
    ("", r"(?:stage1-)?step\d+-tokens(\d+)T", _T),
)
"""Pattern in a repository's name, pattern of its revisions, and tokens per unit of the revision's number."""

_FINAL_TOKENS = (
    # All sizes: 143,000 steps (arXiv 2304.01373).
    (r"(EleutherAI/)?pythia-[\d.]+[mb](-deduped)?", 143_000 * 2_097_152),
    # 341B and 3048B are the figures of Crosscoding Through Time (arXiv 2509.05291). OLMo's leaves out the cool-down.
    (r"(bigscience/)?bloom-1b1(-intermediate)?", 341 * _B),
    (r"(allenai/)?OLMo-1B-0724-hf", 3048 * _B),
)
"""Tokens seen by `main`, by the repository's whole name: fine-tuned descendants have similar names."""


def tokens_seen(repo_or_name: str, revision: str) -> int | None:
    """Return the tokens that a checkpoint had seen, by the naming rules of public suites; None if no rule applies.

    >>> tokens_seen("EleutherAI/pythia-1b", "step512")
    1073741824

    Args:
        repo_or_name: A hub repository ("EleutherAI/pythia-1b") or the name of a folder.
        revision: A revision ("step512", "main"), or the name of a checkpoint's subfolder.
    """
    if revision == "main":
        final = (tokens for repo, tokens in _FINAL_TOKENS if re.fullmatch(repo, repo_or_name, re.IGNORECASE))
        return next(final, None)
    for repo, pattern, factor in _STEP_RULES:
        match = re.fullmatch(pattern, revision)
        if match and re.search(repo, repo_or_name, re.IGNORECASE):
            return int(match[1]) * factor
    return None


def _tokens_of_folder(folder: Path) -> int | None:
    """Return the tokens that a checkpoint in a folder had seen, by the folders' names or a log next to it."""
    tokens = tokens_seen(folder.parent.name, folder.name)
    step = re.fullmatch(r"step(\d+)", folder.name)
    if tokens is not None or not step:
        return tokens
    try:
        log = json.loads((folder.parent / "log.json").read_text(encoding="utf-8"))
        return ({0: 0} | {int(entry["step"]): int(entry["tokens"]) for entry in log}).get(int(step[1]))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # no log, or some other file of this name
