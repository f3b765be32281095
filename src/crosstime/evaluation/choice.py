"""The rules by which a survey flags checkpoints that look broken and proposes those worth comparing.

The paper chose its checkpoints by eye, from curves of accuracy and a map of similarity (arXiv 2509.05291, section 3).
The rule here puts both on one scale: the *shift* between two checkpoints is the mean over tasks of the change in
accuracy, in parts of the largest such change, plus the distance of their representations (1 - cosine), in parts of the
largest such distance. Of all ways to choose k checkpoints it takes the one whose smallest shift between neighbours is
largest: no two of them are nearly the same model, and what happens in training is shared out among the steps between
them. Among equals, the one with the largest sum of shifts.

Left out are checkpoints that look broken, and those that are at chance on every task: a model that has learnt nothing
differs most from all the others and explains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

PERPLEXITY_FACTOR = 2.0
"""How far a perplexity must lie above earlier and later ones for a checkpoint to look broken."""
COSINE_MARGIN = 0.25
"""How much more alike its neighbours must be to each other than to a checkpoint for it to look broken."""
CHANCE_LEVEL = 0.01
"""How often a model that guesses is taken for one that has learnt something, over all tasks."""


def find_broken(
    checkpoints: Sequence[str], perplexity: Float[np.ndarray, " C"], cosine: Float[np.ndarray, "C C"]
) -> dict[str, str]:
    """Checkpoints that do not fit between their neighbours in training, and why.

    Perplexity falls in training: one that is not finite, or twice as high as both the best before and the best after
    it, is not a stage of learning. (The last checkpoint has only what stands before it.) Nor is an activation space
    unlike both neighbours', where these are like each other.

    Args:
        checkpoints: names, in order of training.
        perplexity: on held-out text; infinite where it is no number.
        cosine: mean similarity of activations.
    """
    broken = {}
    for i, name in enumerate(checkpoints):
        reason = _perplexity_reason(i, perplexity) or _similarity_reason(i, checkpoints, cosine)
        if reason:
            broken[name] = reason
    return broken


def _perplexity_reason(i: int, perplexity: Float[np.ndarray, " C"]) -> str | None:
    here = perplexity[i]
    if not np.isfinite(here):
        return "its perplexity on held-out text is not finite"
    if i == 0:
        return None
    before = perplexity[:i].min()
    after = perplexity[i + 1 :].min() if i + 1 < len(perplexity) else perplexity[i - 1]
    if here <= PERPLEXITY_FACTOR * max(before, after):
        return None
    compared = f"{before:.4g} before" + (f" and {after:.4g} after" if i + 1 < len(perplexity) else "")
    return f"its perplexity on held-out text is {here:.6g}, against {compared}"


def _similarity_reason(i: int, checkpoints: Sequence[str], cosine: Float[np.ndarray, "C C"]) -> str | None:
    if not 0 < i < len(checkpoints) - 1:
        return None
    before, after, across = cosine[i - 1, i], cosine[i, i + 1], cosine[i - 1, i + 1]
    if across - max(before, after) <= COSINE_MARGIN:
        return None
    return (
        f"its activations are unlike those of {checkpoints[i - 1]} (cosine {before:.2f}) and {checkpoints[i + 1]} "
        f"({after:.2f}), which are like each other ({across:.2f})"
    )


def beats_chance(accuracy: Float[np.ndarray, "C T"], n: Int[np.ndarray, " T"]) -> Bool[np.ndarray, "C T"]:
    """Whether an accuracy over `n` pairs differs from one half, to either side, by more than guessing explains.

    A two-sided test at `CHANCE_LEVEL` over all tasks of a checkpoint (Bonferroni), by the normal approximation.
    """
    z = np.abs(accuracy - 0.5) * 2 * np.sqrt(n)
    return z > norm.isf(CHANCE_LEVEL / 2 / len(n))


def shifts(accuracy: Float[np.ndarray, "C T"], cosine: Float[np.ndarray, "C C"]) -> Float[np.ndarray, "C C"]:
    """The shift between every two checkpoints in performance and representation, each between 0 and 1; from 0 to 2."""
    performance = np.abs(accuracy[:, None] - accuracy[None]).mean(-1)
    return sum((part / (part.max() or 1) for part in (performance, 1 - cosine)), np.zeros_like(cosine))


def spread(shift: Float[np.ndarray, "C C"], k: int) -> list[int]:
    """The `k` indices, ascending, whose smallest shift between neighbours is largest, then whose sum is largest.

    Of choices equal in both, the earliest. 2 <= k <= C.
    """
    widest, _ = _best_path(shift, k, np.minimum, np.inf)
    allowed = np.where(shift >= widest, shift, -np.inf)
    return _best_path(allowed, k, np.add, 0.0)[1]


def _best_path(shift: Float[np.ndarray, "C C"], k: int, joined: np.ufunc, empty: float) -> tuple[float, list[int]]:
    """The ascending path through `k` indices whose steps, joined, come to most: its value, and the path."""
    n = len(shift)
    ascending = np.where(np.triu(np.ones((n, n), dtype=bool), 1), shift, -np.inf)
    value = np.full(n, empty)
    came_from = []
    for _ in range(k - 1):
        reached = joined(value[:, None], ascending)
        came_from.append(reached.argmax(0))
        value = reached.max(0)
    path = [int(value.argmax())]
    for source in reversed(came_from):
        path.append(int(source[path[-1]]))
    return float(value.max()), path[::-1]
