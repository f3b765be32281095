"""Which attribution predicts ablation best: of single features, and of sets of them?

Every feature that fires on a task is ablated, alone, at every checkpoint; then the strongest ones together. Prints
Markdown tables, and writes every number to attribution.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

import bundled
import crosstime as ct
from crosstime.attribution.ablation import intervene, strongest
from crosstime.attribution.effects import CompletenessWarning

CHECKPOINTS = ["step256", "step1000", "step3786"]
METHODS = {
    "gradient x activation": {"method": "integrated", "rule": "left", "steps": 1},
    "left, 10": {"method": "integrated", "rule": "left", "steps": 10},
    "Gauss-Legendre, 16": {"method": "integrated", "rule": "gauss-legendre", "steps": 16},
}
"""Each by one gradient for features and error alike, where "gradient" would take the error's from the integral."""
BEST_RULE = "Gauss-Legendre, 16"
"""Whose ends of the path, which all methods share, are read."""
TOP = 100
"""The strongest features: so many of each checkpoint, by exact effect."""
SIZES = (10, 30, 100, 300)


def study(crosscoder: ct.Crosscoder, models: Sequence[ct.SplitLM], prompts: ct.Prompts) -> dict[str, object]:
    """One task: agreement of each method with ablation at each checkpoint, and sums against joint ablations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompletenessWarning)  # the gaps are among the results
        found = {
            name: ct.attribute(crosscoder, models, prompts, ct.AttributionConfig(bootstrap=0, **how))
            for name, how in METHODS.items()
        }
    effects = found[BEST_RULE]
    every = ct.AblationConfig(exact=effects.ie.shape[1], bootstrap=0)
    exact = ct.exact_effects(crosscoder, models, prompts, effects, every)
    features, ablated = exact.features(prompts.task), exact.array(prompts.task, "exact")
    strong = sorted(set().union(*(strongest(row, TOP) for row in ablated)))
    single = []
    for name, one in found.items():
        ie = one.ie[:, features]
        shares, shares_exact = ct.relative(ie[:, strong]), ct.relative(ablated[:, strong])
        for m, checkpoint in enumerate(CHECKPOINTS):
            row = {"method": name, "checkpoint": checkpoint, "n_features": len(features), "n_strong": len(strong)}
            row |= agreement(ie[m], ablated[m])
            row |= {f"strong_{key}": value for key, value in agreement(ie[m, strong], ablated[m, strong]).items()}
            single.append(row | {"rel_ie": stats.spearmanr(shares[m], shares_exact[m], nan_policy="omit").statistic})
    return {
        "task": prompts.task,
        "n_prompts": len(prompts),
        "gap": {name: one.gap.tolist() for name, one in found.items()},
        "single": single,
        "sets": sets(crosscoder, models, prompts, features, ablated, found),
    }


def agreement(estimate: Float[np.ndarray, " n"], exact: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Correlations over features, and the slope of the exact effect on the estimate (1 where the scale is right)."""
    line = stats.linregress(estimate, exact)
    return {"pearson": line.rvalue, "spearman": stats.spearmanr(estimate, exact).statistic, "slope": line.slope}


def sets(
    crosscoder: ct.Crosscoder,
    models: Sequence[ct.SplitLM],
    prompts: ct.Prompts,
    features: np.ndarray,
    ablated: Float[np.ndarray, "M K"],
    found: dict[str, ct.Effects],
) -> list[dict[str, object]]:
    """Features of largest exact effect ablated together, all of them, and all with the error."""
    chosen = [[features[strongest(row, k)] for k in SIZES] + [features] for row in ablated]
    answers = intervene(crosscoder, models, prompts, (), chosen, batch_size=64)
    joint = (answers.clean[:, None] - answers.together).mean(-1).numpy()
    names = [f"top {k}" for k in SIZES] + ["all features"]
    rows = [
        {"set": name, "checkpoint": checkpoint, "exact": float(joint[m, g])}
        | {method: float(one.ie[m, chosen[m][g]].sum(dtype=np.float64)) for method, one in found.items()}
        for m, checkpoint in enumerate(CHECKPOINTS)
        for g, name in enumerate(names)
    ]
    for m, checkpoint in enumerate(CHECKPOINTS):
        row = {"set": "all features and the error", "checkpoint": checkpoint, "exact": float(found[BEST_RULE].total[m])}
        rows.append(row | {name: float(one.ie[m].sum(dtype=np.float64) + one.error[m]) for name, one in found.items()})
    return rows


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def single_table(title: str, tasks: Sequence[dict], columns: Sequence[str]) -> None:
    """Means over tasks, one row a checkpoint and one a mean over them."""

    def cell(name: str, checkpoints: Sequence[str]) -> str:
        found = [row for task in tasks for row in task["single"]]
        found = [row for row in found if row["method"] == name and row["checkpoint"] in checkpoints]
        return " / ".join(f"{np.mean([row[column] for row in found]):.3f}" for column in columns)

    rows = [[checkpoint, *(cell(name, [checkpoint]) for name in METHODS)] for checkpoint in CHECKPOINTS]
    table(title, ["checkpoint", *METHODS], [*rows, ["**mean**", *(cell(name, CHECKPOINTS) for name in METHODS)]])


def sets_table(title: str, tasks: Sequence[dict]) -> None:
    """How far the sum of the estimates is from the effect of the joint ablation, over tasks and checkpoints."""
    rows = []
    for name in dict.fromkeys(row["set"] for task in tasks for row in task["sets"]):
        found = [row for task in tasks for row in task["sets"] if row["set"] == name]
        exact = np.array([row["exact"] for row in found])
        cells = []
        for method in METHODS:
            estimate = np.array([row[method] for row in found])
            error = np.abs(estimate - exact).mean() / np.abs(exact).mean()
            cells.append(f"{error:.3f} / {stats.pearsonr(estimate, exact).statistic:.3f}")
        rows.append([name, f"{np.abs(exact).mean():.2f}", *cells])
    table(title, ["ablated together", "mean effect (logits)", *METHODS], rows)


def main() -> None:
    """Study every set of two groups of tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where crosscoders and numbers lie")
    parser.add_argument("--most", type=int, help="take the first so many pairs of each set")
    arguments = parser.parse_args()
    crosscoder = bundled.crosscoder(CHECKPOINTS, arguments.out)
    models = bundled.models(crosscoder)
    groups = {
        group: [study(crosscoder, models, prompts) for prompts in bundled.prompts(group, arguments.most)]
        for group in ("subject-verb", "determiner-noun")
    }
    (arguments.out / "attribution.json").write_text(json.dumps(groups, indent=1), encoding="utf-8")
    for group, tasks in groups.items():
        columns = ("pearson", "spearman", "slope")
        single_table(f"{group}, every firing feature: Pearson / Spearman / slope", tasks, columns)
        columns = (*(f"strong_{column}" for column in columns), "rel_ie")
        single_table(f"{group}, the strongest: Pearson / Spearman / slope / Spearman of RelIE", tasks, columns)
    every = [task for tasks in groups.values() for task in tasks]
    sets_table("sets: mean |sum of estimates - effect| over mean |effect| / Pearson, over tasks and checkpoints", every)


if __name__ == "__main__":
    main()
