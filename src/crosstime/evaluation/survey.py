"""Survey: what every checkpoint of a suite can do and how much its representation differs, each run once.

From it follows which checkpoints to compare: `Survey.propose`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.base.memory import AdaptiveBatches
from crosstime.base.units import format_tokens, jsonable
from crosstime.evaluation.choice import beats_chance, find_broken, shifts, spread
from crosstime.evaluation.cross_entropy import cross_entropy
from crosstime.evaluation.task_scores import TaskReader
from crosstime.models.split import SplitLM, finite_residual
from crosstime.models.suite import Suite
from crosstime.tasks.task import Task
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions

SIMILARITY_TOKENS = 20_000
"""Activations are compared on at most this many tokens of the tasks. Kept in bfloat16 for all checkpoints at once."""

TOKENS_AT_ONCE = 4096
"""That go through a model at once, where nothing else is said."""

AT_CHANCE = "it is at chance on every task"


@dataclass(frozen=True)
class Proposal:
    """Which checkpoints to compare."""

    checkpoints: list[str]
    """In order of training."""
    reasons: list[str]
    """One sentence for each."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Checkpoints that were no candidates, and why."""


@dataclass(frozen=True)
class Survey:
    """C checkpoints, in order of training, on T tasks."""

    checkpoints: list[str]
    tokens: list[int | None]
    """Tokens seen in pretraining, where known."""
    tasks: list[str]
    n_pairs: list[int]
    """Pairs of each task, all of which are read as sentences."""
    n_prompts: list[int]
    """Of these, the pairs that the next token decides."""
    sentence_accuracy: Float[np.ndarray, "C T"]
    """Share of pairs in which the good sentence has the higher log-likelihood (a tie is wrong)."""
    token_accuracy: Float[np.ndarray, "C T"]
    """Share of prompts after which the right answer is likelier than the wrong one; nan where there are no prompts."""
    logit_difference: Float[np.ndarray, "C T"]
    """Mean over prompts of logit(right) - logit(wrong); nan where there are no prompts."""
    perplexity: Float[np.ndarray, " C"]
    """On held-out text; infinite where it overflows or is not a number."""
    cosine: Float[np.ndarray, "C C"]
    """Mean over tokens of the cosine of two checkpoints' activations."""
    pearson: Float[np.ndarray, "C C"]
    """The same after each activation's own mean over D is taken from it."""
    layer: int
    """Of the activations: the output of this block, counted from 0."""

    @cached_property
    def broken(self) -> dict[str, str]:
        """Checkpoints that look broken, and why."""
        return find_broken(self.checkpoints, self.perplexity, self.cosine)

    def propose(self, k: int) -> Proposal:
        """The `k` checkpoints with the largest shifts in performance and representation, in order of training.

        `crosstime.evaluation.choice` states the rule. Where fewer than `k` checkpoints do better than chance on some
        task, the latest of the others fill up, and last of all those that look broken.

        Raises:
            InputError: `k` is below 2, or above the number of checkpoints.
        """
        if k < 2:
            raise InputError(f"a comparison needs at least 2 checkpoints, got k = {k}")
        if k > len(self.checkpoints):
            raise InputError(f"cannot choose {k} checkpoints: the suite has {len(self.checkpoints)}")
        at_chance = {
            name: AT_CHANCE for name, learnt in zip(self.checkpoints, self._has_learnt, strict=True) if not learnt
        }
        unfit = at_chance | self.broken
        # Fit ones first, then those at chance, then broken ones; of each kind the latest first.
        rank = [(name in unfit, name in self.broken, -i) for i, name in enumerate(self.checkpoints)]
        ranked = sorted(range(len(rank)), key=rank.__getitem__)
        candidates = sorted(ranked[: max(k, len(ranked) - len(unfit))])
        shift = shifts(self.sentence_accuracy[candidates], self.cosine[np.ix_(candidates, candidates)])
        chosen = [candidates[i] for i in spread(shift, k)]
        reasons = [self._first_reason(chosen[0]), *map(self._reason, chosen, chosen[1:])]
        names = [self.checkpoints[i] for i in chosen]
        for i, name in enumerate(names):
            if why := unfit.pop(name, None):
                reasons[i] += f" (For want of others: {why}.)"
        return Proposal(names, reasons, unfit)

    @property
    def _has_learnt(self) -> Bool[np.ndarray, " C"]:
        """Which checkpoints do better or worse than chance on some task, by the next token if any task can ask for it.

        A model that knows no grammar still prefers short sentences and frequent words: single tokens mislead less.
        """
        asked = np.array(self.n_prompts) > 0
        accuracy, n = (self.token_accuracy, self.n_prompts) if asked.any() else (self.sentence_accuracy, self.n_pairs)
        kept = asked if asked.any() else np.ones_like(asked)
        return np.any(beats_chance(accuracy[:, kept], np.array(n)[kept]), axis=1)

    def _first_reason(self, i: int) -> str:
        """Why a proposal starts where it does."""
        task = int(np.abs(self.sentence_accuracy[i] - 0.5).argmax())
        return (
            f"{self._label(i)} is where the comparison starts: of the {len(self.tasks)} tasks, it is furthest from "
            f"chance on {self.tasks[task]} (accuracy {_share(self.sentence_accuracy[i, task])})."
        )

    def _reason(self, i: int, j: int) -> str:
        """What changes between two neighbours of a proposal."""
        change = self.sentence_accuracy[j] - self.sentence_accuracy[i]
        task = int(np.abs(change).argmax())
        return (
            f"{self._label(j)}: since {self.checkpoints[i]}, accuracy moves by {_share(np.abs(change).mean())} in the "
            f"mean over tasks, most on {self.tasks[task]} ({_share(self.sentence_accuracy[i, task])} to "
            f"{_share(self.sentence_accuracy[j, task])}), and the activations after block {self.layer} keep a cosine "
            f"of {_share(self.cosine[i, j])}."
        )

    def _label(self, i: int) -> str:
        seen = self.tokens[i]
        return self.checkpoints[i] if seen is None else f"{self.checkpoints[i]} ({format_tokens(seen)} tokens)"

    def save(self, folder: Path | str) -> None:
        """Write `accuracy.parquet`, `similarity.parquet` and `survey.json` into an existing folder."""
        folder = Path(folder)
        pq.write_table(self._accuracy_table(), folder / "accuracy.parquet")
        pq.write_table(self._similarity_table(), folder / "similarity.parquet")
        summary = {
            "checkpoints": self.checkpoints,
            "tokens": self.tokens,
            "tasks": self.tasks,
            "n_pairs": self.n_pairs,
            "n_prompts": self.n_prompts,
            "layer": self.layer,
            "perplexity": jsonable(self.perplexity.tolist()),
            "broken": self.broken,
        }
        (folder / "survey.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> Survey:
        """Read what `save` wrote."""
        folder = Path(folder)
        summary = json.loads((folder / "survey.json").read_text(encoding="utf-8"))
        names, tasks = summary["checkpoints"], summary["tasks"]
        accuracy = pq.read_table(folder / "accuracy.parquet")
        similarity = pq.read_table(folder / "similarity.parquet")

        def grid(table: pa.Table, column: str, width: int) -> np.ndarray:
            return table[column].to_numpy().reshape(len(names), width).copy()

        return cls(
            checkpoints=names,
            tokens=summary["tokens"],
            tasks=tasks,
            n_pairs=summary["n_pairs"],
            n_prompts=summary["n_prompts"],
            sentence_accuracy=grid(accuracy, "sentence_accuracy", len(tasks)),
            token_accuracy=grid(accuracy, "token_accuracy", len(tasks)),
            logit_difference=grid(accuracy, "logit_difference", len(tasks)),
            perplexity=np.array([np.inf if value is None else value for value in summary["perplexity"]]),
            cosine=grid(similarity, "cosine", len(names)),
            pearson=grid(similarity, "pearson", len(names)),
            layer=summary["layer"],
        )

    def _accuracy_table(self) -> pa.Table:
        """One row per checkpoint and task."""
        n_checkpoints, n_tasks = self.sentence_accuracy.shape
        return pa.table(
            {
                "checkpoint": np.repeat(self.checkpoints, n_tasks),
                "tokens": pa.array(chain.from_iterable([seen] * n_tasks for seen in self.tokens), pa.int64()),
                "task": self.tasks * n_checkpoints,
                "n_pairs": self.n_pairs * n_checkpoints,
                "n_prompts": self.n_prompts * n_checkpoints,
                "sentence_accuracy": self.sentence_accuracy.reshape(-1),
                "token_accuracy": self.token_accuracy.reshape(-1),
                "logit_difference": self.logit_difference.reshape(-1),
            }
        )

    def _similarity_table(self) -> pa.Table:
        """One row per ordered pair of checkpoints."""
        n = len(self.checkpoints)
        return pa.table(
            {
                "a": np.repeat(self.checkpoints, n),
                "b": self.checkpoints * n,
                "cosine": self.cosine.reshape(-1),
                "pearson": self.pearson.reshape(-1),
            }
        )


def survey(
    suite: Suite,
    tasks: Sequence[Task],
    heldout: Corpus,
    *,
    layer: int,
    positions: Positions = Positions(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_tokens_per_batch: int = TOKENS_AT_ONCE,
    max_blocks: int = 128,
) -> Survey:
    """Run every checkpoint of a suite once, one at a time, on the texts of all tasks and on held-out text.

    Args:
        suite: the checkpoints; any number.
        tasks: with different names.
        heldout: text that no checkpoint was trained on, made with the suite's tokenizer and the same policy.
        layer: of the activations that are compared, 0 <= layer < n_layers.
        positions: the policy for position 0: whether texts start with BOS, and whether its activation is compared.
        dtype, device: of the models. Probabilities are computed in float32.
        max_tokens_per_batch: tokens that go through a model at once.
        max_blocks: of the held-out text, from its beginning.

    Raises:
        InputError: there are no tasks, two have one name, or an activation is not finite (checkpoint and token named).
    """
    names = [task.name for task in tasks]
    if not names:
        raise InputError("a survey needs at least one task")
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two tasks are named {min(twice)}: give them different names")
    reader = TaskReader(
        tasks, suite.tokenizer, positions, max_tokens_per_batch=max_tokens_per_batch, sample=SIMILARITY_TOKENS
    )
    blocks = torch.from_numpy(heldout.take(max_blocks).blocks.astype(np.int64))
    batches = AdaptiveBatches(
        "survey", "text", max_tokens_per_batch, lower="text.context, or take compute.dtype bfloat16"
    )
    total = len(suite) * (sum(batch.tokens.numel() for batch in reader.batches) + blocks.numel())

    scores, perplexities = [], []
    with tqdm(total=total, desc="survey", unit="tok", unit_scale=True, leave=False, disable=None) as bar:
        for checkpoint in suite:
            bar.set_postfix_str(checkpoint.name)
            lm = suite.load(checkpoint.name, layer=layer, dtype=dtype, device=device)
            scores.append(reader.read(lm, batches, bar.update))
            read = partial(_nats, lm, suite.tokenizer, int(positions.bos))
            nats = []
            for found in batches.run(blocks, read, length=heldout.context):
                nats.append(found)
                bar.update(len(found) * heldout.context)
            perplexities.append(_perplexity(torch.cat(nats)))
            del lm, read  # or it would stay beside the next one while that loads

    cosine, pearson = similarity(torch.stack([score.activations for score in scores]))
    logit_margins = [score.logit_margins for score in scores]
    return Survey(
        checkpoints=[checkpoint.name for checkpoint in suite],
        tokens=[checkpoint.tokens for checkpoint in suite],
        tasks=names,
        n_pairs=reader.n_pairs,
        n_prompts=reader.n_prompts,
        sentence_accuracy=np.array([[_mean(margin > 0) for margin in score.sentence_margins] for score in scores]),
        token_accuracy=np.array([[_mean(margin > 0) for margin in margins] for margins in logit_margins]),
        logit_difference=np.array([[_mean(margin) for margin in margins] for margins in logit_margins]),
        perplexity=np.array(perplexities),
        cosine=cosine,
        pearson=pearson,
        layer=layer,
    )


def similarity(activations: Float[Tensor, "C n D"]) -> tuple[Float[np.ndarray, "C C"], Float[np.ndarray, "C C"]]:
    """Mean cosine and mean Pearson correlation, over tokens, of every pair of checkpoints (arXiv 2509.05291, its code).

    The correlation of two activations is the cosine after each one's mean over D is taken from it.

    Args:
        activations: of C checkpoints at the same n tokens, of any floating dtype.
    """
    n_checkpoints, n_tokens, _ = activations.shape
    sums = torch.zeros(2, n_checkpoints, n_checkpoints, dtype=torch.float64)
    for part in activations.split(1024, dim=1):
        x = part.transpose(0, 1).float()
        for kind, vectors in enumerate((x, x - x.mean(-1, keepdim=True))):
            unit = torch.nn.functional.normalize(vectors, dim=-1)
            sums[kind] += (unit @ unit.transpose(1, 2)).double().sum(0)
    means = (sums / n_tokens).clamp(-1, 1)
    cosine, pearson = means.numpy()
    return cosine, pearson


def _nats(lm: SplitLM, tokenizer: PreTrainedTokenizerBase, first: int, tokens: Int[Tensor, "B S"]) -> Tensor:
    """Of each token of some blocks [B, n], for the predictions made from position `first` on."""
    return cross_entropy(lm, finite_residual(lm, tokens, tokenizer), tokens, first)


def _perplexity(nats: Float[Tensor, "B n"]) -> float:
    """Infinite where it is no number, so that there is one value for "broken"."""
    value = nats.double().mean().exp().item()
    return value if np.isfinite(value) else float("inf")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(value: float) -> str:
    """Two decimals, without the leading zero."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
