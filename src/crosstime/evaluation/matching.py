"""Does a crosscoder of another seed find the same features?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.evaluation.latent_scaling import scaled_decoder


@torch.no_grad()
def matched_cosines(one: Crosscoder, other: Crosscoder) -> Float[np.ndarray, " F"]:
    """For each feature of one crosscoder, its cosine with its partner in the other.

    A feature's vector is that of its decoders at all checkpoints, side by side, in scaled units. Partners are assigned
    one to one so that the sum of the cosines is largest (Hungarian method), which takes seconds for 8,000 features and
    grows with the cube of their number.

    Raises:
        InputError: the crosscoders have other checkpoints or another number of features.
    """
    ours, theirs = one.config, other.config
    if (ours.checkpoints, ours.features, ours.width) != (theirs.checkpoints, theirs.features, theirs.width):
        raise InputError(
            f"crosscoders of {ours.features} features over {list(ours.checkpoints)} and of {theirs.features} over "
            f"{list(theirs.checkpoints)} cannot be matched: they must compare the same checkpoints"
        )
    vectors = [normalize(scaled_decoder(c).flatten(1), dim=1) for c in (one, other)]
    cosine = (vectors[0] @ vectors[1].to(vectors[0].device).T).cpu().numpy()
    return cosine[linear_sum_assignment(cosine, maximize=True)]


def stability(crosscoders: Sequence[Crosscoder]) -> float:
    """Mean cosine of matched features, over all pairs of crosscoders: 1 where every seed finds the same features."""
    return float(np.mean([matched_cosines(a, b).mean() for a, b in combinations(crosscoders, 2)]))
