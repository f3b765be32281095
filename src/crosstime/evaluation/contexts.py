"""Evidence for what a feature represents: its strongest contexts, and the tokens that its decoder promotes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.attribution.activations import check_models, encode, in_batches, residuals
from crosstime.base.errors import InputError
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.text.corpus import Corpus

PROMOTED = 10
"""Tokens listed per feature and checkpoint, at either end."""
LEAD = 4
"""Tokens decoded before a window, so that a character or a leading space cut by its edge comes out whole."""
BEFORE_PEAK = 0.75
"""Share of a window that precedes its peak: what a causal model has read matters most."""
LENS_CHUNK = 64
"""Features whose logits over the whole vocabulary are held in memory at a time."""


@dataclass(frozen=True)
class ContextsConfig:
    """[contexts]: searching held-out text for the contexts in which features fire most."""

    top_k: int = 20
    """Features per checkpoint and task, by |IE|, that a run searches contexts for; each gets a card in the report."""
    per_feature: int = 12
    """Contexts per feature."""
    window: int = 24
    """Tokens per context; fewer if blocks are shorter."""
    blocks: int = 512
    """Held-out blocks to read, from the beginning of the text."""
    batch_blocks: int = field(default=16, metadata=ASIDE)
    """Blocks per forward pass."""

    def __post_init__(self) -> None:
        check_at_least(1, **{name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Context:
    """A window of text in which a feature fires."""

    tokens: list[str]
    """Text of each token; joined, they are the text. The last token of a split character has the whole character."""
    activations: list[float]
    """Activation of the feature at each token."""
    peak: int
    """Index of the token with the largest activation."""


@dataclass(frozen=True)
class FeatureContexts:
    """The strongest contexts of a feature, and the tokens that it promotes.

    Example:
        >>> context = Context(tokens=["The", " cats"], activations=[0.0, 2.5], peak=1)
        >>> found = FeatureContexts(3, [context], {"step64": [(" are", 0.8)]}, {"step64": [(" is", -0.7)]}, 2.5)
        >>> found.contexts[0].tokens[found.contexts[0].peak]
        ' cats'
    """

    feature: int
    contexts: list[Context]
    """Strongest first; no two with the same text."""
    promoted: dict[str, list[tuple[str, float]]]
    """By checkpoint, the tokens whose logits increase most, with the increase, by the logit lens: final norm and
    unembedding of the bias plus the feature at its mean activation, minus those of the bias alone. Empty if the feature
    never fires in the corpus, or if the checkpoint doesn't write it at that activation."""
    suppressed: dict[str, list[tuple[str, float]]]
    """The same for the tokens whose logits decrease most."""
    max_activation: float
    """Largest activation in the corpus, BOS excluded; 0 if it never fires."""


def contexts(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[int],
    config: ContextsConfig = ContextsConfig(),
) -> dict[int, FeatureContexts]:
    """Find the strongest contexts of some features in one pass over a text, at most one per block and feature.

    Args:
        crosscoder: The crosscoder.
        models: Its checkpoints, in its order, with their upper parts.
        corpus: The text to search.
        tokenizer: The models' tokenizer.
        features: Indices of the features.
        config: Settings; `top_k` isn't used here.

    Raises:
        InputError: The models aren't the crosscoder's, a feature doesn't exist, the text has no block, or an activation
            isn't finite.

    Example:
        >>> import crosstime as ct, torch
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> text = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=32, limit_tokens=500)
        >>> models = [suite.load(name, layer=1) for name in suite.names]
        >>> crosscoder = ct.Crosscoder(ct.CrosscoderConfig(tuple(suite.names), layer=1, width=suite.width, features=64))
        >>> _ = torch.nn.init.normal_(crosscoder.W_enc, generator=torch.Generator().manual_seed(0))
        >>> config = ct.ContextsConfig(per_feature=2, window=6)
        >>> found = ct.contexts(crosscoder, models, text, suite.tokenizer, [3], config)
        >>> len(found[3].contexts), len(found[3].contexts[0].tokens)
        (2, 6)
    """
    check_models(crosscoder, models)
    crosscoder.config.positions.check(corpus.bos, "the text")
    chosen = sorted(set(features))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < crosscoder.config.features:
        raise InputError(f"the crosscoder has features 0 to {crosscoder.config.features - 1}; got {chosen}")
    if len(corpus) == 0:
        raise InputError(f"the text {corpus.name!r} has no block to search for contexts: give more text")
    first_shown = 1 if crosscoder.config.positions.bos else 0
    search = _Search(chosen, config, first_shown)
    blocks = torch.from_numpy(corpus.blocks[: config.blocks].astype(np.int64))

    @torch.inference_mode()
    def activations(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens, encode(crosscoder, residuals(crosscoder, models, tokens))[..., chosen].cpu()

    for tokens, f in in_batches("contexts", blocks, config.batch_blocks, activations):
        search.add(tokens.numpy(), f.numpy())
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


def save_contexts(path: Path, by_feature: dict[int, FeatureContexts]) -> None:
    """Write contexts to a JSON file."""
    entries = [asdict(feature) for feature in by_feature.values()]
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def load_contexts(path: Path) -> dict[int, FeatureContexts]:
    """Read what `save_contexts` wrote."""
    by_feature = {}
    for fields in json.loads(path.read_text(encoding="utf-8")):
        fields["contexts"] = [Context(**context) for context in fields["contexts"]]
        for end in ("promoted", "suppressed"):
            fields[end] = {name: [(token, change) for token, change in row] for name, row in fields[end].items()}
        by_feature[fields["feature"]] = FeatureContexts(**fields)
    return by_feature


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined, they are the text up to its last complete character.

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
    """A candidate context, before its tokens are decoded."""

    ids: tuple[int, ...]
    lead: tuple[int, ...]
    """Token ids just before it."""
    activations: list[float]
    peak: int

    @property
    def height(self) -> float:
        return self.activations[self.peak]


class _Search:
    """The strongest windows of K features so far, with their activation statistics."""

    def __init__(self, features: Sequence[int], config: ContextsConfig, first_shown: int) -> None:
        self.config, self.first_shown = config, first_shown
        self.windows: list[list[_Window]] = [[] for _ in features]
        self.max_activation = np.zeros(len(features))
        self._sum, self._count = np.zeros(len(features)), np.zeros(len(features), dtype=np.int64)

    @property
    def mean_activation(self) -> Float[np.ndarray, " K"]:
        """Mean over the tokens on which a feature fires; 0 if it never does."""
        return self._sum / np.maximum(self._count, 1)

    def add(self, tokens: Int[np.ndarray, "B S"], f: Float[np.ndarray, "B S K"]) -> None:
        """Add a batch of blocks."""
        shown = f[:, self.first_shown :]
        self._sum += shown.sum(axis=(0, 1), dtype=np.float64)
        self._count += (shown > 0).sum(axis=(0, 1))
        self.max_activation = np.maximum(self.max_activation, shown.max(axis=(0, 1)))
        peaks = shown.argmax(axis=1) + self.first_shown
        heights = np.take_along_axis(f, peaks[:, None], axis=1)[:, 0]
        for k, kept in enumerate(self.windows):
            lowest = kept[-1].height if len(kept) == self.config.per_feature else 0.0
            rows = np.flatnonzero(heights[:, k] > lowest)
            if len(rows):
                candidates = [self._cut(tokens[b], f[b, :, k], int(peaks[b, k])) for b in rows]
                self.windows[k] = self._best(kept + candidates)

    def _cut(self, ids: Int[np.ndarray, " S"], f: Float[np.ndarray, " S"], peak: int) -> _Window:
        """Cut the window around a peak from its block."""
        latest_start = max(len(ids) - self.config.window, self.first_shown)
        start = min(max(peak - int(self.config.window * BEFORE_PEAK), self.first_shown), latest_start)
        end = start + self.config.window
        lead = ids[max(start - LEAD, self.first_shown) : start]
        return _Window(tuple(ids[start:end].tolist()), tuple(lead.tolist()), f[start:end].tolist(), peak - start)

    def _best(self, candidates: list[_Window]) -> list[_Window]:
        """The highest candidates with different texts; among equals the first found (the sort is stable)."""
        by_text: dict[tuple[int, ...], _Window] = {}
        for candidate in sorted(candidates, key=lambda window: window.height, reverse=True):
            by_text.setdefault(candidate.ids, candidate)
        return list(by_text.values())[: self.config.per_feature]


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
    """For each feature and checkpoint, the tokens whose logits increase most and those whose logits decrease most."""
    promoted: Promotions = [{} for _ in features]
    suppressed: Promotions = [{} for _ in features]
    mean = torch.zeros_like(crosscoder.b_enc)
    mean[features] = torch.tensor(activation).to(mean.dtype).to(mean.device)
    for m, (name, model) in enumerate(zip(crosscoder.config.checkpoints, models, strict=True)):
        bias = crosscoder.raw_bias()[m].to(model.device)
        sizes = crosscoder.gate(mean, m)[features]
        written = (sizes[:, None] * crosscoder.raw_decoder(m)[features]).to(model.device)
        is_written = (sizes > 0).tolist()
        for start in range(0, len(features), LENS_CHUNK):
            change = model.head(bias + written[start : start + LENS_CHUNK]).float() - model.head(bias).float()
            change = change[:, : len(tokenizer)]  # embeddings may be padded beyond the vocabulary
            for end, sign in ((promoted, 1), (suppressed, -1)):
                values, ids = (sign * change).topk(min(PROMOTED, change.shape[1]))
                for k, row in enumerate(zip(ids.tolist(), (sign * values).tolist(), strict=True), start):
                    tokens = zip(*row, strict=True) if is_written[k] else ()
                    end[k][name] = [(token_text(tokenizer, token), value) for token, value in tokens]
    return promoted, suppressed


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text within a text: with its leading space, or its raw form if it is part of a character."""
    # Some tokenizers strip the space from the first token of a text, so another token must precede it.
    before = tokenizer.encode(".", add_special_tokens=False)
    text = _decode(tokenizer, [*before, token])[len(_decode(tokenizer, before)) :]
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
