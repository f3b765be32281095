import dataclasses

import numpy as np
import pytest

from crosstime.report.diagnosis import diagnosis
from crosstime.report.features import by_task
from crosstime.report.summary import label_counts


def test_the_table_becomes_arrays(synthetic):
    data = synthetic.whole_data(n_features=30)
    found = diagnosis(data.diagnostics, data.chosen)
    assert found.twin[3] == 5
    assert found.strength.shape == (30, 3)
    with pytest.raises(ValueError, match="no column 'strength_step9'"):
        diagnosis(data.diagnostics, ["step9"])
    with pytest.raises(ValueError, match="every feature once, in order"):
        diagnosis(data.diagnostics.slice(1), data.chosen)


def test_only_checkpoints_at_which_the_decoder_is_absent_can_refute_it(synthetic):
    data = synthetic.whole_data(n_features=2)
    found = dataclasses.replace(
        diagnosis(data.diagnostics, data.chosen),
        strength=np.array([[1.0, 0.1, 0.05], [1.0, 0.9, 0.8]]),
        nu_error=np.array([[1.0, 0.3, np.nan], [1.0, 1.0, 1.0]]),
        nu_reconstruction=np.array([[1.0, 0.1, 0.2], [1.0, 1.0, 1.0]]),
    )
    features, error, reconstruction = found.refuted()
    assert (features.tolist(), error.tolist(), reconstruction.tolist()) == ([0], [0.3], [0.2])


def test_every_feature_is_counted_under_one_label(synthetic):
    data = synthetic.whole_data(n_features=60)
    tasks = by_task(data.features, data.chosen)
    rows = label_counts(diagnosis(data.diagnostics, data.chosen), tasks)
    assert sum(row.all for row in rows) == 60
    for i, features in enumerate(tasks.values()):
        assert sum(row.tasks[i][0] for row in rows) == features.counts.sum()
        assert all(specific <= counted for counted, specific in (row.tasks[i] for row in rows))
