"""Which features to annotate, and what an annotator is shown of each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from crosstime.attribution.ablation import strongest
from crosstime.base.errors import InputError
from crosstime.evaluation.contexts import Context, FeatureContexts

CONTEXTS = 5
"""Contexts shown of each feature."""
PROMOTED = 8
"""Promoted tokens shown of each feature."""


def rows(
    features: pa.Table,
    contexts: Mapping[int, FeatureContexts],
    checkpoints: Sequence[str],
    *,
    top: int = 10,
    blind: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What annotators are shown: the union over tasks and checkpoints of the features with the largest |IE|.

    Args:
        features: the table of `feature_table`.
        contexts: where features fire; those of a feature that is not among them stay empty.
        checkpoints: names of the checkpoints, in order.
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
    effects = abs(_columns(features, "ie", checkpoints))
    chosen = _strongest(features, effects, top)
    shown = []
    for feature, row in chosen.items():
        norms = _columns(features.slice(row, 1), "decoder_norm", checkpoints)[0]
        shown.append(_shown(feature, contexts.get(feature), checkpoints[int(norms.argmax())]))
        if not blind:
            shown[-1] |= _measured(features, row, checkpoints)
    if blind:
        random.Random(seed).shuffle(shown)
    return shown


def _columns(features: pa.Table, name: str, checkpoints: Sequence[str]) -> Float[np.ndarray, "N M"]:
    return np.stack([features[f"{name}_{checkpoint}"].to_numpy() for checkpoint in checkpoints], axis=1)


def _strongest(features: pa.Table, effects: Float[np.ndarray, "N M"], top: int) -> dict[int, int]:
    """The chosen features by falling |IE|, each with the row of the table where that is largest."""
    tasks, ids = np.array(features["task"].to_pylist()), features["feature"].to_numpy()
    chosen: set[int] = set()
    for task in np.unique(tasks):
        own = np.flatnonzero(tasks == task)
        for column in effects[own].T:
            chosen.update(int(row) for row in own[strongest(column, top)])
    found: dict[int, int] = {}
    for row in sorted(chosen, key=lambda row: (-effects[row].max(), ids[row], row)):
        found.setdefault(int(ids[row]), row)
    return found


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


def _measured(features: pa.Table, row: int, checkpoints: Sequence[str]) -> dict[str, Any]:
    rel_ie = zip(checkpoints, _columns(features.slice(row, 1), "rel_ie", checkpoints)[0], strict=True)
    return {
        "task": features["task"][row].as_py(),
        "class": features["class"][row].as_py(),
        "rel_ie": ", ".join(f"{name} {value:.2f}" for name, value in rel_ie),
    }
