"""Survey: what each checkpoint of a suite can do and how its activations differ, and which checkpoints to select.

The paper selects checkpoints by eye, from curves of accuracy and a map of similarity (arXiv 2509.05291, section 3).
`Survey.propose` puts both on one scale: the *shift* between two checkpoints is the mean over tasks of the change in
accuracy, relative to the largest such change, plus the distance of their activations (1 - cosine), relative to the
largest such distance. Of all choices of k checkpoints it takes the one whose smallest shift between neighbours is
largest, so that no two are nearly the same model; among equals, the one with the largest sum of shifts.

Checkpoints that look broken aren't candidates, nor are those at chance on every task: a model that has learnt nothing
differs most from all the others and explains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError, SettingError
from crosstime.base.memory import AdaptiveBatches
from crosstime.base.settings import ASIDE, check_at_least
from crosstime.base.units import format_tokens, jsonable
from crosstime.evaluation.quality import cross_entropy
from crosstime.evaluation.task_scores import TaskReader
from crosstime.models.split import SplitLM, finite_residual
from crosstime.models.suite import Suite
from crosstime.tasks.task import Task
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions

SIMILARITY_TOKENS = 20_000
"""Most tokens of the tasks on which activations are compared. Kept in bfloat16 for all checkpoints at once."""
PERPLEXITY_FACTOR = 2.0
"""A checkpoint looks broken if its perplexity exceeds both earlier and later ones by this factor."""
COSINE_MARGIN = 0.25
"""A checkpoint looks broken if its neighbours' cosine with each other exceeds those with it by this margin."""
CHANCE_LEVEL = 0.01
"""Probability that a model which guesses beats chance on any task."""


@dataclass(frozen=True)
class SurveyConfig:
    """[survey]: running every checkpoint on every task."""

    max_pairs: int | None = None
    """Read at most this many pairs of each set or file, from its beginning."""
    blocks: int = 64
    """Held-out blocks for the perplexity, from the beginning of the text."""
    batch_tokens: int = field(default=4096, metadata=ASIDE)
    """Tokens per forward pass."""

    def __post_init__(self) -> None:
        check_at_least(1, **vars(self))


@dataclass(frozen=True)
class SelectionConfig:
    """[selection]: which checkpoints the crosscoder reads."""

    checkpoints: tuple[str, ...] = ()
    """Their names; without names the survey proposes `number` checkpoints."""
    number: int = 3
    """Checkpoints to propose."""

    def __post_init__(self) -> None:
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise SettingError("checkpoints", "names a checkpoint twice")
        if len(self.checkpoints) == 1:
            raise SettingError("checkpoints", "names one checkpoint; a crosscoder compares at least 2")
        check_at_least(2, number=self.number)

    @property
    def size(self) -> int:
        """M, the number of checkpoints that the crosscoder reads."""
        return len(self.checkpoints) or self.number


@dataclass(frozen=True)
class Proposal:
    """Checkpoints to select, proposed by a survey."""

    checkpoints: list[str]
    """In order of training."""
    reasons: list[str]
    """One sentence per checkpoint."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Checkpoints that weren't candidates, and why."""


@dataclass(frozen=True)
class Survey:
    """Accuracy, perplexity and similarity of C checkpoints, in order of training, on T tasks.

    Example:
        >>> import numpy as np
        >>> found = Survey(
        ...     checkpoints=["step1", "step100", "step200", "step300"], tokens=[None] * 4, tasks=["agreement"],
        ...     n_pairs=[500], n_prompts=[0], sentence_accuracy=np.array([[0.5], [0.7], [0.9], [0.92]]),
        ...     token_accuracy=np.full((4, 1), np.nan), logit_difference=np.full((4, 1), np.nan),
        ...     perplexity=np.array([900.0, 60, 40, 30]), cosine=np.full((4, 4), 0.8),
        ...     pearson=np.full((4, 4), 0.8), layer=3,
        ... )
        >>> proposal = found.propose(2)
        >>> proposal.checkpoints, proposal.excluded
        (['step100', 'step300'], {'step1': 'it is at chance on every task'})
    """

    checkpoints: list[str]
    tokens: list[int | None]
    """Tokens seen in pretraining, if known."""
    tasks: list[str]
    n_pairs: list[int]
    """Pairs per task, all of which are read as sentences."""
    n_prompts: list[int]
    """Pairs per task that also give a prompt, with one token as each answer."""
    sentence_accuracy: Float[np.ndarray, "C T"]
    """Share of pairs whose good sentence has the higher log-likelihood (a tie is wrong)."""
    token_accuracy: Float[np.ndarray, "C T"]
    """Share of prompts after which the right answer is likelier than the wrong one; NaN without prompts."""
    logit_difference: Float[np.ndarray, "C T"]
    """Mean over prompts of logit(right) - logit(wrong); NaN without prompts."""
    perplexity: Float[np.ndarray, " C"]
    """On held-out text; infinite if it overflows or is NaN."""
    cosine: Float[np.ndarray, "C C"]
    """Mean over tokens of the cosine of two checkpoints' activations."""
    pearson: Float[np.ndarray, "C C"]
    """The same after each activation's own mean over D is subtracted."""
    layer: int
    """Index of the block whose output is compared, counted from 0."""

    @cached_property
    def broken(self) -> dict[str, str]:
        """Checkpoints that look broken, and why."""
        return find_broken(self.checkpoints, self.perplexity, self.cosine)

    def propose(self, k: int) -> Proposal:
        """Propose the `k` checkpoints with the largest shifts between neighbours, by the rule of the module docstring.

        If fewer than `k` checkpoints are candidates, the latest of those at chance fill up, and after them the latest
        of those that look broken.

        Raises:
            InputError: `k` is below 2, or above the number of checkpoints.
        """
        if k < 2:
            raise InputError(f"a crosscoder compares at least 2 checkpoints; got k = {k}")
        if k > len(self.checkpoints):
            raise InputError(f"cannot choose {k} checkpoints: the suite has {len(self.checkpoints)}")
        learnt = zip(self.checkpoints, self._has_learnt, strict=True)
        excluded = {name: "it is at chance on every task" for name, has_learnt in learnt if not has_learnt}
        excluded |= self.broken
        # Candidates first, then those at chance, then broken ones; the latest first among each.
        rank = [(name in excluded, name in self.broken, -i) for i, name in enumerate(self.checkpoints)]
        ranked = sorted(range(len(rank)), key=rank.__getitem__)
        candidates = sorted(ranked[: max(k, len(ranked) - len(excluded))])
        shift = shifts(self.sentence_accuracy[candidates], self.cosine[np.ix_(candidates, candidates)])
        chosen = [candidates[i] for i in spread(shift, k)]
        reasons = [self._first_reason(chosen[0]), *map(self._reason, chosen, chosen[1:])]
        names = [self.checkpoints[i] for i in chosen]
        for i, name in enumerate(names):
            if why := excluded.pop(name, None):
                reasons[i] += f" (Chosen because no better candidate was left: {why}.)"
        return Proposal(names, reasons, excluded)

    @property
    def _has_learnt(self) -> Bool[np.ndarray, " C"]:
        """Which checkpoints differ from chance on some task, by next tokens if any task has prompts.

        A model that knows no grammar still prefers short sentences and frequent words; single tokens mislead less.
        """
        has_prompts = np.array(self.n_prompts) > 0
        if not has_prompts.any():
            return np.any(beats_chance(self.sentence_accuracy, np.array(self.n_pairs)), axis=1)
        n = np.array(self.n_prompts)[has_prompts]
        return np.any(beats_chance(self.token_accuracy[:, has_prompts], n), axis=1)

    def _first_reason(self, i: int) -> str:
        """Describe the first checkpoint of a proposal."""
        task = int(np.abs(self.sentence_accuracy[i] - 0.5).argmax())
        return (
            f"{self._label(i)} is the starting point: of the {len(self.tasks)} tasks, its accuracy is furthest from "
            f"chance on {self.tasks[task]} ({_share(self.sentence_accuracy[i, task])})."
        )

    def _reason(self, i: int, j: int) -> str:
        """Describe the change between two neighbours of a proposal."""
        change = self.sentence_accuracy[j] - self.sentence_accuracy[i]
        task = int(np.abs(change).argmax())
        return (
            f"{self._label(j)}: since {self.checkpoints[i]}, accuracy changes by {_share(np.abs(change).mean())} on "
            f"average over tasks, most on {self.tasks[task]} ({_share(self.sentence_accuracy[i, task])} to "
            f"{_share(self.sentence_accuracy[j, task])}); the activations after block {self.layer} have a cosine of "
            f"{_share(self.cosine[i, j])}."
        )

    def _label(self, i: int) -> str:
        seen = self.tokens[i]
        return self.checkpoints[i] if seen is None else f"{self.checkpoints[i]} ({format_tokens(seen)} tokens)"

    def save(self, folder: Path | str) -> None:
        """Write accuracy.parquet, similarity.parquet and survey.json into an existing folder."""
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
        accuracy, similarity = (pq.read_table(folder / f"{name}.parquet") for name in ("accuracy", "similarity"))

        def array(table: pa.Table, column: str) -> np.ndarray:
            return table[column].to_numpy().reshape(len(summary["checkpoints"]), -1).copy()

        values: dict[str, Any] = {
            **{name: summary[name] for name in ("checkpoints", "tokens", "tasks", "n_pairs", "n_prompts", "layer")},
            **{name: array(accuracy, name) for name in ("sentence_accuracy", "token_accuracy", "logit_difference")},
            **{name: array(similarity, name) for name in ("cosine", "pearson")},
        }
        perplexity = np.array([np.inf if value is None else value for value in summary["perplexity"]])
        return cls(**values, perplexity=perplexity)

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
    config: SurveyConfig = SurveyConfig(),
    *,
    layer: int,
    positions: Positions = Positions(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Survey:
    """Run every checkpoint of a suite, one at a time, on the texts of all tasks and on held-out text.

    Args:
        suite: The checkpoints; any number.
        tasks: Tasks with different names.
        heldout: Text that no checkpoint was trained on, tokenised with the suite's tokenizer and the same policy.
        config: Settings.
        layer: Index of the block whose output is compared, counted from 0.
        positions: The policy for position 0: whether texts start with BOS, and whether its activation is compared.
        dtype: Precision of the models. Probabilities are computed in float32.
        device: Where the models run.

    Raises:
        InputError: There are no tasks, two have the same name, or an activation isn't finite (the error names the
            checkpoint and the token).

    Example:
        >>> import crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step64", "step3786"])
        >>> heldout = ct.Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=32, limit_tokens=500)
        >>> task = ct.BlimpPairs(sets="determiner_noun_agreement_1").load()
        >>> found = ct.survey(suite, [task], heldout, ct.SurveyConfig(max_pairs=10), layer=1)
        >>> found.sentence_accuracy.shape, found.n_pairs
        ((2, 1), [10])
    """
    names = [task.name for task in tasks]
    if not names:
        raise InputError("a survey needs at least one task")
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two tasks are named {min(duplicates)}: give them different names")
    if config.max_pairs is not None:
        tasks = [task.take(config.max_pairs) for task in tasks]
    reader = TaskReader(tasks, suite.tokenizer, positions, batch_tokens=config.batch_tokens, sample=SIMILARITY_TOKENS)
    blocks = torch.from_numpy(heldout.take(config.blocks).blocks.astype(np.int64))
    batches = AdaptiveBatches("survey", "text", config.batch_tokens, lower="the text's context, or use bfloat16")
    total = len(suite) * (sum(batch.tokens.numel() for batch in reader.batches) + blocks.numel())

    scores, perplexities = [], []
    with tqdm(total=total, desc="survey", unit="tok", unit_scale=True, leave=False, disable=None) as bar:
        for checkpoint in suite:
            bar.set_postfix_str(checkpoint.name)
            model = suite.load(checkpoint.name, layer=layer, dtype=dtype, device=device)
            scores.append(reader.read(model, batches, bar.update))
            read = partial(_nats, model, suite.tokenizer, int(positions.bos))
            nats = []
            for part in batches.run(blocks, read, length=heldout.context):
                nats.append(part)
                bar.update(len(part) * heldout.context)
            perplexities.append(_perplexity(torch.cat(nats)))
            del model, read  # or it would still be in memory while the next one loads

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
    """Return the mean cosine and mean Pearson correlation over tokens of every two checkpoints (as arXiv 2509.05291).

    The correlation of two activations is their cosine after each one's mean over D is subtracted.

    Args:
        activations: Of C checkpoints at the same n tokens, in any floating dtype.
    """
    n_checkpoints, n_tokens, _ = activations.shape
    sums = torch.zeros(2, n_checkpoints, n_checkpoints, dtype=torch.float64)
    for chunk in activations.split(1024, dim=1):
        x = chunk.transpose(0, 1).float()
        for kind, vectors in enumerate((x, x - x.mean(-1, keepdim=True))):
            unit = torch.nn.functional.normalize(vectors, dim=-1)
            sums[kind] += (unit @ unit.transpose(1, 2)).double().sum(0)
    means = (sums / n_tokens).clamp(-1, 1)
    cosine, pearson = means.numpy()
    return cosine, pearson


def _nats(model: SplitLM, tokenizer: PreTrainedTokenizerBase, first: int, tokens: Int[Tensor, "B S"]) -> Tensor:
    """Nats [B, n] of the tokens of some blocks, for predictions from position `first` on."""
    return cross_entropy(model, finite_residual(model, tokens, tokenizer), tokens, first)


def _perplexity(nats: Float[Tensor, "B n"]) -> float:
    """Perplexity, with infinity for NaN, so that one value means broken."""
    value = nats.double().mean().exp().item()
    return value if np.isfinite(value) else float("inf")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(value: float) -> str:
    """Two decimals, without the leading zero."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def find_broken(
    checkpoints: Sequence[str], perplexity: Float[np.ndarray, " C"], cosine: Float[np.ndarray, "C C"]
) -> dict[str, str]:
    """Return the checkpoints that don't fit between their neighbours in training, and why.

    Perplexity falls during training, so a checkpoint looks broken if its perplexity isn't finite, or is twice as high
    as both the best before and the best after it (for the last checkpoint: the best and the last before). So does one
    whose activations are unlike both neighbours' while these are like each other.

    Args:
        checkpoints: Names, in order of training.
        perplexity: On held-out text; infinite if it is NaN.
        cosine: Mean similarity of activations.
    """
    broken = {}
    for i, name in enumerate(checkpoints):
        reason = _perplexity_reason(i, perplexity) or _similarity_reason(i, checkpoints, cosine)
        if reason:
            broken[name] = reason
    return broken


def _perplexity_reason(i: int, perplexity: Float[np.ndarray, " C"]) -> str | None:
    value = perplexity[i]
    if not np.isfinite(value):
        return "its perplexity on held-out text isn't finite"
    if i == 0:
        return None
    before = perplexity[:i].min()
    after = perplexity[i + 1 :].min() if i + 1 < len(perplexity) else perplexity[i - 1]
    if value <= PERPLEXITY_FACTOR * max(before, after):
        return None
    others = f"{before:.4g} before" + (f" and {after:.4g} after" if i + 1 < len(perplexity) else "")
    return f"its perplexity on held-out text is {value:.6g}, compared with {others}"


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
    """Whether an accuracy over `n` pairs differs from one half, in either direction, by more than guessing explains.

    A two-sided test at `CHANCE_LEVEL` over all tasks of a checkpoint (Bonferroni), by the normal approximation.
    """
    z = np.abs(accuracy - 0.5) * 2 * np.sqrt(n)
    return z > norm.isf(CHANCE_LEVEL / 2 / len(n))


def shifts(accuracy: Float[np.ndarray, "C T"], cosine: Float[np.ndarray, "C C"]) -> Float[np.ndarray, "C C"]:
    """Return the shift between every two checkpoints: 0 to 1 for accuracy, plus 0 to 1 for activations."""
    performance = np.abs(accuracy[:, None] - accuracy[None]).mean(-1)
    return sum((part / (part.max() or 1) for part in (performance, 1 - cosine)), np.zeros_like(cosine))


def spread(shift: Float[np.ndarray, "C C"], k: int) -> list[int]:
    """Return the `k` indices, ascending, whose smallest shift between neighbours is largest, then whose sum is.

    Among choices equal in both, the earliest. 2 <= k <= C.
    """
    widest, _ = _best_path(shift, k, np.minimum, np.inf)
    allowed = np.where(shift >= widest, shift, -np.inf)
    return _best_path(allowed, k, np.add, 0.0)[1]


def _best_path(shift: Float[np.ndarray, "C C"], k: int, joined: np.ufunc, empty: float) -> tuple[float, list[int]]:
    """The ascending path through `k` indices that maximises its joined steps: the maximum, and the path."""
    n = len(shift)
    ascending = np.where(np.triu(np.ones((n, n), dtype=bool), 1), shift, -np.inf)
    value = np.full(n, empty)
    sources = []
    for _ in range(k - 1):
        reached = joined(value[:, None], ascending)
        sources.append(reached.argmax(0))
        value = reached.max(0)
    path = [int(value.argmax())]
    for source in reversed(sources):
        path.append(int(source[path[-1]]))
    return float(value.max()), path[::-1]
