"""A user's own run, small enough for a test: checkpoints, a text and minimal pairs that the demo does not know."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import tiny

RUN_TOML = """
[suite]
folders = ["my checkpoints/step0", "my checkpoints/step10", "my checkpoints/step100"]
tokens = [0, 1000, 10_000]
[compute]
device = "cpu"
[text]
train = "text ü.txt"
context = 32
[[task]]
name = "agreement of mine"
pairs = { source = "jsonl", files = "pairs.jsonl" }
[survey]
blocks = 2
[selection]
checkpoints = ["step0", "step10", "step100"]
[crosscoder]
features = 64
[sparsity]
rule = "l1"
weight = 0.1
[training]
tokens = 4096
batch_size = 256
lr = 1e-3
buffer_tokens = 1024
model_batch_blocks = 4
calibration_blocks = 4
save_seconds = 300
log_steps = 4
[evaluation]
blocks = 4
[diagnostics]
blocks = 4
[attribution]
steps = 4
bootstrap = 10
[ablation]
top_k = 2
exact = 12
bootstrap = 10
[contexts]
top_k = 3
per_feature = 2
blocks = 4
"""

ARTIFACTS = (
    "suite",
    "tokens",
    "survey",
    "selection",
    "crosscoder",
    "evaluation",
    "diagnostics",
    "effects",
    "ablation",
    "contexts",
    "report",
)


def write_inputs(folder: Path, suite: Path) -> Path:
    """A run folder with a copy of a suite, a text and minimal pairs beside its run.toml."""
    shutil.copytree(suite, folder / "my checkpoints")
    words = " ".join(tiny.SENTENCES).split()
    order = random.Random(0)
    documents = ["\n".join(" ".join(order.choices(words, k=12)) for _ in range(4)) for _ in range(60)]
    (folder / "text ü.txt").write_text("\n\n".join(documents), encoding="utf-8")
    # Words that the tiny tokenizer has as tokens; that they are no grammar does not matter.
    answers = (("The key", " that", " the"), ("The cat on", " the", " that"), ("A man", " on", " at"))
    pairs = [{"prefix": prefix, "right": right, "wrong": wrong} for prefix, right, wrong in answers]
    lines = [json.dumps(pair) for pair in [*pairs, {"good": "The cat on the table", "bad": "The cat on a table"}]]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "run.toml").write_text(RUN_TOML, encoding="utf-8")
    return folder


def edit(folder: Path, old: str, new: str) -> None:
    """Changes run.toml."""
    text = (folder / "run.toml").read_text(encoding="utf-8")
    assert old in text
    (folder / "run.toml").write_text(text.replace(old, new), encoding="utf-8")
