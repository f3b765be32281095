"""What a checkpoint prefers on some tasks: every text is read once, and only the logits that matter are looked at.

The two sentences of a pair share their beginning, a prompt is the beginning of a sentence, and a sentence may occur in
several tasks. So the texts are reduced to those that no other text continues, and what is asked of them (the
log-probability of this token after that position) is written down once; each checkpoint answers the same questions.
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
from crosstime.evaluation.cross_entropy import logits_in_parts
from crosstime.models.split import SplitLM, finite_residual
from crosstime.tasks.prompts import indices_by_length
from crosstime.tasks.task import Task
from crosstime.text.positions import Positions
from crosstime.text.tokens import common_length


@dataclass(frozen=True)
class TaskScores:
    """What one checkpoint prefers, pair by pair."""

    sentence_margins: list[Float[np.ndarray, " _"]]
    """Per task: log-likelihood of the good sentence minus that of the bad one, in nats."""
    logit_margins: list[Float[np.ndarray, " _"]]
    """Per task: logit of the right answer minus that of the wrong one."""
    activations: Float[Tensor, "n D"]
    """The residual stream at the sampled tokens, bfloat16 on the CPU."""


@dataclass(frozen=True)
class _Questions:
    """Log-probabilities to look up; each is added, with its sign, to one margin."""

    text: Int[np.ndarray, " Q"]
    position: Int[np.ndarray, " Q"]
    token: Int[np.ndarray, " Q"]
    """The token that would follow this position of this text."""
    margin: Int[np.ndarray, " Q"]
    sign: Int[np.ndarray, " Q"]


@dataclass(frozen=True)
class _Batch:
    """Texts of one length, the points (row, position) of which logits are needed, and the questions about them.

    Points are ordered by row and position, questions by point.
    """

    tokens: Int[Tensor, "B S"]
    point_row: Int[Tensor, " P"]
    point_position: Int[Tensor, " P"]
    question_point: Int[Tensor, " Q"]
    question_token: Int[Tensor, " Q"]
    sample_row: Int[Tensor, " n"]
    sample_position: Int[Tensor, " n"]

    def part(self, rows: slice) -> _Batch:
        """Some of the texts, with their points, questions and samples."""
        points, samples = (_within(column, rows) for column in (self.point_row, self.sample_row))
        questions = _within(self.question_point, points)
        return _Batch(
            tokens=self.tokens[rows],
            point_row=self.point_row[points] - rows.start,
            point_position=self.point_position[points],
            question_point=self.question_point[questions] - points.start,
            question_token=self.question_token[questions],
            sample_row=self.sample_row[samples] - rows.start,
            sample_position=self.sample_position[samples],
        )

    def answers(self, rows: slice, logits: Float[Tensor, "rows S V"]) -> Float[np.ndarray, " A"]:
        """The log-probabilities that are asked of some rows, given these rows' logits."""
        asked = self.part(rows)
        chosen = logits[asked.point_row, asked.point_position].float()
        of_point = chosen.logsumexp(-1)[asked.question_point]
        return (chosen[asked.question_point, asked.question_token] - of_point).cpu().double().numpy()


def _within(numbers: Int[Tensor, " n"], wanted: slice) -> slice:
    """Where, in ascending numbers, those stand that a slice holds."""
    return slice(*torch.searchsorted(numbers, torch.tensor([wanted.start, wanted.stop])).tolist())


class TaskReader:
    """Tasks made ready to be put to any number of checkpoints that share a tokenizer.

    Args:
        tasks: their pairs are read as sentences and, where the answers are single tokens, as prompts.
        tokenizer: of the checkpoints.
        positions: the policy for position 0. The first token of a text is never predicted, so without BOS the first
            token of a sentence does not count.
        max_tokens_per_batch: tokens that go through a model at once.
        sample: the activations of at most this many tokens are kept, spread evenly over the good sentences.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions,
        *,
        max_tokens_per_batch: int,
        sample: int,
    ) -> None:
        sentences = [task.sentences(tokenizer, positions) for task in tasks]
        prompts = [task.find_prompts(tokenizer, positions) for task in tasks]
        self._tokenizer = tokenizer
        self.n_pairs, self.n_prompts = [len(task) for task in tasks], [len(found) for found in prompts]

        asked = _Asked()
        for pairs in sentences:
            for good, bad in pairs:
                # What both share has the same probability in both: only the rest can decide.
                start = max(common_length(good, bad), 1)
                asked.next_margin()
                asked.continuation(good, start, +1)
                asked.continuation(bad, start, -1)
        for found in prompts:
            for prompt, right, wrong in zip(found.tokens, found.right.tolist(), found.wrong.tolist(), strict=True):
                asked.next_margin()
                asked.continuation([*prompt, right], len(prompt), +1)
                asked.continuation([*prompt, wrong], len(prompt), -1)
        texts, home, questions = asked.settle()
        self._margin, self._sign = questions.margin, questions.sign

        kept = {(home[tuple(good[:-1])], p) for pairs in sentences for good, _ in pairs for p in range(len(good) - 1)}
        points = sorted(point for point in kept if point[1] >= positions.first_encoded)
        if not points:
            raise InputError(
                "the sentences of the tasks hold one token each: there is no text to compare activations on"
            )
        spread = np.linspace(0, len(points) - 1, min(sample, len(points))).round().astype(int)
        chosen = np.array(points)[spread]
        self.batches = list(_batches(texts, questions, chosen, max_tokens_per_batch))

    def read(self, lm: SplitLM, batches: AdaptiveBatches, advance: Callable[[int], object]) -> TaskScores:
        """Put the tasks to a checkpoint.

        Args:
            lm: the checkpoint.
            parts: in which batches are read.
            advance: is told, after each batch, how many tokens were read.

        Raises:
            InputError: an activation is not finite, or there is not enough memory for one text.
        """
        answers, samples = [], []
        for batch in self.batches:
            count, length = batch.tokens.shape
            for answered, sample in batches.run(torch.arange(count), partial(self._read, lm, batch), length=length):
                answers += answered
                samples.append(sample)
            advance(batch.tokens.numel())
        sizes = self.n_pairs + self.n_prompts
        margins = np.zeros(sum(sizes))
        np.add.at(margins, self._margin, self._sign * np.concatenate(answers))
        by_task = np.split(margins, np.cumsum(sizes)[:-1])
        return TaskScores(by_task[: len(self.n_pairs)], by_task[len(self.n_pairs) :], torch.cat(samples))

    def _read(self, lm: SplitLM, batch: _Batch, rows: Int[Tensor, " rows"]) -> tuple[list[np.ndarray], Tensor]:
        """The answers to what is asked of neighbouring rows of a batch, and their sampled activations."""
        part = batch.part(slice(int(rows[0]), int(rows[-1]) + 1))
        residual = finite_residual(lm, part.tokens, self._tokenizer)
        sample = residual[part.sample_row, part.sample_position].to("cpu", torch.bfloat16)
        return [part.answers(some, logits) for some, logits in logits_in_parts(lm, residual)], sample


class _Asked:
    """Collects texts and the questions about them."""

    def __init__(self) -> None:
        self.texts: dict[tuple[int, ...], int] = {}
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.margin = -1

    def next_margin(self) -> None:
        """What is asked from here on adds up to another margin."""
        self.margin += 1

    def continuation(self, tokens: Sequence[int], start: int, sign: int) -> None:
        """Ask for the log-probability of `tokens[start:]` after what stands before."""
        text = self.texts.setdefault(tuple(tokens[:-1]), len(self.texts))
        for position in range(start, len(tokens)):
            self.rows.append((text, position - 1, tokens[position], self.margin, sign))

    def settle(self) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], int], _Questions]:
        """The texts to read, ordered by length; for each text met, the one that contains it; and the questions."""
        home: dict[tuple[int, ...], tuple[int, ...]] = {}
        following: tuple[int, ...] = ()
        # In alphabetical order a text stands directly before the texts that continue it.
        for text in sorted(self.texts, reverse=True):
            home[text] = home[following] if following[: len(text)] == text and following else text
            following = text
        texts = sorted(set(home.values()), key=lambda text: (len(text), text))
        index = {text: i for i, text in enumerate(texts)}
        homes = {text: index[home[text]] for text in self.texts}
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 5)
        rows[:, 0] = np.array([homes[text] for text in self.texts])[rows[:, 0]]
        rows = rows[np.lexsort(rows.T[1::-1])]
        return texts, homes, _Questions(*rows.T)


def _batches(
    texts: Sequence[tuple[int, ...]], questions: _Questions, sample: Int[np.ndarray, "n 2"], max_tokens: int
) -> Iterator[_Batch]:
    """Texts in their order, which is by length, in batches of one length."""
    for length, index in indices_by_length(texts).items():
        rows = max(max_tokens // length, 1)
        for first in range(index[0], index[-1] + 1, rows):
            last = min(first + rows, index[-1] + 1)
            asked = slice(*np.searchsorted(questions.text, [first, last]))
            places = np.stack([questions.text[asked] - first, questions.position[asked]], axis=1)
            points, question_point = np.unique(places, axis=0, return_inverse=True)
            chosen = sample[slice(*np.searchsorted(sample[:, 0], [first, last]))]
            yield _Batch(
                tokens=torch.tensor(texts[first:last]),
                point_row=torch.tensor(points[:, 0]),
                point_position=torch.tensor(points[:, 1]),
                question_point=torch.tensor(question_point.reshape(-1)),
                question_token=torch.tensor(questions.token[asked]),
                sample_row=torch.tensor(chosen[:, 0] - first),
                sample_position=torch.tensor(chosen[:, 1]),
            )
