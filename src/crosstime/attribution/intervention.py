"""What a task's answers become when features are set to another value: the measuring loop of every ablation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from crosstime.attribution.activations import encode, residuals
from crosstime.base.memory import AdaptiveBatches
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts


@dataclass(frozen=True)
class Answers:
    """log p(right) - log p(wrong) at the last token of every prompt, in nats: float64, on the CPU.

    The softmax normaliser cancels, so it is logit(right) - logit(wrong) as well: minus the metric of the effects
    (arXiv 2509.05291).
    """

    clean: Float[Tensor, "M N"]
    """Of the model as it is."""
    alone: Float[Tensor, "M K N"]
    """With one feature at its new value."""
    together: Float[Tensor, "M G N"]
    """With all features of a group at theirs."""


@torch.inference_mode()
def intervene(
    crosscoder: Crosscoder,
    models: Sequence[SplitLM],
    prompts: Prompts,
    features: Sequence[int],
    groups: Sequence[Sequence[Sequence[int]]] = (),
    *,
    baseline: Float[Tensor, " F"] | None = None,
    batch_size: int,
) -> Answers:
    """Set features to a new value at every encoded position, keep the error, and run the blocks above the layer.

    A row of a batch is a prompt with something changed. Where the new value is the old one, as where a feature that
    does not fire is set to zero, nothing runs: the answer is the clean one, exactly.

    Args:
        crosscoder: F features over M checkpoints.
        models: one per checkpoint, in the crosscoder's order.
        prompts: the task, tokenised.
        features: K features, to be set one by one.
        groups: for each checkpoint its G groups of features, to be set together.
        baseline: the new value of every feature; 0 without it.
        batch_size: rows per forward pass; the answers do not depend on it. Half as many from then on, with a
            `MemoryWarning`, when memory runs out.

    Raises:
        InputError: there is not enough memory for one prompt.
    """
    n_groups = len(groups[0]) if groups else 0
    clean = torch.zeros(len(models), len(prompts), dtype=torch.float64)
    alone, together = (
        torch.zeros(len(models), cases, len(prompts), dtype=torch.float64) for cases in (len(features), n_groups)
    )
    batches = AdaptiveBatches("ablate", "prompt", None, lower="the number of tokens of the prompts")
    chosen = torch.tensor(features, dtype=torch.long, device=crosscoder.W_enc.device)

    def work(index: Tensor) -> tuple[Tensor, Answers]:
        x = residuals(crosscoder, models, prompts.batch(index))
        f = encode(crosscoder, x)
        new = _new_codes(crosscoder, f, baseline)
        found = Answers(*(whole[..., index] for whole in (clean, alone, together)))
        for m, model in enumerate(models):
            batch = _Batch(model, x[:, :, m], prompts.right[index], prompts.wrong[index])
            found.clean[m] = batch.answers(torch.arange(len(index)), 0)
            removed, decoder = crosscoder.at(f, m) - crosscoder.at(new, m), crosscoder.raw_decoder(m)
            moved = (removed != 0).any(dim=1)
            by_one = partial(_one, removed[..., chosen], decoder[chosen])
            found.alone[m] = batch.without(moved[:, chosen], by_one, found.clean[m], batch_size, batches)
            if groups:
                members = _members(groups[m], crosscoder)
                by_group = partial(_group, removed, decoder, members)
                concerned = moved.float() @ members.T > 0
                found.together[m] = batch.without(concerned, by_group, found.clean[m], batch_size, batches)
        return index, found

    with tqdm(total=len(prompts), desc=f"ablate on {prompts.task}", unit="prompt", leave=False, disable=None) as bar:
        for of_length, tokens in prompts.by_length(batch_size):
            for index, found in batches.run(of_length, work, length=tokens.shape[1]):
                clean[:, index] = found.clean
                alone[..., index], together[..., index] = found.alone, found.together
                bar.update(len(index))
    return Answers(clean, alone, together)


@dataclass(frozen=True)
class _Batch:
    """Prompts of one length at one checkpoint."""

    model: SplitLM
    x: Float[Tensor, "B S D"]
    right: Int[Tensor, " B"]
    wrong: Int[Tensor, " B"]

    def answers(self, b: Int[Tensor, " rows"], removed: Float[Tensor, "rows S D"] | int) -> Float[Tensor, " rows"]:
        """The answers to prompts b when something is taken from their activations."""
        residual, numbers = (self.x[b] - removed).to(self.model.device), b.cpu()
        last = torch.full((len(b),), residual.shape[1] - 1, device=residual.device)
        answers = torch.stack([self.right[numbers], self.wrong[numbers]], dim=1).to(residual.device)
        right, wrong = self.model.upper(residual, positions=last, tokens=answers).cpu().double().unbind(1)
        return right - wrong

    def without(
        self,
        concerned: Bool[Tensor, "B cases"],
        removed: Callable[[Tensor, Tensor], Tensor],
        clean: Float[Tensor, " B"],
        batch_size: int,
        batches: AdaptiveBatches,
    ) -> Float[Tensor, "cases B"]:
        """The answers in each case, which are the clean ones where the prompt is not concerned.

        `removed(b, case)` is what the cases take from the prompts b, [rows, S, D].
        """
        answers = clean.repeat(concerned.shape[1], 1)

        def work(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            b, case = pairs.unbind(1)
            return case.cpu(), b.cpu(), self.answers(b, removed(b, case))

        for pairs in concerned.nonzero().split(batch_size):
            for case, b, found in batches.run(pairs, work, length=self.x.shape[1]):
                answers[case, b] = found
        return answers


def _new_codes(
    crosscoder: Crosscoder, f: Float[Tensor, "B S F"], baseline: Float[Tensor, " F"] | None
) -> Float[Tensor, "B S F"]:
    """What the features are set to: nothing at positions that are left alone, since there is nothing there."""
    new = torch.zeros_like(f)
    if baseline is not None:
        new[:, crosscoder.config.positions.first_encoded :] = baseline.to(f)
    return new


def _one(
    removed: Float[Tensor, "B S K"], decoder: Float[Tensor, "K D"], b: Int[Tensor, " rows"], k: Int[Tensor, " rows"]
) -> Float[Tensor, "rows S D"]:
    """What setting feature k takes from prompt b."""
    return removed[b, :, k].unsqueeze(-1) * decoder[k].unsqueeze(1)


def _group(
    removed: Float[Tensor, "B S F"],
    decoder: Float[Tensor, "F D"],
    members: Float[Tensor, "G F"],
    b: Int[Tensor, " rows"],
    g: Int[Tensor, " rows"],
) -> Float[Tensor, "rows S D"]:
    """What setting all features of group g takes from prompt b."""
    return (removed[b] * members[g].unsqueeze(1)) @ decoder


def _members(groups: Sequence[Sequence[int]], crosscoder: Crosscoder) -> Float[Tensor, "G F"]:
    """1 where a group holds a feature, else 0."""
    members = torch.zeros(len(groups), crosscoder.config.features, device=crosscoder.W_enc.device)
    for row, group in zip(members, groups, strict=True):
        row[list(group)] = 1
    return members
