import dataclasses

import numpy as np

from crosstime.evaluation.diagnostics import LABELS
from crosstime.report.plots.diagnosis import LABEL_COLOURS, absent_decoders


def test_every_label_has_a_colour():
    assert set(LABEL_COLOURS) == set(LABELS)


def test_only_checkpoints_with_an_absent_decoder_count(synthetic):
    found = dataclasses.replace(
        synthetic.diagnostics(2, ["a", "b", "c"], np.random.default_rng(0)),
        relative_norm=np.array([[1.0, 0.1, 0.05], [1.0, 0.9, 0.8]]).T,
        nu_error=np.array([[1.0, 0.3, np.nan], [1.0, 1.0, 1.0]]).T,
        nu_reconstruction=np.array([[1.0, 0.1, 0.2], [1.0, 1.0, 1.0]]).T,
    )
    features, error, reconstruction = absent_decoders(found)
    assert (features.tolist(), error.tolist(), reconstruction.tolist()) == ([0], [0.3], [0.2])
