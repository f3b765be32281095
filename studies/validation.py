"""Does RelIE say at which of two checkpoints ablating a feature hurts more, and better than RelDec?

The paper's Table 7 on the bundled checkpoints: a crosscoder for each pair of neighbours, all subject-verb sets
whose pairs share a prefix. Prints a Markdown table, and writes every number to validation.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import bundled
import crosstime as ct
from crosstime.attribution.effects import CompletenessWarning

CHECKPOINTS = ["step256", "step1000", "step3786"]
METHODS = {
    "gradient x activation": {"method": "gradient"},
    "Gauss-Legendre, 16": {"method": "integrated", "rule": "gauss-legendre", "steps": 16},
}


def study(checkpoints: Sequence[str], tasks: Sequence[ct.Prompts], folder: Path) -> list[dict[str, object]]:
    """The correlations for a crosscoder over these checkpoints, with the RelIE of each method."""
    crosscoder = bundled.crosscoder(list(checkpoints), folder)
    models = bundled.models(crosscoder)
    rows = []
    for method, how in METHODS.items():
        exacts = []
        for prompts in tasks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CompletenessWarning)  # a single gradient completes nothing
                effects = ct.attribute(crosscoder, models, prompts, ct.AttributionConfig(bootstrap=0, **how))
            exacts.append(
                ct.exact_effects(crosscoder, models, prompts, effects, ct.AblationConfig(exact=100, bootstrap=0))
            )
        found = ct.validate(ct.Exact.join(exacts), crosscoder).to_pylist()
        rows += [{"crosscoder": "-".join(checkpoints), "method": method} | row for row in found]
    return rows


def cell(row: dict, name: str) -> str:
    """A correlation with its interval."""
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def main() -> None:
    """Study the pairs, then all checkpoints in one crosscoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where crosscoders and numbers lie")
    parser.add_argument("--most", type=int, help="take the first so many pairs of each set")
    arguments = parser.parse_args()
    tasks = bundled.prompts("subject-verb", arguments.most)
    rows = [row for names in (*pairwise(CHECKPOINTS), CHECKPOINTS) for row in study(names, tasks, arguments.out)]
    (arguments.out / "validation.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print("| crosscoder | RelIE by | pair | task | top | features | RelIE | RelDec | difference |\n|" + "---|" * 9)
    for row in rows:
        pair = f"{row['first']}-{row['second']}" if row["first"] else "**mean**"
        place = [row["crosscoder"], row["method"], pair, row["task"] or "**mean**", str(row["top_k"])]
        numbers = [str(row["n_features"]), *(cell(row, name) for name in ("rel_ie", "rel_dec", "difference"))]
        print(f"| {' | '.join([*place, *numbers])} |")


if __name__ == "__main__":
    main()
