"""The stage that turns text into blocks of tokens, once for all stages that read them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosstime.base import artifact
from crosstime.base.errors import InputError
from crosstime.models.hub import dataset_commit
from crosstime.pipeline.config import HubTextConfig, TextConfig
from crosstime.pipeline.run import Run
from crosstime.text.blocks import Tokenisation, blocks_of
from crosstime.text.files import Files
from crosstime.text.hub_text import HubText
from crosstime.text.mixture import Part, part, write_mixed
from crosstime.text.packing import Blocks, DocumentStart, Packed, Packing
from crosstime.text.sources import Source
from crosstime.text.token_file import TokenFile, read_position

STATE = "tokenising"
"""Where the tokens of an unfinished text are kept, outside the artifact."""
COMMITS = "commits.json"


@dataclass(frozen=True)
class Text:
    """One text of [text], and what becomes of it."""

    source: Source
    limit_tokens: int | None
    heldout_share: float
    """How much of it is held out: none (0), all (1), or the last part of its blocks."""


def write_tokens(run: Run, draft: Path) -> None:
    """train.npy, heldout.npy: blocks of tokens. tokens.json: how they were made, and from what.

    An interrupted tokenising goes on from its state, which lies outside the artifact.
    """
    commits = _commits(run)
    (run.folder / STATE).mkdir(exist_ok=True)
    artifact.write_text(run.folder / STATE / COMMITS, json.dumps(commits, indent=1) + "\n")
    texts = list(_texts(run, commits))
    _check(run, texts)  # before hours are spent on the first
    train, heldout, sources = [], [], []
    for number, text in enumerate(texts, 1):
        folder = run.folder / STATE / f"text-{number}"
        blocks = _fill(run, text, folder)
        parts = part(blocks, text.heldout_share, run.config.text.shuffle_seed)
        train.append(parts[0])
        heldout.append(parts[1])
        sources.append(_source_facts(text.source, folder, *parts))
    _check_parts(run, texts, train, heldout)
    write_mixed(draft / "train.npy", train)
    write_mixed(draft / "heldout.npy", heldout)
    counts = {"train": _count(train), "heldout": _count(heldout)}
    made = {"context": run.config.text.context, "bos": run.config.positions.bos, "blocks": counts, "sources": sources}
    (draft / "tokens.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_texts(run: Run) -> None:
    """Finds what is wrong with [text] without reading more than the first record of a data set; writes nothing.

    Raises:
        InputError: a data set, or its configuration, split or column, is not there; or no document could fill a block.
    """
    _check(run, list(_texts(run, _commits(run))))


def text_facts(run: Run) -> dict[str, Any]:
    """What the tokens depend on besides settings: the content of the files. (Text on the hub is kept to its commit.)"""
    return {
        "text.train": Files(run.shared.train_files).identity()["files"] if run.shared.train_files else [],
        "text.heldout": Files(run.shared.heldout_files).identity()["files"] if run.shared.heldout_files else [],
    }


def drop_state(run: Run) -> None:
    """Finished tokens need no state to go on from."""
    artifact.discard(run.folder / STATE, run.folder)


def unfinished_seconds(run: Run) -> float:
    """How long the unfinished tokens that are to be gone on with took."""
    positions = [read_position(folder) for folder in (run.folder / STATE).glob("text-*")]
    return sum((position["seconds"] for position in positions if position), 0.0)


def _texts(run: Run, commits: dict[str, str]) -> Iterator[Text]:
    """The texts of [text], in an order that never changes."""
    config = run.config.text
    apart = 0.0 if run.shared.heldout_files else config.heldout_share
    if run.shared.train_files:
        yield Text(Files(run.shared.train_files, config.column), config.limit_tokens, apart)
    for text in config.hub:
        limit = round((config.limit_tokens or 0) * (text.share or 1 / len(config.hub)))
        commit = commits[_named(text)]
        train = HubText(text.repo, commit, text.config, text.split, text.column)
        yield Text(train, limit, 0.0 if text.heldout_split else apart)
        if text.heldout_split:
            heldout = HubText(text.repo, commit, text.config, text.heldout_split, text.column)
            yield Text(heldout, round(limit * config.heldout_share), 1.0)
    if run.shared.heldout_files:
        yield Text(Files(run.shared.heldout_files, config.column), None, 1.0)


def _packing(config: TextConfig) -> Packing:
    if config.packing == "document-start":
        return DocumentStart(min_tokens=config.min_tokens, min_characters=config.min_characters)
    return Packed(min_tokens=config.min_tokens or 0, min_characters=config.min_characters)


def _commits(run: Run) -> dict[str, str]:
    """The commit of each data set. What a branch stands for when it is first asked for holds for the whole run."""
    path = run.folder / STATE / COMMITS
    known = json.loads(path.read_bytes()) if path.exists() else {}
    for text in run.config.text.hub:
        if _named(text) not in known:
            known[_named(text)] = dataset_commit(text.repo, text.revision)
    return known


def _named(text: HubTextConfig) -> str:
    return f"{text.repo}@{text.revision}"


def _tokenisation(run: Run, source: Source) -> Tokenisation:
    text = run.config.text
    return Tokenisation(source, run.shared.tokenizer, text.context, run.config.positions, _packing(text))


def _check(run: Run, texts: Sequence[Text]) -> None:
    for text in texts:
        tokenisation = _tokenisation(run, text.source)
        tokenisation.packing.least(tokenisation.frame)
    with ThreadPoolExecutor() as pool:  # the hub takes seconds to answer for each
        list(pool.map(HubText.check, [text.source for text in texts if isinstance(text.source, HubText)]))


def _fill(run: Run, text: Text, folder: Path) -> Blocks:
    """All blocks of a text."""
    limit = None if text.limit_tokens is None else blocks_of(text.limit_tokens, run.config.text.context)
    blocks = TokenFile(folder, _tokenisation(run, text.source)).fill(limit)
    if limit is not None and len(blocks) < limit and len(run.config.text.hub) > 1:
        warnings.warn(
            f"{text.source.name} ends after {blocks.size:,} of its {text.limit_tokens:,} tokens: its share of the text "
            "is smaller than asked for",
            stacklevel=1,
        )
    return blocks


def _check_parts(run: Run, texts: Sequence[Text], train: Sequence[Part], heldout: Sequence[Part]) -> None:
    if not _count(train) or not _count(heldout):
        names = ", ".join(text.source.name for text in texts)
        raise InputError(
            f"{names} has {_count(train) + _count(heldout)} blocks of {run.config.text.context} tokens: too few to "
            f"hold out {run.config.text.heldout_share}; give more text"
        )


def _count(parts: Sequence[Part]) -> int:
    return sum(len(part.rows) for part in parts)


def _source_facts(source: Source, folder: Path, train: Part, heldout: Part) -> dict[str, Any]:
    position = read_position(folder)
    assert position is not None
    read = {key: position["progress"][key] for key in ("documents", "kept", "ended")}
    counts = {"blocks": len(train.rows), "heldout_blocks": len(heldout.rows)}
    return {"name": source.name, **source.identity(), **read, **counts}
