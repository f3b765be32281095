"""The data of the feature table and of the cards, in files small enough for a browser to load one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from crosstime.analysis.contexts import FeatureContexts
from crosstime.report.features import LIFECYCLES, TaskFeatures, class_words
from crosstime.report.script import rounded, to_json
from crosstime.report.story import fires_on, promotes

ROWS = 2000
"""Features listed at most per task, those with the largest |IE|; features.parquet holds all of them."""
CHUNK_BYTES = 200_000
TOKENS_IN_TABLE = 4


def table_rows(features: TaskFeatures, contexts: Mapping[int, FeatureContexts]) -> dict[str, Any]:
    """One task's rows of the table, column by column; the strongest feature first."""
    rows = features.strongest(ROWS)
    ids = features.feature[rows].tolist()
    return {
        "id": ids,
        "ie": [_numbers(features.ie[rows, m]) for m in range(len(features.checkpoints))],
        "share": [_numbers(features.share[rows, m], 3) for m in range(len(features.checkpoints))],
        "rel": [_numbers(features.rel_ie[rows, m], 3) for m in range(len(features.checkpoints))],
        "class": [features.classes[row] for row in rows],
        "lifecycle": [features.lifecycle[row] for row in rows],
        "frequency": _numbers(features.frequency[rows], 3),
        "fires": [list(fires_on(contexts[i], TOKENS_IN_TABLE)) if i in contexts else [] for i in ids],
        "promotes": [
            [list(promotes(contexts[i], name, TOKENS_IN_TABLE)) for name in features.checkpoints]
            if i in contexts
            else []
            for i in ids
        ],
        "total": len(features.feature),
    }


def card_chunks(tasks: Sequence[TaskFeatures], contexts: Mapping[int, FeatureContexts]) -> Iterator[tuple[int, str]]:
    """The cards of every listed feature and of every feature with contexts, in order of the features.

    Yields:
        (first feature, JSON of an object of cards by feature): each chunk about `CHUNK_BYTES` large.
    """
    rows = [{int(f.feature[row]): int(row) for row in f.strongest(ROWS)} for f in tasks]
    listed = sorted(set(contexts).union(*rows))
    first, cards, size = 0, [], 0
    for feature in listed:
        card = f'"{feature}":{to_json(_card(feature, tasks, rows, contexts.get(feature)))}'
        length = len(card.encode())
        if cards and size + length > CHUNK_BYTES:
            yield first, f"{{{','.join(cards)}}}"
            cards, size = [], 0
        if not cards:
            first = feature
        cards.append(card)
        size += length
    if cards:
        yield first, f"{{{','.join(cards)}}}"


def _card(
    feature: int, tasks: Sequence[TaskFeatures], rows: Sequence[Mapping[int, int]], contexts: FeatureContexts | None
) -> dict[str, Any]:
    card: dict[str, Any] = {"id": feature, "tasks": {}}
    for i, (features, of_task) in enumerate(zip(tasks, rows, strict=True)):
        row = of_task.get(feature, _row_of(features, feature))
        if row is None:
            continue
        card["frequency"] = rounded(features.frequency[row], 3)
        card["norm"] = _numbers(features.decoder_norm[row])
        card["rel_dec"] = _numbers(features.rel_dec[row], 3)
        card["tasks"][str(i)] = _effects(features, row)
    if contexts is not None:
        card["contexts"] = [
            {"t": list(c.tokens), "a": [rounded(value, 3) for value in c.activations], "p": c.peak}
            for c in contexts.contexts
        ]
        names = tasks[0].checkpoints if tasks else list(contexts.promoted)
        card["promoted"] = [_changes(contexts.promoted.get(name, [])) for name in names]
        card["suppressed"] = [_changes(contexts.suppressed.get(name, [])) for name in names]
        card["max"] = rounded(contexts.max_activation, 3)
    return card


def _row_of(features: TaskFeatures, feature: int) -> int | None:
    found = np.flatnonzero(features.feature == feature)
    return int(found[0]) if len(found) else None


def _effects(features: TaskFeatures, row: int) -> dict[str, Any]:
    return {
        "ie": _numbers(features.ie[row]),
        "ie_low": _numbers(features.ie_low[row]),
        "ie_high": _numbers(features.ie_high[row]),
        "rel": _numbers(features.rel_ie[row], 3),
        "rel_low": _numbers(features.rel_ie_low[row], 3),
        "rel_high": _numbers(features.rel_ie_high[row], 3),
        "share": _numbers(features.share[row], 3),
        "class": class_words(features.classes[row], features.checkpoints),
        "lifecycle": LIFECYCLES.get(features.lifecycle[row], features.lifecycle[row]),
    }


def _changes(pairs: Sequence[tuple[str, float]]) -> list[list[Any]]:
    return [[text, rounded(value, 3)] for text, value in pairs]


def _numbers(values: np.ndarray, digits: int = 4) -> list[float | None]:
    return [rounded(value, digits) for value in values]
