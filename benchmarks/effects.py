"""Examples a second of indirect effects, against the paper's own code; and what a further dictionary costs.

Of our methods, "released" gives the numbers of that code, and "paper" those of its ten points, which it goes through
without taking notice of them (see paper_effects.py). Both are compared with its one speed, and with its numbers,
"paper" with those that it gives where the ten points count. "gradient" is our default, with intervals.

The prompts are as long as those of the paper's task of subject and verb, and so without BOS, and position 0 is encoded.
The speed of the paper's code does not depend on how many they are, since it takes them four by four; so it gets the
first of them only.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import report, seconds
from paper_effects import PaperEffects

import models
from crosstime.attribution.effects import (
    AttributionConfig,
    CompletenessWarning,
    Effects,
    attribute,
    attribute_several,
)
from crosstime.tasks.prompts import Prompts
from crosstime.text.positions import Positions

LENGTHS = (128, 1092, 308, 337, 461, 453, 320, 213, 60, 40, 30, 20, 7)
"""Of the paper's 3469 prompts (BLiMP, subject-verb agreement, NeoX tokenizer) those of 1, 2, ... tokens; the last five
numbers are a guess at how their sum is shared out."""
POSITIONS = Positions(bos=False, encode_first=True, train_first=False)
SAME = {"threshold": 0.0, "n_columns": 3, "bootstrap": 0}
"""What the paper's code is measured with: no threshold, and a table of three columns."""


def task(sizes: argparse.Namespace) -> Prompts:
    """Random tokens, in random order."""
    random = np.random.default_rng(0)
    lengths = random.choice(len(LENGTHS), size=sizes.prompts, p=np.array(LENGTHS) / sum(LENGTHS)) + 1
    tokens = [random.integers(1, sizes.vocabulary, size=length).tolist() for length in lengths]
    right, wrong = (torch.from_numpy(random.integers(1, sizes.vocabulary, size=len(tokens))) for _ in range(2))
    return Prompts("random", tokens, right, wrong, torch.arange(len(tokens)), bos=False)


def first(prompts: Prompts, n: int) -> Prompts:
    """The first n prompts."""
    return Prompts(
        prompts.task, prompts.tokens[:n], prompts.right[:n], prompts.wrong[:n], prompts.pair_index[:n], bos=prompts.bos
    )


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_flags(parser)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--active", type=int, default=64, help="features that fire on a token")
    parser.add_argument("--dictionaries", type=int, default=4)
    parser.add_argument("--reference", type=Path, help="checkout of the code of arXiv 2509.05291")
    parser.add_argument("--peer-prompts", type=int, default=8)
    parser.set_defaults(features=4096, repeats=3)
    sizes = parser.parse_args()
    warnings.simplefilter("ignore", CompletenessWarning)
    lms, prompts = models.checkpoints(sizes, torch.float32), task(sizes)
    config = dataclasses.replace(models.crosscoder_config(sizes), positions=POSITIONS)
    crosscoders = [
        models.sparse_crosscoder(config, lms, prompts, sizes.active, seed) for seed in range(sizes.dictionaries)
    ]
    ours = partial(attribute, crosscoders[0], lms)
    cases: dict[str, Callable[[], object]] = {
        "released": lambda: ours(prompts, AttributionConfig(method="released", **SAME)),
        "paper": lambda: ours(prompts, AttributionConfig(method="paper", **SAME)),
        "gradient": lambda: ours(prompts),
        "several": lambda: attribute_several(crosscoders, lms, prompts),
    }
    also: dict[str, dict[str, float]] = {name: {} for name in cases}
    few, theirs = first(prompts, sizes.peer_prompts), None
    if sizes.reference:
        wholes = [models.whole(sizes, seed, torch.float32) for seed in range(sizes.checkpoints)]
        theirs = PaperEffects.where_it_can_run(sizes.reference, wholes, crosscoders[0], few)
    if theirs is not None:
        for method, run in (("released", theirs.run), ("paper", theirs.run_repaired)):
            also[method] = {"difference": _difference(ours(few, AttributionConfig(method=method, **SAME)), run())}
        cases["peer"] = theirs.run
    taken = seconds(cases, repeats=sizes.repeats, device=sizes.device)
    peer = {} if theirs is None else {"paper's code": taken["peer"] * len(prompts) / len(few)}
    if len(crosscoders) > 1:
        extra = (taken["several"] / taken["gradient"] - 1) / (len(crosscoders) - 1)
        also["gradient"] = {"extra_dictionary_share": round(extra, 3)}
    for method in ("released", "paper", "gradient"):
        case = {key: getattr(sizes, key) for key in ("checkpoints", "width", "blocks", "layer", "features", "prompts")}
        times = {"ours": taken[method]} | (peer if method != "gradient" else {})
        case = {"benchmark": "effects", "method": method, **case}
        report(case, "examples", sizes.prompts, times, sizes.device, **also[method])


def _difference(ours: Effects, theirs: np.ndarray) -> float:
    """The largest one, over the largest effect."""
    return float(np.abs(ours.ie - theirs).max() / np.abs(theirs).max())


if __name__ == "__main__":
    main()
