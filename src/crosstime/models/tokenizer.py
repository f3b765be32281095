"""Do two tokenizers turn every text into the same ids?"""

from __future__ import annotations

import filecmp
import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

PROBE = "The keys to the cabinet were  not\there, 1,234 of them; Émile's 東京 🦜\nvoilà!"
"""Words, doubled spaces, digits, accents, other scripts: what normalisers and pre-tokenizers treat differently."""

DECIDING_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""The parts of a fast tokenizer's definition that decide its ids. (Its decoder, padding and truncation do not; what
its post-processor adds shows in the ids of the probe.)"""

SETTINGS_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def deciding_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> set[str]:
    """The files in a checkpoint's folder from which such a tokenizer is read, by name."""
    names = [*SETTINGS_FILES, *tokenizer.vocab_files_names.values()]
    return {name for name in names if (folder / name).is_file()}


def same_files(tokenizer: PreTrainedTokenizerBase, a: Path, b: Path) -> bool:
    """Whether two folders hold the same files of such a tokenizer, byte by byte.

    Public suites repeat them in every revision, and to load and compare a large vocabulary takes seconds.
    """
    present = [deciding_files(tokenizer, folder) for folder in (a, b)]
    return present[0] == present[1] and all(filecmp.cmp(a / name, b / name, shallow=False) for name in present[0])


def difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    """What makes two tokenizers differ, in words, or None if they agree.

    Compared are the vocabulary, the special tokens, the merges, the rest of the definition, and the ids of a short
    text.
    """
    vocabulary = _vocabulary_difference(a.get_vocab(), b.get_vocab())
    if vocabulary:
        return vocabulary
    for name in sorted({*a.special_tokens_map, *b.special_tokens_map}):
        ours, theirs = (str(t.special_tokens_map.get(name)) for t in (a, b))
        if ours != theirs:
            return f"{name} is {ours!r} and {theirs!r}"
    return _definition_difference(_definition(a), _definition(b)) or _probe_difference(a, b)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that is equal where two tokenizers do not differ (see `difference`), and else is another."""
    definition = _definition(tokenizer)
    decides = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "definition": {part: definition.get(part) for part in DECIDING_PARTS},
        "probe": tokenizer.encode(PROBE),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _vocabulary_difference(a: dict[str, int], b: dict[str, int]) -> str | None:
    if len(a) != len(b):
        return f"the vocabularies have {len(a)} and {len(b)} entries"
    if a == b:
        return None
    token = min(
        (token for token in a.keys() | b.keys() if a.get(token) != b.get(token)), key=lambda t: a.get(t, len(a))
    )
    return f"token {token!r} has id {a.get(token, 'none')} and {b.get(token, 'none')}"


def _definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A fast tokenizer's definition in the form of `tokenizer.json`; empty for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str()) if backend is not None else {}


def _definition_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    ours, theirs = (definition.get("model", {}).get("merges", []) for definition in (a, b))
    for i, (x, y) in enumerate(zip(ours, theirs, strict=False)):
        if x != y:
            return f"merge {i} is {_merge(x)} and {_merge(y)}"
    if len(ours) != len(theirs):
        return f"they have {len(ours)} and {len(theirs)} merges"
    differing = [part for part in DECIDING_PARTS if a.get(part) != b.get(part)]
    return f"their definitions differ in {', '.join(differing)}" if differing else None


def _merge(pair: list[str] | str) -> str:
    return repr(pair if isinstance(pair, str) else " ".join(pair))


def _probe_difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    same = a.encode(PROBE) == b.encode(PROBE)
    return None if same else "they give other ids to the same text"
