import dataclasses

import numpy as np

from crosstime.evaluation.diagnostics import LABELS
from crosstime.report.diagnosis import LABEL_WORDS, against_absence
from crosstime.report.features import by_task
from crosstime.report.summary import label_counts


def test_every_label_has_words():
    assert set(LABEL_WORDS) == set(LABELS)


def test_only_checkpoints_at_which_the_decoder_is_absent_speak_against_it(synthetic):
    found = dataclasses.replace(
        synthetic.diagnostics(2, ["a", "b", "c"], np.random.default_rng(0)),
        relative_norm=np.array([[1.0, 0.1, 0.05], [1.0, 0.9, 0.8]]).T,
        nu_error=np.array([[1.0, 0.3, np.nan], [1.0, 1.0, 1.0]]).T,
        nu_reconstruction=np.array([[1.0, 0.1, 0.2], [1.0, 1.0, 1.0]]).T,
    )
    features, error, reconstruction = against_absence(found)
    assert (features.tolist(), error.tolist(), reconstruction.tolist()) == ([0], [0.3], [0.2])


def test_every_feature_is_counted_under_one_label(synthetic):
    data = synthetic.whole_data(n_features=60)
    tasks = by_task(data.features)
    rows = label_counts(data.diagnostics, tasks)
    assert sum(row.all for row in rows) == 60
    for i, features in enumerate(tasks.values()):
        assert sum(row.tasks[i][0] for row in rows) == features.counts.sum()
        assert all(specific <= counted for counted, specific in (row.tasks[i] for row in rows))
