"""How far two annotators agree on the categories of features: Cohen's kappa (Cohen 1960)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from crosstime.report.annotation import Annotation


@dataclass(frozen=True)
class Agreement:
    """Two annotators on the features that both gave a category."""

    annotators: tuple[str, str]
    features: int
    """How many features both gave a category."""
    same: float
    """Share of them with the same category."""
    kappa: float | None
    """Agreement beyond chance: 1 for full, 0 for none. None where both used one and the same category throughout."""


def agreements(annotations: Sequence[Annotation]) -> list[Agreement]:
    """The agreement of every two annotators that share features, on categories; their case does not matter."""
    by_annotator: dict[str, dict[int, str]] = {}
    for annotation in annotations:
        if annotation.category:
            by_annotator.setdefault(annotation.annotator, {})[annotation.feature] = annotation.category.casefold()
    found = []
    for a, b in combinations(sorted(by_annotator), 2):
        shared = sorted(by_annotator[a].keys() & by_annotator[b].keys())
        if shared:
            first, second = ([by_annotator[name][feature] for feature in shared] for name in (a, b))
            same = sum(x == y for x, y in zip(first, second, strict=True)) / len(shared)
            found.append(Agreement((a, b), len(shared), same, cohens_kappa(first, second)))
    return found


def cohens_kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    """(p - q) / (1 - q): p the share of equal categories, q the one expected if each drew from his own frequencies.

    None where q is 1, for then there was nothing to agree on; and of empty lists.
    """
    n, counts_a, counts_b = len(a), Counter(a), Counter(b)
    # In whole numbers, so that a q of 1 is found exactly.
    observed = n * sum(x == y for x, y in zip(a, b, strict=True))
    expected = sum(counts_a[category] * counts_b[category] for category in counts_a)
    return None if expected == n * n else (observed - expected) / (n * n - expected)
