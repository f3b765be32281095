"""The data of the feature table and of the cards, in files small enough for a browser to load one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from crosstime.attribution.exact import Exact
from crosstime.evaluation.contexts import FeatureContexts
from crosstime.evaluation.diagnostics import Diagnostics
from crosstime.report.annotation import Annotation
from crosstime.report.features import LIFECYCLE_WORDS, TaskFeatures, class_words
from crosstime.report.script import rounded, to_json
from crosstime.report.story import fires_on, promotes

ROWS = 2000
"""Features listed at most per task, those with the largest |IE|; features.parquet holds all of them."""
CELLS = 12_000
"""Features times checkpoints listed at most per task: with many checkpoints, fewer features."""
TILES = 12
"""Features drawn one by one over training."""
DECODED = 8
"""Checkpoints at which a card says what the decoder does to the next token; of more of them, so many evenly spread."""
CHUNK_BYTES = 200_000
TOKENS_IN_TABLE = 4


@dataclass(frozen=True)
class Extras:
    """What is known of features besides their effects; empty where a run has none of it."""

    contexts: Mapping[int, FeatureContexts] = field(default_factory=dict)
    diagnostics: Diagnostics | None = None
    exact: Exact | None = None
    remarks: Mapping[int, list[dict[str, Any]]] = field(default_factory=dict)
    """What people say of a feature, a remark an annotator."""


def row_limit(n_checkpoints: int) -> int:
    """Features listed at most per task."""
    return min(ROWS, CELLS // n_checkpoints)


def listed(features: TaskFeatures) -> Int[np.ndarray, " N"]:
    """Rows of the features that are listed for a task, the strongest first."""
    return features.strongest(row_limit(len(features.checkpoints)))


def table_rows(features: TaskFeatures, extras: Extras, labels: Sequence[str]) -> dict[str, Any]:
    """One task's rows of the table, column by column; the strongest feature first.

    Args:
        labels: all classes of the report; a row names its own by number.
    """
    rows = listed(features)
    ids = features.feature[rows].tolist()
    number = {label: i for i, label in enumerate(labels)}
    contexts = extras.contexts
    columns = {
        "id": ids,
        "ie": rounded(features.ie[:, rows]),
        "rel": rounded(features.rel_ie[:, rows], 3),
        "sign": rounded(features.sign_consistency[:, rows], 2),
        "class": [number[features.classes[row]] for row in rows],
        "lifecycle": [features.lifecycle[row] for row in rows],
        "frequency": rounded(features.frequency[rows], 3),
        "fires": [list(fires_on(contexts[i], TOKENS_IN_TABLE)) if i in contexts else [] for i in ids],
        "promotes": [
            [list(promotes(contexts[i], name, TOKENS_IN_TABLE)) for name in features.checkpoints]
            if i in contexts
            else []
            for i in ids
        ],
    }
    if extras.diagnostics is not None:
        columns["label"] = [extras.diagnostics.label[i] for i in ids]
    if extras.exact is not None:
        exact = _exact(extras.exact, features.task)
        columns["exact"] = [exact[i]["rel_exact"] if i in exact else None for i in ids]
    if extras.remarks:
        columns["remarks"] = [[_said(remark) for remark in extras.remarks.get(i, [])] for i in ids]
    return columns


def _said(remark: Mapping[str, Any]) -> str:
    """A remark in one line, as the table shows it."""
    return remark["description"] or remark["category"] or ", ".join(remark["languages"])


def tiles(features: TaskFeatures, extras: Extras) -> list[dict[str, Any]]:
    """The strongest features over training: effect with interval, decoder norm, and the tokens on which they fire."""
    rows = features.strongest(TILES)
    columns = (
        features.feature[rows].tolist(),
        rounded(features.ie[:, rows].T),
        rounded(features.ie_low[:, rows].T, 3),
        rounded(features.ie_high[:, rows].T, 3),
        rounded(features.decoder_norm[:, rows].T, 3),
    )
    return [
        {"id": feature, "ie": ie, "ie_low": low, "ie_high": high, "norm": norm}
        | {"fires": list(fires_on(extras.contexts[feature])) if feature in extras.contexts else []}
        for feature, ie, low, high, norm in zip(*columns, strict=True)
    ]


def decoded(checkpoints: Sequence[str]) -> list[int]:
    """The checkpoints at which cards say what the decoder does: the first, the last, and some between."""
    n = len(checkpoints)
    return list(range(n)) if n <= DECODED else np.linspace(0, n - 1, DECODED).round().astype(int).tolist()


def card_chunks(tasks: Sequence[TaskFeatures], extras: Extras) -> Iterator[tuple[int, str]]:
    """The cards of every listed feature and of every feature with contexts, in order of the features.

    Yields:
        (first feature, JSON of an object of cards by feature): each chunk about `CHUNK_BYTES` large.
    """
    strongest = [set(f.feature[listed(f)].tolist()) for f in tasks]
    ids = sorted(set(extras.contexts).union(*strongest))
    effects = [_effects(features, ids, extras.exact) for features in tasks]
    decoders = _decoders(tasks[0], ids) if tasks else {}
    first, cards, size = 0, [], 0
    for feature in ids:
        on_tasks = {i: of_task[feature] for i, of_task in enumerate(effects) if feature in of_task}
        card = {"id": feature, "tasks": on_tasks}
        card |= decoders.get(feature, {}) | _meaning(extras.contexts.get(feature), tasks) | _honesty(feature, extras)
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


def _effects(features: TaskFeatures, ids: Sequence[int], exact: Exact | None) -> dict[int, dict[str, Any]]:
    """What the cards say of one task: feature -> its effects, class and lifecycle."""
    rows = np.flatnonzero(np.isin(features.feature, ids))
    numbers = {
        "ie": rounded(features.ie[:, rows].T),
        "ie_low": rounded(features.ie_low[:, rows].T, 3),
        "ie_high": rounded(features.ie_high[:, rows].T, 3),
        "rel": rounded(features.rel_ie[:, rows].T, 3),
        "rel_low": rounded(features.rel_ie_low[:, rows].T, 3),
        "rel_high": rounded(features.rel_ie_high[:, rows].T, 3),
        "share": rounded(features.share[:, rows].T, 3),
        "sign": rounded(features.sign_consistency[:, rows].T, 2),
    }
    kinds = {label: class_words(label, features.checkpoints) for label in set(features.classes)}
    exacts = _exact(exact, features.task) if exact is not None else {}
    return {
        int(features.feature[row]): {name: column[i] for name, column in numbers.items()}
        | {"class": kinds[features.classes[row]]}
        | {"lifecycle": LIFECYCLE_WORDS.get(features.lifecycle[row], features.lifecycle[row])}
        | exacts.get(int(features.feature[row]), {})
        for i, row in enumerate(rows)
    }


def _exact(exact: Exact, task: str) -> dict[int, dict[str, list]]:
    """Feature -> its exact effects on a task, and their intervals."""
    names = [f"{name}{bound}" for name in ("exact", "rel_exact") for bound in ("", "_low", "_high")]
    columns = [rounded(exact.array(task, name).T, 3) for name in names]
    rows = zip(exact.features(task).tolist(), *columns, strict=True)
    return {feature: dict(zip(names, values, strict=True)) for feature, *values in rows}


def _honesty(feature: int, extras: Extras) -> dict[str, Any]:
    """What decoder and data say of a feature, how its direction turns, and what people say of it."""
    said: dict[str, Any] = {}
    found = extras.diagnostics
    if found is not None:
        complement = int(found.complement[feature])
        said |= {
            "label": found.label[feature],
            "reference": found.checkpoints[found.reference[feature]],
            "complement": complement if complement >= 0 else None,
            "nu_error": rounded(found.nu_error[:, feature], 3),
            "nu_reconstruction": rounded(found.nu_reconstruction[:, feature], 3),
        }
        hundredths = 100 * found.cosine[..., feature].astype(float)[np.tril_indices(len(found.checkpoints), -1)]
        # Row after row of the lower triangle.
        said["cosine"] = [round(value) if math.isfinite(value) else None for value in hundredths.tolist()]
    if feature in extras.remarks:
        said["remarks"] = extras.remarks[feature]
    return said


def remarks(annotations: Sequence[Annotation]) -> dict[int, list[dict[str, Any]]]:
    """Feature -> what people say of it."""
    found: dict[int, list[dict[str, Any]]] = {}
    for one in annotations:
        said = {"annotator": one.annotator, "description": one.description, "category": one.category}
        found.setdefault(one.feature, []).append(said | {"languages": list(one.languages)})
    return found


def _decoders(features: TaskFeatures, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the cards say of a feature whatever the task: how often it fires, and its decoder norms."""
    rows = np.flatnonzero(np.isin(features.feature, ids))
    columns = (
        features.feature[rows].tolist(),
        rounded(features.frequency[rows], 3),
        rounded(features.decoder_norm[:, rows].T),
        rounded(features.rel_dec[:, rows].T, 3),
    )
    return {
        feature: {"frequency": frequency, "norm": norm, "rel_dec": relative}
        for feature, frequency, norm, relative in zip(*columns, strict=True)
    }


def _meaning(contexts: FeatureContexts | None, tasks: Sequence[TaskFeatures]) -> dict[str, Any]:
    """Where a feature fires most and what it promotes; nothing where no contexts were collected."""
    if contexts is None:
        return {}
    names = tasks[0].checkpoints if tasks else list(contexts.promoted)
    names = [names[m] for m in decoded(names)]
    return {
        "contexts": [
            {"t": list(c.tokens), "a": rounded(np.asarray(c.activations, dtype=float), 3), "p": c.peak}
            for c in contexts.contexts
        ],
        "promoted": [_changes(contexts.promoted.get(name, [])) for name in names],
        "suppressed": [_changes(contexts.suppressed.get(name, [])) for name in names],
        "max": contexts.max_activation,
    }


def _changes(pairs: Sequence[tuple[str, float]]) -> list[list[Any]]:
    values = rounded(np.array([value for _, value in pairs], dtype=float), 3)
    return [[text, value] for (text, _), value in zip(pairs, values, strict=True)]
