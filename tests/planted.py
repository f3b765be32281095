"""Planted worlds: activations made of features whose schedules over the checkpoints are known, and a linear read-out.

A token of checkpoint m has the activation

    x_m = mean_m + sum_i f_i s_{i,m} u_{i,m} + noise,        ||u_{i,m}|| = 1,

and the metric at m reads the sum of the positions along w_m, so the truth about every feature is known exactly:

    RelDec_{i,m} = s_{i,m} / sum_m s_{i,m},
    IE_{i,m}     = mean over prompts of the sum over positions of f_i s_{i,m} (w_m . u_{i,m}).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.models.split import SplitLM
from crosstime.tasks.prompts import Prompts
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions

KINDS = ("emerging", "maintained", "dropped", "rotating", "irrelevant")
RIGHT, WRONG = 0, 1  # the token ids of the two answers in every planted world
MARGIN = 1e-4  # taken off every code by the true crosscoder, so that rounding fires no feature


class LinearLM(SplitLM):
    """A SplitLM without a transformer: the lower half looks tokens up, the upper half is linear in the residual.

    Logits at a position are the sum of the residuals up to it times the unembedding, so positions matter as in a causal
    model, integrated gradients are exact for any number of steps, and an ablation's effect equals its first order.
    """

    def __init__(self, embed: Float[Tensor, "V D"], unembed: Float[Tensor, "D V"], name: str) -> None:
        # Not SplitLM's own constructor: there is no transformers model to cut.
        self.name, self.layer, self.n_layers = name, 0, 2
        self.vocab_size, self.width = embed.shape
        self.dtype, self.device = embed.dtype, embed.device
        self.embed, self.unembed = embed, unembed

    def lower(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None
        return self.embed[tokens]

    def upper(
        self,
        residual: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        assert mask is None
        summed = residual.cumsum(dim=1)
        if positions is not None:
            summed = summed[torch.arange(len(summed)), positions]
        logits = summed @ self.unembed
        return logits if tokens is None else logits.gather(-1, tokens)

    def head(self, residual: Tensor) -> Tensor:
        return residual @ self.unembed

    def logits(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.upper(self.lower(tokens, mask), mask)

    def without_upper(self) -> LinearLM:
        return self


@dataclass(frozen=True)
class World:
    """One planted world of N tokens, M checkpoints, F features and width D."""

    kinds: tuple[str, ...]
    """[F] schedule of each feature, one of KINDS."""
    strengths: Float[Tensor, "F M"]
    """s: emerging 0..1, maintained 1, dropped 1..0, rotating 1 (its direction moves), irrelevant 1 (w . u = 0)."""
    directions: Float[Tensor, "F M D"]
    """u, unit vectors; the same at every checkpoint but for rotating features."""
    codes: Float[Tensor, "N F"]
    """f >= 0 of every token."""
    means: Float[Tensor, "M D"]
    readout: Float[Tensor, "M D"]
    """w: logit(RIGHT) - logit(WRONG) grows by w_m . x for each position."""
    rows: Float[Tensor, "N M D"]
    """x, the activations: what a crosscoder trains on."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"step{10**m}" for m in range(self.strengths.shape[1]))

    def features(self, kind: str) -> list[int]:
        """The features of one schedule."""
        return [i for i, found in enumerate(self.kinds) if found == kind]

    @property
    def dictionary(self) -> Float[Tensor, "F M D"]:
        """s u: what one unit of each feature adds to the activation of each checkpoint."""
        return self.strengths[:, :, None] * self.directions

    @property
    def effect_per_unit(self) -> Float[Tensor, "F M"]:
        """What one unit of each feature, at one position, adds to logit(RIGHT) - logit(WRONG)."""
        return (self.dictionary * self.readout).sum(-1)

    @property
    def rel_dec(self) -> Float[Tensor, "M F"]:
        """Planted RelDec, for decoder norms in raw units."""
        return (self.strengths / self.strengths.sum(dim=1, keepdim=True)).T

    @property
    def rel_ie(self) -> Float[Tensor, "M F"]:
        """Planted RelIE (the shared code cancels); NaN for irrelevant features."""
        size = self.effect_per_unit.abs()
        relative = size / size.sum(dim=1, keepdim=True)
        relative[self.features("irrelevant")] = torch.nan
        return relative.T

    def ie(self, prompts: Prompts, first_encoded: int = 1) -> Float[Tensor, "M F"]:
        """Planted indirect effects on these prompts: > 0 where a feature supports RIGHT."""
        codes = torch.stack([self.codes[tokens[first_encoded:]].sum(0) for tokens in prompts.tokens]).mean(0)
        return (codes[:, None] * self.effect_per_unit).T

    def models(self, n_tokens: int | None = None) -> list[LinearLM]:
        """One linear model per checkpoint, whose token i has the activation rows[i]; a vocabulary of n_tokens or N."""
        n_tokens = n_tokens or len(self.rows)
        common = torch.randn(self.rows.shape[-1], n_tokens, generator=torch.Generator().manual_seed(0)) / 10
        models = []
        for m, name in enumerate(self.names):
            unembed = common.clone()
            unembed[:, RIGHT], unembed[:, WRONG] = self.readout[m] / 2, -self.readout[m] / 2
            models.append(LinearLM(self.rows[:n_tokens, m].clone(), unembed, name))
        return models

    def crosscoder(self, positions: Positions = Positions()) -> Crosscoder:  # noqa: B008 (frozen)
        """The crosscoder that knows the truth: without noise it finds `codes` less MARGIN, and from them `rows`."""
        n_features, _, width = self.directions.shape
        crosscoder = Crosscoder(CrosscoderConfig(self.names, 0, width, n_features, positions=positions))
        encoder = torch.linalg.pinv(self.dictionary.flatten(1))  # [M D, F]
        with torch.no_grad():
            crosscoder.W_enc.copy_(encoder.reshape(crosscoder.W_enc.shape))
            crosscoder.b_enc.copy_(-self.means.flatten() @ encoder - MARGIN)
            crosscoder.W_dec.copy_(self.dictionary)
            crosscoder.b_dec.copy_(self.means)
        return crosscoder

    def corpus(self, n_blocks: int, context: int, seed: int = 0) -> Corpus:
        """Blocks of random tokens, for the models of the whole vocabulary."""
        blocks = np.random.default_rng(seed).integers(0, len(self.rows), (n_blocks, context), dtype=np.uint16)
        return Corpus(blocks, "planted")

    def prompts(self, *, per_length: int = 8, lengths: tuple[int, ...] = (3, 5), seed: int = 0) -> Prompts:
        """Prompts of random tokens, some of each length, with the answers that the read-outs are about."""
        rng = np.random.default_rng(seed)
        tokens = [rng.integers(0, len(self.rows), length).tolist() for length in lengths for _ in range(per_length)]
        n = len(tokens)
        return Prompts("planted", tokens, torch.full((n,), RIGHT), torch.full((n,), WRONG), torch.arange(n))


def plant(
    *,
    n_rows: int = 256,
    n_checkpoints: int = 3,
    per_kind: int = 2,
    width: int = 24,
    density: float = 0.15,
    noise: float = 0.0,
    seed: int = 0,
) -> World:
    """Make a world with `per_kind` features of each of KINDS.

    A feature fires on a token with probability `density`, with a code between 1 and 2. The read-outs of the checkpoints
    are orthogonal to each other; every relevant feature has a component along each of them, of a length between 0.35
    and 0.85 over sqrt(M) and of either sign, so that RelIE differs from RelDec and no effect is near zero by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = tuple(kind for kind in KINDS for _ in range(per_kind))
    n_features = len(kinds)
    rising = torch.linspace(0, 1, n_checkpoints)
    level = {"emerging": rising, "dropped": rising.flip(0)}
    strengths = torch.stack([level.get(kind, torch.ones(n_checkpoints)) for kind in kinds])

    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0].T
    readout, rest = basis[:n_checkpoints], basis[n_checkpoints:]
    outside = torch.randn(n_features, n_checkpoints, len(rest), generator=generator)
    rotating = torch.tensor([kind == "rotating" for kind in kinds])
    outside[~rotating] = outside[~rotating, :1]
    along = torch.empty(n_features, n_checkpoints).uniform_(0.35, 0.85, generator=generator) / n_checkpoints**0.5
    along *= torch.randint(0, 2, along.shape, generator=generator) * 2 - 1
    along[[kind == "irrelevant" for kind in kinds]] = 0
    # Coordinates along the read-outs first, then along the rest of the basis, normalised to length 1 together.
    aside = (1 - along.square().sum(1))[:, None, None].sqrt() * outside / outside.norm(dim=-1, keepdim=True)
    directions = along[:, None] @ readout + aside @ rest

    fires = torch.rand(n_rows, n_features, generator=generator) < density
    codes = fires * torch.empty(n_rows, n_features).uniform_(1, 2, generator=generator)
    means = 0.5 * torch.randn(n_checkpoints, width, generator=generator)
    rows = means + torch.einsum("nf,fmd->nmd", codes, strengths[:, :, None] * directions)
    rows += noise * torch.randn(rows.shape, generator=generator)
    return World(kinds, strengths, directions, codes, means, readout.clone(), rows)
