"""[text] of run.toml: the stage that turns text into blocks of tokens, once for all stages that read them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from crosstime import demo
from crosstime.base import artifact
from crosstime.base.errors import InputError, SettingError
from crosstime.base.settings import check_at_least
from crosstime.models.hub import dataset_commit
from crosstime.text.corpus import TokenFile, read_progress
from crosstime.text.files import Files
from crosstime.text.hub import HubText
from crosstime.text.mixture import BlockSubset, hold_out, write_mixed
from crosstime.text.packing import DocumentStart, Packed, Packing, Tokenisation, blocks_within
from crosstime.text.positions import Positions
from crosstime.text.sources import Source

STATE = "tokenising"
"""Folder in the run folder with the tokens of unfinished texts, outside the artifact."""
COMMITS = "commits.json"

_PACKINGS: dict[str, type[Packing]] = {"packed": Packed, "document-start": DocumentStart}


@dataclass(frozen=True)
class HubTextConfig:
    """[[text.hub]]: a dataset on the Hugging Face hub, streamed."""

    repo: str
    """Name of the repository, "owner/name"."""
    config: str | None = None
    """Configuration of a dataset that has several: a language, a subset."""
    split: str = "train"
    """Split to train on."""
    heldout_split: str | None = None
    """Split to hold out; default: the last blocks of `split` are held out."""
    column: str = "text"
    """Column of the documents."""
    revision: str = "main"
    """Branch, tag or commit. A run keeps the commit that it finds at first."""
    share: float | None = None
    """Share of `TextConfig.limit_tokens`; default: equal shares."""

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise SettingError("share", f"of {self.repo!r} must lie between 0 and 1, not {self.share}")


@dataclass(frozen=True)
class TextConfig:
    """[text]: what the crosscoder is trained and measured on. Paths are relative to run.toml."""

    demo: bool = False
    """Use the bundled text."""
    train: str | tuple[str, ...] = ()
    """Files, or patterns of names: plain text (an empty line ends a document), .jsonl, .csv, .tsv, .parquet."""
    hub: tuple[HubTextConfig, ...] = ()
    """Datasets on the hub."""
    column: str = "text"
    """Column of the documents in tables."""
    heldout: str | tuple[str, ...] = ()
    """Files of text that training never sees; default: the last part of the training text is held out."""
    heldout_share: float = 0.05
    """Share held out if there is no held-out text; of a `heldout_split`, as much is read."""
    context: int = 128
    """Tokens per block, BOS included."""
    limit_tokens: int | None = None
    """Largest number of tokens of the training text."""
    packing: Literal["packed", "document-start"] = "packed"
    """Documents one after another, or one block from the beginning of each (arXiv 2509.05291)."""
    min_tokens: int | None = None
    """Skip documents of fewer tokens; default: those that don't fill a block, for "document-start"."""
    min_characters: int = 0
    """Skip documents of fewer characters."""
    shuffle_seed: int | None = None
    """Shuffle the blocks of each text before a part is held out; default: they stay in order."""

    def __post_init__(self) -> None:
        given = [name for name in ("demo", "train", "hub") if getattr(self, name)]
        if not given:
            raise SettingError("train", "is missing: name files under `train`, datasets under `hub`, or set `demo`")
        if len(given) > 1:
            raise SettingError(given[0], f"and `{given[1]}` exclude each other: name one of `demo`, `train`, `hub`")
        if self.demo and self.heldout:
            raise SettingError("heldout", "doesn't go with `demo`, which has a held-out text of its own")
        check_at_least(2, context=self.context)
        check_at_least(1, limit_tokens=self.limit_tokens, min_tokens=self.min_tokens)
        check_at_least(0, min_characters=self.min_characters, shuffle_seed=self.shuffle_seed)
        if not 0 < self.heldout_share < 1:
            raise SettingError("heldout_share", f"must lie between 0 and 1, not {self.heldout_share}")
        if self.hub:
            self._check_hub()

    def _check_hub(self) -> None:
        if self.limit_tokens is None:
            raise SettingError("limit_tokens", "is missing: datasets under `hub` may have no end")
        if self.heldout and any(text.heldout_split for text in self.hub):
            raise SettingError("heldout", "and `heldout_split` of a dataset name two held-out texts: leave one out")
        shares = [text.share for text in self.hub if text.share is not None]
        if shares and len(shares) < len(self.hub):
            raise SettingError("hub", "must have a `share` for every dataset, or for none")
        if shares and abs(sum(shares) - 1) > 1e-6:
            raise SettingError("hub", f"has shares that add up to {sum(shares):g}, not to 1")

    def train_files(self, folder: Path) -> list[Path]:
        """List the files of the training text; none if it's on the hub."""
        return [demo.TRAIN_TEXT] if self.demo else _find_files(self.train, folder)

    def heldout_files(self, folder: Path) -> list[Path]:
        """List the files of the held-out text; none if it's on the hub or a part of the training text."""
        return [demo.HELDOUT_TEXT] if self.demo else _find_files(self.heldout, folder)

    def check_files(self, folder: Path) -> None:
        """Check that all files exist.

        Raises:
            InputError: A file is missing or empty.
        """
        for path in [*self.train_files(folder), *self.heldout_files(folder)]:
            if not path.is_file():
                raise InputError(f"there is no text file {path}")
            if path.stat().st_size == 0:
                raise InputError(f"the text file {path} is empty")


def _find_files(names: str | Sequence[str], folder: Path) -> list[Path]:
    """Files by name; a name with * or ? that is no file stands for all files that match it, in order."""
    found = []
    for name in [names] if isinstance(names, str) else names:
        path = folder / Path(name).expanduser()
        is_pattern = not path.exists() and bool(set("*?") & set(path.name))
        found += (sorted(path.parent.glob(path.name)) if is_pattern else []) or [path]
    return found


def write_tokens(
    config: TextConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, positions: Positions, draft: Path
) -> None:
    """Write train.npy and heldout.npy, blocks of tokens, and tokens.json: how they were made, and from what.

    Interrupted work is resumed from its state, which lies outside the artifact.

    Args:
        config: Which text, and how it becomes blocks.
        folder: The run folder.
        tokenizer: Tokenizer of the checkpoints.
        positions: Whether blocks start with BOS.
        draft: Folder to write into.

    Raises:
        InputError: A text can't be read, or is too short.
        OSError: The disk is full.
    """
    commits, state = _commits(config, folder), folder / STATE
    state.mkdir(exist_ok=True)
    artifact.write_text(state / COMMITS, json.dumps(commits, indent=1) + "\n")
    texts = list(_texts(config, folder, commits, tokenizer, positions))
    _check(texts)  # before hours are spent on the first
    train, heldout, sources = [], [], []
    for number, text in enumerate(texts, 1):
        file = TokenFile(state / f"text-{number}", text.tokenisation)
        blocks = file.fill(text.limit)
        if len(config.hub) > 1 and len(blocks) < (text.limit or 0):
            name, done = text.tokenisation.source.name, f"{len(blocks):,} of its {text.limit:,} blocks"
            warnings.warn(f"{name} ends after {done}: its share of the text is smaller than asked for", stacklevel=1)
        subsets = hold_out(blocks, text.heldout_share, config.shuffle_seed)
        train.append(subsets[0])
        heldout.append(subsets[1])
        sources.append(_describe(file, *subsets))
    counts = {"train": sum(map(len, train)), "heldout": sum(map(len, heldout))}
    if not all(counts.values()):
        names = ", ".join(source["name"] for source in sources)
        raise InputError(
            f"{names} has {sum(counts.values())} blocks of {config.context} tokens: too few to hold out "
            f"{config.heldout_share}; give more text"
        )
    write_mixed(draft / "train.npy", train)
    write_mixed(draft / "heldout.npy", heldout)
    made = {"context": config.context, "bos": positions.bos, "blocks": counts, "sources": sources}
    (draft / "tokens.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_texts(config: TextConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, positions: Positions) -> None:
    """Find mistakes without reading more than the first record of a dataset, and write nothing.

    Raises:
        InputError: A dataset, or its configuration, split or column, doesn't exist; or no document could fill a block.
    """
    _check(list(_texts(config, folder, _commits(config, folder), tokenizer, positions)))


def file_hashes(config: TextConfig, folder: Path) -> dict[str, list[str]]:
    """Return what the tokens depend on besides settings: hashes of the files. (Datasets are fixed by their commit.)"""
    files = {"text.train": config.train_files(folder), "text.heldout": config.heldout_files(folder)}
    return {name: Files(paths).identity()["files"] if paths else [] for name, paths in files.items()}


def discard_state(folder: Path) -> None:
    """Delete the state of finished work from a run folder."""
    artifact.discard(folder / STATE, folder)


def unfinished_seconds(folder: Path) -> float:
    """Return how long the unfinished work in a run folder has taken."""
    saved = [read_progress(path) for path in (folder / STATE).glob("text-*")]
    return sum((progress["seconds"] for progress in saved if progress), 0.0)


class _Text(NamedTuple):
    """One text of a run, and what becomes of it."""

    tokenisation: Tokenisation
    limit: int | None
    """Largest number of blocks."""
    heldout_share: float
    """Share of its blocks to hold out: none (0), all (1), or the last part."""


def _texts(
    config: TextConfig,
    folder: Path,
    commits: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    positions: Positions,
) -> Iterator[_Text]:
    """The texts of a run, in an order that never changes."""
    packing = _PACKINGS[config.packing](min_tokens=config.min_tokens, min_characters=config.min_characters)
    train_files, heldout_files = config.train_files(folder), config.heldout_files(folder)
    heldout_share = 0.0 if heldout_files else config.heldout_share

    def text(source: Source, limit_tokens: int | None, heldout_share: float) -> _Text:
        tokenisation = Tokenisation(source, tokenizer, config.context, positions, packing)
        return _Text(tokenisation, blocks_within(limit_tokens, config.context), heldout_share)

    if train_files:
        yield text(Files(train_files, config.column), config.limit_tokens, heldout_share)
    for hub in config.hub:
        limit = round((config.limit_tokens or 0) * (hub.share or 1 / len(config.hub)))
        commit = commits[_key(hub)]
        source = HubText(hub.repo, commit, hub.config, hub.split, hub.column)
        yield text(source, limit, 0.0 if hub.heldout_split else heldout_share)
        if hub.heldout_split:
            yield text(replace(source, split=hub.heldout_split), round(limit * config.heldout_share), 1.0)
    if heldout_files:
        yield text(Files(heldout_files, config.column), None, 1.0)


def _commits(config: TextConfig, folder: Path) -> dict[str, str]:
    """The commit of each dataset; what a branch points to when it's first looked up holds for the whole run."""
    path = folder / STATE / COMMITS
    known = json.loads(path.read_bytes()) if path.exists() else {}
    for hub in config.hub:
        if _key(hub) not in known:
            known[_key(hub)] = dataset_commit(hub.repo, hub.revision)
    return known


def _key(hub: HubTextConfig) -> str:
    return f"{hub.repo}@{hub.revision}"


def _check(texts: Sequence[_Text]) -> None:
    for text in texts:
        text.tokenisation.packing.min_document(text.tokenisation.layout)
    sources = [text.tokenisation.source for text in texts]
    with ThreadPoolExecutor() as pool:  # the hub takes seconds to answer for each
        list(pool.map(HubText.check, [source for source in sources if isinstance(source, HubText)]))


def _describe(file: TokenFile, train: BlockSubset, heldout: BlockSubset) -> dict[str, Any]:
    """What tokens.json holds about a text."""
    saved = read_progress(file.folder)
    assert saved is not None
    read = {key: saved["progress"][key] for key in ("documents", "kept", "ended")}
    source = file.tokenisation.source
    counts = {"blocks": len(train), "heldout_blocks": len(heldout)}
    return {"name": source.name, **source.identity(), **read, **counts}
