"""Scores of a checkpoint on tasks: every text is read once, and only the logits that matter are evaluated.

The two sentences of a pair share their beginning, a prompt is the beginning of a sentence, and a sentence may occur in
several tasks. So the texts are reduced to those that no other text continues, and the queries about them (the
log-probability of this token after that position) are prepared once; each checkpoint answers the same queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError
from crosstime.base.memory import AdaptiveBatches
from crosstime.evaluation.quality import logit_chunks
from crosstime.models.split import SplitLM, finite_residual
from crosstime.tasks.prompts import common_length, indices_by_length
from crosstime.tasks.task import Task
from crosstime.text.positions import Positions


@dataclass(frozen=True)
class TaskScores:
    """Margins of one checkpoint, pair by pair."""

    sentence_margins: list[Float[np.ndarray, " _"]]
    """Per task: log-likelihood of the good sentence minus that of the bad one, in nats."""
    logit_margins: list[Float[np.ndarray, " _"]]
    """Per task: logit of the right answer minus that of the wrong one."""
    activations: Float[Tensor, "n D"]
    """Activations at the sampled tokens, bfloat16 on the CPU."""


@dataclass(frozen=True)
class _Queries:
    """Log-probabilities to look up; each is added, with its sign, to one margin."""

    text: Int[np.ndarray, " Q"]
    position: Int[np.ndarray, " Q"]
    token: Int[np.ndarray, " Q"]
    """The token predicted at this position of this text."""
    margin: Int[np.ndarray, " Q"]
    sign: Int[np.ndarray, " Q"]


@dataclass(frozen=True)
class _Batch:
    """Texts of one length, the points (row, position) at which logits are needed, and the queries about them.

    Points are ordered by row and position, queries by point.
    """

    tokens: Int[Tensor, "B S"]
    point_row: Int[Tensor, " P"]
    point_position: Int[Tensor, " P"]
    query_point: Int[Tensor, " Q"]
    query_token: Int[Tensor, " Q"]
    sample_row: Int[Tensor, " n"]
    sample_position: Int[Tensor, " n"]

    def select(self, rows: slice) -> _Batch:
        """Select some of the texts, with their points, queries and samples."""
        points, samples = (_range(column, rows) for column in (self.point_row, self.sample_row))
        queries = _range(self.query_point, points)
        return _Batch(
            tokens=self.tokens[rows],
            point_row=self.point_row[points] - rows.start,
            point_position=self.point_position[points],
            query_point=self.query_point[queries] - points.start,
            query_token=self.query_token[queries],
            sample_row=self.sample_row[samples] - rows.start,
            sample_position=self.sample_position[samples],
        )

    def answers(self, rows: slice, logits: Float[Tensor, "rows S V"]) -> Float[np.ndarray, " A"]:
        """Return the log-probabilities queried in some rows, from the logits of these rows."""
        batch = self.select(rows)
        chosen = logits[batch.point_row, batch.point_position].float()
        total = chosen.logsumexp(-1)[batch.query_point]
        return (chosen[batch.query_point, batch.query_token] - total).cpu().double().numpy()


def _range(ascending: Int[Tensor, " n"], values: slice) -> slice:
    """The index range of ascending numbers that lie in a range of values."""
    return slice(*torch.searchsorted(ascending, torch.tensor([values.start, values.stop])).tolist())


class TaskReader:
    """Tasks prepared for any number of checkpoints that share a tokenizer.

    Args:
        tasks: Their pairs are read as sentences and, if the answers are single tokens, as prompts.
        tokenizer: The checkpoints' tokenizer.
        positions: The policy for position 0. The first token of a text is never predicted, so without BOS the first
            token of a sentence doesn't count.
        batch_tokens: Tokens per forward pass.
        sample: Number of tokens whose activations are kept at most, spread evenly over the good sentences.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions,
        *,
        batch_tokens: int,
        sample: int,
    ) -> None:
        sentences = [task.sentences(tokenizer, positions) for task in tasks]
        prompts = [task.find_prompts(tokenizer, positions) for task in tasks]
        self._tokenizer = tokenizer
        self.n_pairs, self.n_prompts = [len(task) for task in tasks], [len(of_task) for of_task in prompts]

        queries = _QueryBuilder()
        for pairs in sentences:
            for good, bad in pairs:
                # The shared beginning has the same probability in both: only the rest can decide.
                start = max(common_length(good, bad), 1)
                queries.next_margin()
                queries.add(good, start, +1)
                queries.add(bad, start, -1)
        for of_task in prompts:
            answers = zip(of_task.tokens, of_task.right.tolist(), of_task.wrong.tolist(), strict=True)
            for prompt, right, wrong in answers:
                queries.next_margin()
                queries.add([*prompt, right], len(prompt), +1)
                queries.add([*prompt, wrong], len(prompt), -1)
        texts, container, table = queries.build()
        self._margin, self._sign = table.margin, table.sign

        good_texts = {tuple(good[:-1]) for pairs in sentences for good, _ in pairs}
        first = positions.first_encoded
        points = sorted({(container[text], p) for text in good_texts for p in range(first, len(text))})
        if not points:
            raise InputError("the sentences of the tasks have one token each: no activations to compare")
        spread = np.linspace(0, len(points) - 1, min(sample, len(points))).round().astype(int)
        self.batches = list(_batches(texts, table, np.array(points)[spread], batch_tokens))

    def read(self, model: SplitLM, batches: AdaptiveBatches, advance: Callable[[int], object]) -> TaskScores:
        """Score a checkpoint on the tasks.

        Args:
            model: The checkpoint.
            batches: Runs the forward passes.
            advance: Called after each batch with the number of tokens read.

        Raises:
            InputError: An activation isn't finite.
            OutOfMemory: A single text doesn't fit into memory.
        """
        answers, samples = [], []
        for batch in self.batches:
            count, length = batch.tokens.shape
            for answer, sample in batches.run(torch.arange(count), partial(self._read, model, batch), length=length):
                answers += answer
                samples.append(sample)
            advance(batch.tokens.numel())
        sizes = self.n_pairs + self.n_prompts
        margins = np.zeros(sum(sizes))
        np.add.at(margins, self._margin, self._sign * np.concatenate(answers))
        by_task = np.split(margins, np.cumsum(sizes)[:-1])
        return TaskScores(by_task[: len(self.n_pairs)], by_task[len(self.n_pairs) :], torch.cat(samples))

    def _read(self, model: SplitLM, batch: _Batch, rows: Int[Tensor, " rows"]) -> tuple[list[np.ndarray], Tensor]:
        """Answer the queries about consecutive rows of a batch, and sample their activations."""
        part = batch.select(slice(int(rows[0]), int(rows[-1]) + 1))
        residual = finite_residual(model, part.tokens, self._tokenizer)
        sample = residual[part.sample_row, part.sample_position].to("cpu", torch.bfloat16)
        return [part.answers(chunk, logits) for chunk, logits in logit_chunks(model, residual)], sample


class _QueryBuilder:
    """Collects texts and the queries about them."""

    def __init__(self) -> None:
        self.texts: dict[tuple[int, ...], int] = {}
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.margin = -1

    def next_margin(self) -> None:
        """Start a new margin, to which the queries from here on add up."""
        self.margin += 1

    def add(self, tokens: Sequence[int], start: int, sign: int) -> None:
        """Add queries for the log-probability of `tokens[start:]` given the tokens before."""
        text = self.texts.setdefault(tuple(tokens[:-1]), len(self.texts))
        for position in range(start, len(tokens)):
            self.rows.append((text, position - 1, tokens[position], self.margin, sign))

    def build(self) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], int], _Queries]:
        """Return the texts to read, ordered by length; for each added text the index of the one that contains it; and
        the queries."""
        longest: dict[tuple[int, ...], tuple[int, ...]] = {}
        following: tuple[int, ...] = ()
        # In alphabetical order a text comes directly before the texts that continue it.
        for text in sorted(self.texts, reverse=True):
            longest[text] = longest[following] if following[: len(text)] == text and following else text
            following = text
        texts = sorted(set(longest.values()), key=lambda text: (len(text), text))
        index = {text: i for i, text in enumerate(texts)}
        container = {text: index[longest[text]] for text in self.texts}
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 5)
        rows[:, 0] = np.array([container[text] for text in self.texts])[rows[:, 0]]
        rows = rows[np.lexsort(rows.T[1::-1])]
        return texts, container, _Queries(*rows.T)


def _batches(
    texts: Sequence[tuple[int, ...]], queries: _Queries, sample: Int[np.ndarray, "n 2"], batch_tokens: int
) -> Iterator[_Batch]:
    """Split the texts, which are ordered by length, into batches of one length."""
    for length, index in indices_by_length(texts).items():
        rows = max(batch_tokens // length, 1)
        for first in range(index[0], index[-1] + 1, rows):
            last = min(first + rows, index[-1] + 1)
            chosen = slice(*np.searchsorted(queries.text, [first, last]))
            pairs = np.stack([queries.text[chosen] - first, queries.position[chosen]], axis=1)
            points, query_point = np.unique(pairs, axis=0, return_inverse=True)
            sampled = sample[slice(*np.searchsorted(sample[:, 0], [first, last]))]
            yield _Batch(
                tokens=torch.tensor(texts[first:last]),
                point_row=torch.tensor(points[:, 0]),
                point_position=torch.tensor(points[:, 1]),
                query_point=torch.tensor(query_point.reshape(-1)),
                query_token=torch.tensor(queries.token[chosen]),
                sample_row=torch.tensor(sampled[:, 0] - first),
                sample_position=torch.tensor(sampled[:, 1]),
            )
