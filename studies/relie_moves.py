"""How RelIE moves between attributions: the released code, the paper's text, our default, and exact ablation.

Draws docs/relie-methods.svg: RelIE of two checkpoints by each method over exact RelIE, a point a feature and task; the
features are those of largest exact effect. Prints the numbers that stand below the panels.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

import bundled
import crosstime as ct
from crosstime.attribution.ablation import strongest
from crosstime.attribution.effects import CompletenessWarning

CHECKPOINTS = ["step1000", "step3786"]
METHODS = {
    "released": "released code",
    "paper": "paper's text",
    "integrated": "integral, 16 points",
    "gradient": "gradient, the default",
}
TOP = 100
SIDE, LEFT, TOP_EDGE, GAP = 220, 58, 46, 34
"""Pixels: a panel, and what stands around it."""


def shares(
    crosscoder: ct.Crosscoder, models: Sequence[ct.SplitLM], prompts: ct.Prompts
) -> Float[np.ndarray, "n columns"]:
    """RelIE at the second checkpoint of the strongest features: exact, then by each method; NaN where undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompletenessWarning)  # two of the methods complete nothing
        found = [
            ct.attribute(crosscoder, models, prompts, ct.AttributionConfig(method=method, bootstrap=0))
            for method in METHODS
        ]
    exact = ct.exact_effects(
        crosscoder, models, prompts, found[-1], ct.AblationConfig(exact=crosscoder.config.features, bootstrap=0)
    )
    features, ablated = exact.features(prompts.task), exact.array(prompts.task, "exact")
    strong = sorted(set().union(*(strongest(row, TOP) for row in ablated)))
    rel_ie = [ct.relative(ablated), *(one.rel_ie[:, features] for one in found)]
    return np.stack([of_method[1, strong] for of_method in rel_ie], axis=1)


def drawing(values: Float[np.ndarray, "n columns"]) -> str:
    """The figure as SVG."""
    width, height = LEFT + len(METHODS) * (SIDE + GAP), TOP_EDGE + SIDE + 74
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="16" y="{TOP_EDGE + SIDE / 2}" text-anchor="middle" transform="rotate(-90 16 {TOP_EDGE + SIDE / 2})">'
        f"RelIE at {CHECKPOINTS[1]}, estimated</text>",
    ]
    for column, title in enumerate(METHODS.values(), 1):
        parts += panel(LEFT + (column - 1) * (SIDE + GAP), title, values[:, 0], values[:, column], first=column == 1)
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(x0: float, title: str, exact: np.ndarray, estimate: np.ndarray, *, first: bool) -> list[str]:
    """One method over the exact values, with the diagonal."""
    bottom, middle = TOP_EDGE + SIDE, x0 + SIDE / 2
    parts = [
        f'<text x="{middle}" y="{TOP_EDGE - 14}" text-anchor="middle" font-weight="bold">{title}</text>',
        f'<rect x="{x0}" y="{TOP_EDGE}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>',
        f'<line x1="{x0}" y1="{bottom}" x2="{x0 + SIDE}" y2="{TOP_EDGE}" stroke="#999" stroke-dasharray="3 3"/>',
        f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">exact RelIE</text>',
        f'<text x="{middle}" y="{bottom + 56}" text-anchor="middle" font-size="11" fill="#555">'
        f"{numbers(exact, estimate)}</text>",
    ]
    for tick in (0, 0.5, 1):
        parts.append(f'<text x="{x0 + tick * SIDE}" y="{bottom + 16}" text-anchor="middle" fill="#555">{tick}</text>')
        if first:
            y = bottom - tick * SIDE + 4
            parts.append(f'<text x="{x0 - 8}" y="{y}" text-anchor="end" fill="#555">{tick}</text>')
    known = ~np.isnan(exact + estimate)
    for x, y in zip(exact[known], estimate[known], strict=True):
        at = f'cx="{x0 + x * SIDE:.1f}" cy="{bottom - y * SIDE:.1f}"'
        parts.append(f'<circle {at} r="2" fill="#1f5fa8" fill-opacity="0.35"/>')
    return parts


def numbers(exact: np.ndarray, estimate: np.ndarray) -> str:
    """Rank correlation, mean move, and for how many features the method has a RelIE at all."""
    known = ~np.isnan(exact + estimate)
    rho = stats.spearmanr(exact[known], estimate[known]).statistic if known.sum() > 1 else np.nan
    move = np.abs(exact - estimate)[known].mean() if known.any() else np.nan
    return f"Spearman {rho:.2f}, mean move {move:.2f}, {known.sum()} of {len(known)}"


def main() -> None:
    """Measure on all subject-verb sets, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where crosscoders lie")
    parser.add_argument("--figure", type=Path, default=Path("docs/relie-methods.svg"))
    parser.add_argument("--most", type=int, help="take the first so many pairs of each set")
    arguments = parser.parse_args()
    crosscoder = bundled.crosscoder(CHECKPOINTS, arguments.out)
    models = bundled.models(crosscoder)
    tasks = bundled.prompts("subject-verb", arguments.most)
    values = np.concatenate([shares(crosscoder, models, prompts) for prompts in tasks])
    arguments.figure.write_text(drawing(values), encoding="utf-8")
    for column, method in enumerate(METHODS, 1):
        print(f"{method}: {numbers(values[:, 0], values[:, column])}")


if __name__ == "__main__":
    main()
