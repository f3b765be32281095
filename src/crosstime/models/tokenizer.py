"""Tokenizers of checkpoints: load one, tokenise many texts, and find out whether two always give the same ids."""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from crosstime.base.errors import InputError, first_line

_PROBE = "The keys to the cabinet were  not\there, 1,234 of them; Émile's 東京 🦜\nvoilà!"
"""Words, doubled spaces, digits, accents, other scripts: what normalisers and pre-tokenizers treat differently."""

_ID_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""Parts of a fast tokenizer's definition that determine its ids. (Its decoder, padding and truncation don't; the ids of
the probe show what its post-processor adds.)"""

_SETTINGS_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        InputError: There is none, or transformers doesn't understand it.
    """
    advice = "every checkpoint needs its own; if the run stored it once, copy it into each folder"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(f"{folder} has no usable tokenizer ({first_line(error)}): {advice}") from None
    # Without any of its files transformers makes an empty tokenizer.
    if not any((folder / name).is_file() for name in {"tokenizer.json", *tokenizer.vocab_files_names.values()}):
        raise InputError(f"{folder} has no tokenizer: {advice}")
    return tokenizer


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text; no special tokens are added, and nothing is truncated or padded."""
    if not texts:
        return []
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    # The tokenizer's own call also builds offsets and masks, which costs as much as the tokens. It sets truncation and
    # padding anew each time, so switching them off here changes nothing for others.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def tokenizer_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> set[str]:
    """Return the names of the files in a checkpoint's folder from which such a tokenizer is read."""
    names = [*_SETTINGS_FILES, *tokenizer.vocab_files_names.values()]
    return {name for name in names if (folder / name).is_file()}


def have_same_files(tokenizer: PreTrainedTokenizerBase, a: Path, b: Path) -> bool:
    """Return whether two folders hold the same files of such a tokenizer, byte by byte.

    Public suites repeat them in every revision, and loading and comparing a large vocabulary takes seconds.
    """
    names, others = (tokenizer_files(tokenizer, folder) for folder in (a, b))
    return names == others and all(filecmp.cmp(a / name, b / name, shallow=False) for name in names)


def find_difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    """Describe the first difference between two tokenizers; None if they agree.

    Compares the vocabulary, the special tokens, the merges, the rest of the definition, and the ids of a short text.
    """
    if difference := _vocabulary_difference(a.get_vocab(), b.get_vocab()):
        return difference
    for name in sorted({*a.special_tokens_map, *b.special_tokens_map}):
        ours, theirs = (str(t.special_tokens_map.get(name)) for t in (a, b))
        if ours != theirs:
            return f"{name} is {ours!r} and {theirs!r}"
    if difference := _definition_difference(_definition(a), _definition(b)):
        return difference
    return None if a.encode(_PROBE) == b.encode(_PROBE) else "they turn the same text into different ids"


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash that is equal for two tokenizers if and only if `find_difference` finds none."""
    definition = _definition(tokenizer)
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "definition": {part: definition.get(part) for part in _ID_PARTS},
        "probe": tokenizer.encode(_PROBE),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _vocabulary_difference(a: dict[str, int], b: dict[str, int]) -> str | None:
    if len(a) != len(b):
        return f"the vocabularies have {len(a)} and {len(b)} entries"
    if a == b:
        return None
    differing = (token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
    token = min(differing, key=lambda token: a.get(token, len(a)))
    return f"token {token!r} has id {a.get(token, 'none')} and {b.get(token, 'none')}"


def _definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a fast tokenizer's definition in the form of `tokenizer.json`; an empty one for a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str()) if backend is not None else {}


def _definition_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    ours, theirs = (definition.get("model", {}).get("merges", []) for definition in (a, b))
    for i, (x, y) in enumerate(zip(ours, theirs, strict=False)):
        if x != y:
            return f"merge {i} is {_merge(x)} and {_merge(y)}"
    if len(ours) != len(theirs):
        return f"they have {len(ours)} and {len(theirs)} merges"
    differing = [part for part in _ID_PARTS if a.get(part) != b.get(part)]
    return f"their definitions differ in {', '.join(differing)}" if differing else None


def _merge(pair: list[str] | str) -> str:
    return repr(pair if isinstance(pair, str) else " ".join(pair))
