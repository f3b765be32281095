"""L1 against BatchTopK at equal L0: which crosscoder says more, and which of its specific features are artefacts?

Trains both over the same checkpoints on the same tokens, BatchTopK with the k that L1 turns out to need, and measures
them on held-out text. Prints one Markdown table, means over seeds, and writes every number to sparsity.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

import bundled
import crosstime as ct
from crosstime import demo

CHECKPOINTS = ["step256", "step1000", "step3786"]
L1 = ct.L1(1.2)
SPECIFIC = 0.7
"""RelDec above which a feature belongs to one checkpoint, as in the paper."""


def batch_topk(k: int) -> ct.BatchTopK:
    """BatchTopK for a run of a thousand steps: the paper's schedules, shorter."""
    return ct.BatchTopK(
        k,
        k_start=5 * k,
        k_steps=300,
        threshold_start=400,
        threshold_decay=0.99,
        dead_tokens=bundled.CONFIG.tokens // 10,
    )


def study(crosscoder: ct.Crosscoder, models: list[ct.SplitLM], heldout: ct.Corpus) -> dict[str, float]:
    """What one crosscoder is worth; values by checkpoint are averaged."""
    quality = ct.evaluate(crosscoder, models, heldout, ct.EvaluationConfig(blocks=256))
    diagnostics = ct.diagnose(crosscoder, models, heldout, ct.DiagnosticsConfig(blocks=256))
    rel_dec = ct.relative(crosscoder.decoder_norms().detach().numpy())
    fires = quality.frequency > 0
    specific = (rel_dec.max(0) > SPECIFIC) & fires
    absent = (diagnostics.relative_norm < 0.2).any(0) & fires
    artefact = np.array(diagnostics.label) == "artefact"
    return {
        "L0": quality.l0,
        "explained variance": float(quality.explained_variance.mean()),
        "loss recovered": float(quality.loss_recovered.mean()),
        "added loss (nats)": float(quality.delta_ce.mean()),
        "dead": quality.dead,
        "specific to a checkpoint": int(specific.sum()),
        "of these artefacts": _share(artefact & specific, specific),
        "absent at a checkpoint": int(absent.sum()),
        "of those artefacts": _share(artefact & absent, absent),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else float("nan")


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where crosscoders and numbers lie")
    parser.add_argument("--seeds", type=int, nargs="+", default=[124, 153, 6582])
    arguments = parser.parse_args()
    suite = ct.Suite.from_folder(demo.SUITE, CHECKPOINTS)
    heldout = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=128)
    found: dict[str, list[dict[str, float]]] = {"L1": [], "BatchTopK": []}
    for seed in arguments.seeds:
        config = dataclasses.replace(bundled.CONFIG, seed=seed)
        one = bundled.crosscoder(CHECKPOINTS, arguments.out, L1, config)
        models = bundled.models(one)
        found["L1"].append(study(one, models, heldout))
        other = bundled.crosscoder(CHECKPOINTS, arguments.out, batch_topk(round(found["L1"][-1]["L0"])), config)
        found["BatchTopK"].append(study(other, models, heldout))
    (arguments.out / "sparsity.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"| mean ± standard deviation over {len(arguments.seeds)} seeds | {' | '.join(found)} |\n|---|---|---|")
    for name in found["L1"][0]:
        values = {rule: np.array([row[name] for row in rows], dtype=float) for rule, rows in found.items()}
        digits = 1 if name in ("L0", "dead") or "checkpoint" in name else 3
        cells = [f"{v.mean():.{digits}f} ± {v.std(ddof=1) if len(v) > 1 else 0:.{digits}f}" for v in values.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
