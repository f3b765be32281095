"""Planted worlds in which the sparsity penalty's artefacts are known: complete shrinkage and decoupled pairs.

Two crosscoders: one made by hand from a world's truth, with faults put in, and one that the L1 penalty itself misleads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from planted import World, plant

LABEL_OF_KIND = {"emerging": "late", "dropped": "early", "maintained": "persistent", "irrelevant": "persistent"}


@dataclass(frozen=True)
class Faulty:
    """A crosscoder with faults, and what ought to be said of each of its features."""

    world: World
    crosscoder: Crosscoder
    label: list[str]
    complement: dict[int, int]
    """The halves of every decoupled pair, each to the other."""


def faulty(*, per_kind: int = 60, noise: float = 0.1, seed: int = 0) -> Faulty:
    """The true crosscoder of a world of 5 `per_kind` features, with faults in those that are maintained.

    A third of them loses its decoder at the first or the last checkpoint (complete shrinkage). A third is split in two
    that fire alike, one of which writes at the last checkpoint only and the other everywhere else (decoupling). One
    feature that never fires is added.
    """
    world = plant(n_rows=4096, per_kind=per_kind, width=128, density=0.03, noise=noise, seed=seed)
    true = world.crosscoder()
    turned = (world.directions[:, 0] * world.directions[:, -1]).sum(-1) < 0.5
    label = [
        LABEL_OF_KIND.get(kind) or ("rotated" if turned[i] else "persistent") for i, kind in enumerate(world.kinds)
    ]
    good = world.features("maintained") + world.features("irrelevant")
    shrunk, split = good[0::3], good[1::3]
    n_true, n = len(label), len(label) + len(split) + 1
    crosscoder = Crosscoder(CrosscoderConfig(world.names, 0, true.config.width, n))
    source = [*range(n_true), *split, 0]
    rows = torch.cat([world.rows.flatten(1), torch.ones(len(world.rows), 1)], 1)
    encoder = torch.linalg.lstsq(rows, world.codes).solution[:, source]  # the best linear one, given the noise
    with torch.no_grad():
        crosscoder.W_enc.copy_(encoder[:-1].reshape(crosscoder.W_enc.shape))
        crosscoder.b_enc.copy_(encoder[-1] - 0.3)  # above the noise, so that no feature fires on it
        crosscoder.W_dec.copy_(true.W_dec[source])
        crosscoder.b_dec.copy_(true.b_dec)
        for k, i in enumerate(shrunk):
            crosscoder.W_dec[i, 0 if k % 2 else -1] = 0
        crosscoder.W_dec[split, -1] = 0
        crosscoder.W_dec[n_true:, :-1] = 0
        crosscoder.b_enc[-1] = -1000
    for i in [*shrunk, *split]:
        label[i] = "artefact"
    label += ["artefact"] * len(split) + ["unclear"]
    pairs = {i: n_true + k for k, i in enumerate(split)}
    return Faulty(world, crosscoder, label, pairs | {b: a for a, b in pairs.items()})


@dataclass(frozen=True)
class Misled:
    """A crosscoder trained under L1 on two checkpoints, and what lies at them."""

    world: World
    crosscoder: Crosscoder


def misled(*, per_kind: int = 24, steps: int = 600, seed: int = 0) -> Misled:
    """Train on a world that the penalty distorts.

    Four kinds of features: of the first checkpoint only, of the second only, shared, and weak at the first (0.4 of its
    strength at the second), which the penalty shrinks to nothing there. A fifth fires at both on the same tokens but
    with a code of its own at each, which two exclusive features reconstruct better than a shared one.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule = {"dropped": (1, 0), "emerging": (0, 1), "maintained": (1, 1), "weak": (0.4, 1), "apart": (1, 1)}
    kinds = tuple(kind for kind in schedule for _ in range(per_kind))
    strengths = torch.tensor([schedule[kind] for kind in kinds])
    directions = normalize(torch.randn(len(kinds), 1, 64, generator=generator), dim=-1).expand(-1, 2, -1)
    fires = torch.rand(4096, len(kinds), 1, generator=generator) < 0.03
    apart = torch.tensor([kind == "apart" for kind in kinds])
    codes = fires * torch.empty(4096, len(kinds), 1).uniform_(1, 2, generator=generator).repeat(1, 1, 2)
    codes[:, apart] = fires[:, apart] * torch.empty(4096, per_kind, 2).uniform_(0.2, 2.8, generator=generator)
    rows = torch.einsum("nfm,fmd->nmd", codes, strengths[:, :, None] * directions)
    rows += 0.02 * torch.randn(rows.shape, generator=generator)
    world = World(kinds, strengths, directions, codes[..., 0], torch.zeros(2, 64), torch.zeros(2, 64), rows)
    crosscoder = Crosscoder(CrosscoderConfig(world.names, 0, 64, 2 * len(kinds)))
    crosscoder.initialise(rows.mean(0), torch.ones(2), decoder_norm=0.3, tied=False, generator=generator)
    _train(crosscoder, rows, steps=steps, l1=1.2, generator=generator)
    return Misled(world, crosscoder)


def _train(
    crosscoder: Crosscoder, rows: Float[Tensor, "N M D"], *, steps: int, l1: float, generator: torch.Generator
) -> None:
    """Plain Adam on the paper's loss."""
    optimiser = torch.optim.Adam(crosscoder.parameters(), lr=5e-3)
    for step in range(steps):
        x = rows[torch.randint(len(rows), (512,), generator=generator)]
        f = crosscoder.encode(x)
        penalty = f @ crosscoder.decoder_norms().sum(0)
        loss = (crosscoder.decode(f) - x).square().sum((1, 2)) + l1 * min(1, 10 * step / steps) * penalty
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * min(1, 3 * (1 - step / steps))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
