"""What a feature means: the contexts in which it fires most, and the tokens that its decoder promotes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.attribution.activations import check_models, encode, in_batches, residuals
from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus

BLOCKS_AT_ONCE = 16
"""Blocks run through the models and encoded at a time, by default."""
PROMOTED = 10
"""Tokens listed per feature and checkpoint, at either end."""
LEAD = 4
"""Tokens decoded before a window, so that a character or a leading space cut by its edge comes out whole."""
BEFORE = 0.75
"""Share of a window that stands before its peak: what a causal model has read matters most."""
FEATURES_AT_ONCE = 64
"""Features whose logits over the whole vocabulary are held in memory at a time."""


@dataclass(frozen=True)
class Context:
    """A stretch of text in which a feature fires."""

    tokens: list[str]
    """Text of each token; joined, they read as the text. Of a character split over tokens the last one has it all."""
    activations: list[float]
    """The feature at each token."""
    peak: int
    """Index of the token at which it fires most."""


@dataclass(frozen=True)
class FeatureContexts:
    """What one feature fires on, and what it promotes."""

    feature: int
    contexts: list[Context]
    """The strongest first; no two of the same text."""
    promoted: dict[str, list[tuple[str, float]]]
    """For each checkpoint, the tokens whose logits grow most, with the growth, by the logit lens: final norm and
    unembedding of the checkpoint's bias plus the feature at its mean activation, less those of the bias alone. Empty
    where the feature never fires in the corpus, or where the checkpoint does not write it at that activation."""
    suppressed: dict[str, list[tuple[str, float]]]
    """The same for the tokens whose logits fall most."""
    max_activation: float
    """Largest activation in the corpus, BOS apart; 0 where it never fires."""


def contexts(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[int],
    *,
    top: int = 12,
    window: int = 24,
    max_blocks: int = 1024,
    batch_blocks: int = BLOCKS_AT_ONCE,
) -> dict[int, FeatureContexts]:
    """Find the strongest contexts of some features in one pass over a text, at most one per block and feature.

    Args:
        crosscoder: the crosscoder.
        models: its checkpoints, in its order, with their upper parts.
        corpus: the text to look through.
        tokenizer: of the models.
        features: indices of the features.
        top: contexts per feature.
        window: tokens in a context; fewer where blocks are shorter.
        max_blocks: look at the first so many blocks at most.
        batch_blocks: blocks run through the models and encoded at a time; what is found does not depend on it.

    Raises:
        InputError: the models are not the crosscoder's, there is no such feature, the text holds no block, or an
            activation is not finite.
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(corpus.bos, "the text")
    chosen = sorted(set(features))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < crosscoder.config.features:
        raise InputError(f"the crosscoder has features 0 to {crosscoder.config.features - 1}; got {chosen}")
    if min(top, window, max_blocks, batch_blocks, len(corpus)) < 1:
        raise InputError(
            "top, window, max_blocks, batch_blocks and the number of blocks must be at least 1; got "
            f"{top}, {window}, {max_blocks}, {batch_blocks} and {len(corpus)}"
        )
    first_shown = 1 if crosscoder.config.positions.bos else 0
    search = _Search(chosen, top, window, first_shown)
    blocks = torch.from_numpy(corpus.blocks[:max_blocks].astype(np.int64))

    @torch.inference_mode()
    def codes(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens, encode(crosscoder, residuals(crosscoder, models, tokens))[..., chosen].cpu()

    for tokens, f in in_batches("contexts", blocks, batch_blocks, codes):
        search.look(tokens.numpy(), f.numpy())
    promoted, suppressed = _promotions(crosscoder, models, tokenizer, chosen, search.mean_activation)
    return {
        feature: FeatureContexts(
            feature=feature,
            contexts=[_context(tokenizer, window) for window in search.windows[k]],
            promoted=promoted[k],
            suppressed=suppressed[k],
            max_activation=float(search.max_activation[k]),
        )
        for k, feature in enumerate(chosen)
    }


def save_contexts(path: Path, found: dict[int, FeatureContexts]) -> None:
    """Write contexts to a JSON file."""
    path.write_text(json.dumps([asdict(feature) for feature in found.values()], ensure_ascii=False), encoding="utf-8")


def load_contexts(path: Path) -> dict[int, FeatureContexts]:
    """Read what `save_contexts` wrote."""
    found = {}
    for fields in json.loads(path.read_text(encoding="utf-8")):
        fields["contexts"] = [Context(**context) for context in fields["contexts"]]
        for end in ("promoted", "suppressed"):
            fields[end] = {name: [(token, change) for token, change in row] for name, row in fields[end].items()}
        found[fields["feature"]] = FeatureContexts(**fields)
    return found


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it: joined, the pieces are the text up to its last whole character.

    A token that ends within a character adds nothing; the one that completes the character adds all of it. The rest of
    a character that began before the first token is left out.
    """
    pieces, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = _decode(tokenizer, ids[:end]).lstrip("\ufffd")
        whole = not text.endswith("\ufffd")
        pieces.append(text[len(shown) :] if whole else "")
        shown = text if whole else shown
    return pieces


@dataclass(frozen=True)
class _Window:
    """A candidate for a context, before its tokens are decoded."""

    ids: tuple[int, ...]
    lead: tuple[int, ...]
    """Ids just before it."""
    activations: list[float]
    peak: int


class _Search:
    """The strongest windows of K features so far, with their activation statistics."""

    def __init__(self, features: Sequence[int], top: int, window: int, first_shown: int) -> None:
        self.top, self.window, self.first_shown = top, window, first_shown
        self.windows: list[list[_Window]] = [[] for _ in features]
        self.max_activation = np.zeros(len(features))
        self._sum, self._count = np.zeros(len(features)), np.zeros(len(features), dtype=np.int64)

    @property
    def mean_activation(self) -> Float[np.ndarray, " K"]:
        """Mean over the tokens on which a feature fires; 0 where it never does."""
        return self._sum / np.maximum(self._count, 1)

    def look(self, tokens: Int[np.ndarray, "B S"], f: Float[np.ndarray, "B S K"]) -> None:
        """Take in a batch of blocks."""
        text = f[:, self.first_shown :]
        self._sum += text.sum(axis=(0, 1), dtype=np.float64)
        self._count += (text > 0).sum(axis=(0, 1))
        self.max_activation = np.maximum(self.max_activation, text.max(axis=(0, 1)))
        peaks = text.argmax(axis=1) + self.first_shown
        heights = np.take_along_axis(f, peaks[:, None], axis=1)[:, 0]
        for k, kept in enumerate(self.windows):
            least = _height(kept[-1]) if len(kept) == self.top else 0.0
            rows = np.flatnonzero(heights[:, k] > least)
            if len(rows):
                found = [self._cut(tokens[b], f[b, :, k], int(peaks[b, k])) for b in rows]
                self.windows[k] = self._best(kept + found)

    def _cut(self, ids: Int[np.ndarray, " S"], f: Float[np.ndarray, " S"], peak: int) -> _Window:
        """The window around a peak, within its block."""
        latest_start = max(len(ids) - self.window, self.first_shown)
        start = min(max(peak - int(self.window * BEFORE), self.first_shown), latest_start)
        end = start + self.window
        lead = ids[max(start - LEAD, self.first_shown) : start]
        return _Window(tuple(ids[start:end].tolist()), tuple(lead.tolist()), f[start:end].tolist(), peak - start)

    def _best(self, candidates: list[_Window]) -> list[_Window]:
        """The highest candidates with different texts; of equals the first found (the sort is stable)."""
        by_text: dict[tuple[int, ...], _Window] = {}
        for candidate in sorted(candidates, key=_height, reverse=True):
            by_text.setdefault(candidate.ids, candidate)
        return list(by_text.values())[: self.top]


def _height(window: _Window) -> float:
    return window.activations[window.peak]


def _context(tokenizer: PreTrainedTokenizerBase, window: _Window) -> Context:
    texts = token_texts(tokenizer, [*window.lead, *window.ids])[len(window.lead) :]
    return Context(texts, window.activations, window.peak)


Promotions = list[dict[str, list[tuple[str, float]]]]


@torch.inference_mode()
def _promotions(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[int],
    activation: Float[np.ndarray, " K"],
) -> tuple[Promotions, Promotions]:
    """For each feature and checkpoint, the tokens whose logits grow most and those whose logits fall most."""
    promoted: Promotions = [{} for _ in features]
    suppressed: Promotions = [{} for _ in features]
    mean = torch.zeros_like(crosscoder.b_enc)
    mean[features] = torch.tensor(activation).to(mean.dtype).to(mean.device)
    for m, (name, model) in enumerate(zip(crosscoder.config.checkpoints, models, strict=True)):
        bias = crosscoder.raw_bias()[m].to(model.device)
        sizes = crosscoder.at(mean, m)[features]
        moves = (sizes[:, None] * crosscoder.raw_decoder(m)[features]).to(model.device)
        written = (sizes > 0).tolist()
        for start in range(0, len(features), FEATURES_AT_ONCE):
            change = model.head(bias + moves[start : start + FEATURES_AT_ONCE]).float() - model.head(bias).float()
            change = change[:, : len(tokenizer)]  # embeddings may be padded beyond the vocabulary
            for end, sign in ((promoted, 1), (suppressed, -1)):
                values, ids = (sign * change).topk(min(PROMOTED, change.shape[1]))
                for k, row in enumerate(zip(ids.tolist(), (sign * values).tolist(), strict=True), start):
                    tokens = zip(*row, strict=True) if written[k] else ()
                    end[k][name] = [(token_text(tokenizer, token), value) for token, value in tokens]
    return promoted, suppressed


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token within a text: with its leading space, or its raw form where it is part of a character."""
    # Some tokenizers take the space off the first token of a text, so another one has to stand before it.
    before = tokenizer.encode(".", add_special_tokens=False)
    text = _decode(tokenizer, [*before, token])[len(_decode(tokenizer, before)) :]
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
