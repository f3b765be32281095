"""The table of features: everything known of each feature on each task, a row apiece (features.parquet)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from crosstime.attribution.effects import Effects
from crosstime.attribution.relative import lifecycle, negligible, relative, sharing
from crosstime.crosscoder.crosscoder import Crosscoder

FLOOR = 1e-3
"""Share of a checkpoint's summed |IE| below which an effect counts for nothing in a feature's class."""


def feature_table(effects: Sequence[Effects], crosscoder: Crosscoder, frequency: Float[np.ndarray, " F"]) -> pa.Table:
    """One row per task and feature.

    Columns: task, feature, class (see `relative.sharing`), lifecycle (see `relative.lifecycle`), frequency (share of
    held-out tokens on which it fires), and for each checkpoint NAME: ie_NAME with its interval ie_low_NAME and
    ie_high_NAME, rel_ie_NAME with rel_ie_low_NAME and rel_ie_high_NAME, sign_consistency_NAME (share of the prompts
    with an effect whose effect has the sign of IE), decoder_norm_NAME and rel_dec_NAME.
    """
    return pa.concat_tables([_one_task(e, crosscoder, frequency) for e in effects])


@torch.no_grad()
def _one_task(effects: Effects, crosscoder: Crosscoder, frequency: Float[np.ndarray, " F"]) -> pa.Table:
    norms = crosscoder.decoder_norms().float().cpu().numpy()
    rel_dec = relative(norms.T)
    small = negligible(effects.ie, FLOOR)
    n = len(frequency)
    columns: dict[str, object] = {
        "task": pa.array([effects.task] * n, pa.string()),
        "feature": pa.array(np.arange(n, dtype=np.int32)),
        "class": pa.array(sharing(effects.rel_ie, small, effects.checkpoints), pa.string()),
        "lifecycle": pa.array(lifecycle(effects.rel_ie, small), pa.string()),
        "frequency": pa.array(frequency.astype(np.float32)),
    }
    for m, name in enumerate(effects.checkpoints):
        for column, values in (
            ("ie", effects.ie[m]),
            ("ie_low", effects.ie_low[m]),
            ("ie_high", effects.ie_high[m]),
            ("rel_ie", effects.rel_ie[:, m]),
            ("rel_ie_low", effects.rel_ie_low[:, m]),
            ("rel_ie_high", effects.rel_ie_high[:, m]),
            ("sign_consistency", effects.sign_consistency[m]),
            ("decoder_norm", norms[:, m]),
            ("rel_dec", rel_dec[:, m]),
        ):
            columns[f"{column}_{name}"] = pa.array(values.astype(np.float32))
    return pa.table(columns)
