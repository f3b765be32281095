"""The data of the feature table and of the cards, in files small enough for a browser to load one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from crosstime.report.classes import LIFECYCLE_WORDS, class_words
from crosstime.report.data import ReportData, TaskFeatures
from crosstime.report.format import rounded, to_json

ROWS = 2000
"""Features listed at most per task, those with the largest |IE|; features.parquet contains all of them."""
CELLS = 12_000
"""Features times checkpoints listed at most per task: with many checkpoints, fewer features."""
TILES = 12
"""Features drawn one by one over training."""
DECODED = 8
"""Checkpoints at which a card lists promoted tokens; of more, this number evenly spread."""
CHUNK_BYTES = 200_000
TOKENS_IN_TABLE = 4


def row_limit(n_checkpoints: int) -> int:
    """Return how many features are listed at most per task."""
    return min(ROWS, CELLS // n_checkpoints)


def listed(features: TaskFeatures) -> Int[np.ndarray, " N"]:
    """Return the rows of the features that are listed for a task, the strongest first."""
    return features.strongest(row_limit(len(features.data.checkpoints)))


def listed_classes(data: ReportData) -> list[str]:
    """Return the classes of the features that are listed for any task."""
    return sorted({features.classes[row] for features in data.tasks.values() for row in listed(features)})


def table_columns(features: TaskFeatures) -> dict[str, Any]:
    """Return one task's feature table, column by column; the strongest feature first."""
    data, rows = features.data, listed(features)
    ids = features.feature[rows].tolist()
    number = {label: i for i, label in enumerate(listed_classes(data))}

    def promoted(feature: int) -> list[list[str]]:
        return [data.promotes(feature, name, TOKENS_IN_TABLE) for name in data.checkpoints]

    columns = {
        "id": ids,
        "ie": rounded(features.ie[:, rows]),
        "rel": rounded(features.rel_ie[:, rows], 3),
        "sign": rounded(features.sign_consistency[:, rows], 2),
        "class": [number[features.classes[row]] for row in rows],
        "lifecycle": [features.lifecycle[row] for row in rows],
        "frequency": rounded(features.frequency[rows], 3),
        "fires": [data.fires_on(i, TOKENS_IN_TABLE) for i in ids],
        "promotes": [promoted(i) if i in data.contexts else [] for i in ids],
    }
    if data.diagnostics is not None:
        columns["label"] = [data.diagnostics.label[i] for i in ids]
    if data.exact is not None:
        exact = _exact(features)
        columns["exact"] = [exact[i]["rel_exact"] if i in exact else None for i in ids]
    if data.annotations:
        remarks = _remarks(data)
        columns["remarks"] = [
            [one["description"] or one["category"] or ", ".join(one["languages"]) for one in remarks.get(i, [])]
            for i in ids
        ]
    return columns


def tiles(features: TaskFeatures) -> list[dict[str, Any]]:
    """Return the strongest features over training: effect with interval, decoder norm, and the tokens they fire on."""
    rows = features.strongest(TILES)
    measures = {
        "id": features.feature[rows].tolist(),
        "ie": rounded(features.ie[:, rows].T),
        "ie_low": rounded(features.ie_low[:, rows].T, 3),
        "ie_high": rounded(features.ie_high[:, rows].T, 3),
        "norm": rounded(features.decoder_norm[:, rows].T, 3),
        "fires": [features.data.fires_on(i) for i in features.feature[rows].tolist()],
    }
    return _records(measures)


def decoded(n_checkpoints: int) -> list[int]:
    """Return the checkpoints at which cards list promoted tokens: the first, the last, and some between."""
    return np.linspace(0, n_checkpoints - 1, min(n_checkpoints, DECODED)).round().astype(int).tolist()


def card_chunks(data: ReportData) -> Iterator[tuple[int, str]]:
    """Make the cards of every listed feature and of every feature with contexts, in order of the features.

    Yields:
        (first feature, JSON of an object of cards by feature): each chunk about `CHUNK_BYTES` large.
    """
    tasks = list(data.tasks.values())
    if not tasks:
        return
    ids = sorted(set(data.contexts).union(*(features.feature[listed(features)].tolist() for features in tasks)))
    effects = [_effects(features, ids) for features in tasks]
    decoders, remarks = _decoders(tasks[0], ids), _remarks(data)
    first, cards, size = 0, [], 0
    for feature in ids:
        card: dict[str, Any] = {"id": feature}
        card["tasks"] = {i: of_task[feature] for i, of_task in enumerate(effects) if feature in of_task}
        card |= decoders.get(feature, {}) | _contexts(data, feature) | _diagnostics(data, feature)
        if feature in remarks:
            card["remarks"] = remarks[feature]
        text = f'"{feature}":{to_json(card)}'
        length = len(text.encode())
        if cards and size + length > CHUNK_BYTES:
            yield first, f"{{{','.join(cards)}}}"
            cards, size = [], 0
        if not cards:
            first = feature
        cards.append(text)
        size += length
    if cards:
        yield first, f"{{{','.join(cards)}}}"


def _records(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _effects(features: TaskFeatures, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return feature -> its effects on a task, its class and lifecycle."""
    rows = np.flatnonzero(np.isin(features.feature, ids))
    columns = {
        "ie": rounded(features.ie[:, rows].T),
        "ie_low": rounded(features.ie_low[:, rows].T, 3),
        "ie_high": rounded(features.ie_high[:, rows].T, 3),
        "rel": rounded(features.rel_ie[:, rows].T, 3),
        "rel_low": rounded(features.rel_ie_low[:, rows].T, 3),
        "rel_high": rounded(features.rel_ie_high[:, rows].T, 3),
        "share": rounded(features.share[:, rows].T, 3),
        "sign": rounded(features.sign_consistency[:, rows].T, 2),
        "class": [class_words(features.classes[row], features.data.checkpoints) for row in rows],
        "lifecycle": [LIFECYCLE_WORDS.get(features.lifecycle[row], features.lifecycle[row]) for row in rows],
    }
    exact = _exact(features)
    found = zip(features.feature[rows].tolist(), _records(columns), strict=True)
    return {feature: record | exact.get(feature, {}) for feature, record in found}


def _exact(features: TaskFeatures) -> dict[int, dict[str, Any]]:
    """Return feature -> its exact effects on a task, with intervals; empty if none were measured."""
    exact = features.data.exact
    if exact is None or features.task not in exact.tasks:
        return {}
    names = [f"{name}{bound}" for name in ("exact", "rel_exact") for bound in ("", "_low", "_high")]
    columns = {name: rounded(exact.array(features.task, name).T, 3) for name in names}
    return dict(zip(exact.features(features.task).tolist(), _records(columns), strict=True))


def _diagnostics(data: ReportData, feature: int) -> dict[str, Any]:
    """Return a feature's decoder label, latent scaling and cosines; empty without diagnostics."""
    found = data.diagnostics
    if found is None:
        return {}
    complement = int(found.complement[feature])
    # The lower triangle, row after row.
    hundredths = 100 * found.cosine[..., feature].astype(float)[np.tril_indices(len(found.checkpoints), -1)]
    return {
        "label": found.label[feature],
        "reference": found.checkpoints[found.reference[feature]],
        "complement": complement if complement >= 0 else None,
        "nu_error": rounded(found.nu_error[:, feature], 3),
        "nu_reconstruction": rounded(found.nu_reconstruction[:, feature], 3),
        "cosine": [round(value) if math.isfinite(value) else None for value in hundredths.tolist()],
    }


def _remarks(data: ReportData) -> dict[int, list[dict[str, Any]]]:
    """Return feature -> its annotations."""
    remarks: dict[int, list[dict[str, Any]]] = {}
    for one in data.annotations:
        remark = {"annotator": one.annotator, "description": one.description, "category": one.category}
        remarks.setdefault(one.feature, []).append(remark | {"languages": list(one.languages)})
    return remarks


def _decoders(features: TaskFeatures, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return feature -> its frequency and decoder norms, which are the same on all tasks."""
    rows = np.flatnonzero(np.isin(features.feature, ids))
    columns = {
        "frequency": rounded(features.frequency[rows], 3),
        "norm": rounded(features.decoder_norm[:, rows].T),
        "rel_dec": rounded(features.rel_dec[:, rows].T, 3),
    }
    return dict(zip(features.feature[rows].tolist(), _records(columns), strict=True))


def _contexts(data: ReportData, feature: int) -> dict[str, Any]:
    """Return where a feature fires most, and which tokens it promotes and suppresses; empty without contexts."""
    found = data.contexts.get(feature)
    if found is None:
        return {}
    names = [data.checkpoints[m] for m in decoded(len(data.checkpoints))]
    return {
        "contexts": [
            {"t": list(c.tokens), "a": rounded(np.asarray(c.activations, dtype=float), 3), "p": c.peak}
            for c in found.contexts
        ],
        "promoted": [_logits(found.promoted.get(name, [])) for name in names],
        "suppressed": [_logits(found.suppressed.get(name, [])) for name in names],
        "max": found.max_activation,
    }


def _logits(changes: Sequence[tuple[str, float]]) -> list[list[Any]]:
    values = rounded(np.array([value for _, value in changes], dtype=float), 3)
    return [[text, value] for (text, _), value in zip(changes, values, strict=True)]
