import numpy as np
import pyarrow as pa
import pytest

from crosstime.report.exact import COLUMNS, by_task, spearman


def table(checkpoints, exact, features=(4, 7)):
    n = len(checkpoints)
    rows = {
        "task": ["t"] * len(features) * n,
        "feature": np.repeat(features, n),
        "checkpoint": checkpoints * len(features),
    }
    return pa.table(rows | {name: np.ravel(exact) for name in COLUMNS})


def test_rows_become_features_by_checkpoints():
    found = by_task(table(["a", "b"], [[1.0, 3.0], [-2.0, 2.0]]), ["a", "b"])["t"]
    assert found.feature.tolist() == [4, 7]
    assert found.row == {4: 0, 7: 1}
    assert found.exact.tolist() == [[1.0, 3.0], [-2.0, 2.0]]
    assert found.rel_ie.tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match="are not of the checkpoints a, c, in order"):
        by_task(table(["a", "b"], [[1.0, 3.0], [-2.0, 2.0]]), ["a", "c"])


def test_ranks_are_correlated_where_both_are_known():
    a = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    assert spearman(a, a**3) == 1.0
    assert spearman(a, -a) == -1.0
    assert np.isnan(spearman(a, np.ones(5)))
    assert np.isnan(spearman(a[:2], a[:2]))
