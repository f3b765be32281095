"""Which features to annotate, and what an annotator is shown of each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from crosstime.attribution.ablation import strongest
from crosstime.attribution.features import FeatureTable
from crosstime.base.errors import InputError
from crosstime.evaluation.contexts import Context, FeatureContexts

CONTEXTS = 5
"""Contexts shown of each feature."""
PROMOTED = 8
"""Promoted tokens shown of each feature."""


def rows(
    features: FeatureTable,
    contexts: Mapping[int, FeatureContexts],
    *,
    top: int = 10,
    blind: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What annotators are shown: the union over tasks and checkpoints of the features with the largest |IE|.

    Args:
        features: effects, classes and decoder norms.
        contexts: where features fire; those of a feature that is not among them stay empty.
        top: features of each task and checkpoint.
        blind: hide what tells when the feature lived (task, class, RelIE), and shuffle.
        seed: of the shuffling.

    Returns:
        A row a feature: feature_id; contexts, a line each, «» around the token on which it fires most; promoted, the
        tokens that it promotes at the checkpoint where its decoder is largest. Unless blind, also task, class and
        rel_ie, of the task on which its |IE| is largest; the rows then fall with that.

    Raises:
        InputError: `top` is below 1.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, not {top}")
    shown = []
    for feature, task in _strongest(features, top).items():
        row = int(np.searchsorted(features.features(task), feature))
        norms = features.array(task, "decoder_norm")[:, row]
        shown.append(_shown(feature, contexts.get(feature), features.checkpoints[int(norms.argmax())]))
        if not blind:
            shown[-1] |= _measured(features, task, row)
    if blind:
        random.Random(seed).shuffle(shown)
    return shown


def _strongest(features: FeatureTable, top: int) -> dict[int, str]:
    """Choose features; return them by falling |IE|, each with the task on which its |IE| is largest."""
    chosen: dict[int, tuple[float, str]] = {}
    for task in features.tasks:
        ie, ids = features.array(task, "ie"), features.features(task)
        for row in set().union(*(strongest(at_checkpoint, top) for at_checkpoint in ie)):
            feature, size = int(ids[row]), float(np.abs(ie[:, row]).max())
            if feature not in chosen or size > chosen[feature][0]:
                chosen[feature] = size, task
    order = sorted(chosen, key=lambda feature: (-chosen[feature][0], feature))
    return {feature: chosen[feature][1] for feature in order}


def _shown(feature: int, found: FeatureContexts | None, checkpoint: str) -> dict[str, Any]:
    contexts = found.contexts[:CONTEXTS] if found else []
    promoted = found.promoted.get(checkpoint, [])[:PROMOTED] if found else []
    return {
        "feature_id": feature,
        "contexts": "\n".join(map(_readable, contexts)),
        "promoted": ", ".join(f"“{_one_line(token)}”" for token, _ in promoted),
    }


def _readable(context: Context) -> str:
    """The text in one line, with «» around the token on which the feature fires most."""
    before, peak, after = (
        _one_line("".join(part))
        for part in (
            context.tokens[: context.peak],
            context.tokens[context.peak : context.peak + 1],
            context.tokens[context.peak + 1 :],
        )
    )
    space = " " * (len(peak) - len(peak.lstrip(" ")))
    return f"{before}{space}«{peak.lstrip(' ')}»{after}"


def _one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "↵")


def _measured(features: FeatureTable, task: str, row: int) -> dict[str, Any]:
    rel_ie = zip(features.checkpoints, features.array(task, "rel_ie")[:, row], strict=True)
    return {
        "task": task,
        "class": features.column(task, "class")[row],
        "rel_ie": ", ".join(f"{name} {value:.2f}" for name, value in rel_ie),
    }
