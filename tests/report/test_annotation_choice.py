"""Which features are shown to annotators, and what of them."""

import numpy as np
import pyarrow as pa
import pytest

from crosstime.attribution.features import FeatureTable, long_table
from crosstime.evaluation.contexts import Context, FeatureContexts
from crosstime.report.annotation_choice import CONTEXTS, rows


def _task(task, ie):
    """Four features whose effects at two checkpoints are given; feature n has its larger decoder at step1 + n % 2."""
    columns = {
        "class": [f"class {n}" for n in range(4)],
        "ie": np.array(ie, dtype=np.float32),
        "rel_ie": np.float32([[0.25, 0.5, 1.0, np.nan], [0.75, 0.5, 0.0, np.nan]]),
        "decoder_norm": np.float32([[2, 1, 2, 1], [1, 2, 1, 2]]),
    }
    return long_table(task, ["step1", "step2"], np.arange(4), columns)


@pytest.fixture
def features():
    one = _task("one", [[5, 0, -1, 0], [0, 0, 0, 0]])
    two = _task("two", [[0, 0, 0, 0], [-9, 0, 2, 1]])
    return FeatureTable(pa.concat_tables([one, two]))


@pytest.fixture
def contexts():
    def of(feature, n):
        tokens = ["The", f" key {n}", "\nto", " it"]
        promoted = {"step1": [(" are", 2.0), (" is", 1.0)], "step2": [(" late", 1.0)]}
        return FeatureContexts(feature, [Context(tokens, [0.0, 2.0, 1.0, 0.0], 1)] * n, promoted, {}, 2.0)

    return {0: of(0, 1), 2: of(2, 7)}


def test_the_union_over_tasks_and_checkpoints_by_size_of_effect(features, contexts):
    assert [row["feature_id"] for row in rows(features, contexts, top=1)] == [0]
    assert [row["feature_id"] for row in rows(features, contexts, top=2)] == [0, 2]
    # Feature 1 has no effect anywhere, so it is never shown.
    assert [row["feature_id"] for row in rows(features, contexts, top=4)] == [0, 2, 3]


def test_what_is_shown(features, contexts):
    zero, two, three = rows(features, contexts, top=4)
    assert zero == {
        "feature_id": 0,
        "contexts": "The «key 1»↵to it",
        "promoted": "“ are”, “ is”",
        "task": "two",
        "class": "class 0",
        "rel_ie": "step1 0.25, step2 0.75",
    }
    assert two["contexts"].count("\n") == CONTEXTS - 1
    assert (three["contexts"], three["promoted"]) == ("", "")


def test_blind_hides_and_shuffles_the_same_way_each_time(features, contexts):
    blind = rows(features, contexts, top=4, blind=True, seed=1)
    assert all(list(row) == ["feature_id", "contexts", "promoted"] for row in blind)
    assert "step" not in str(blind)
    assert blind == rows(features, contexts, top=4, blind=True, seed=1)
    orders = {
        tuple(row["feature_id"] for row in rows(features, contexts, top=4, blind=True, seed=seed)) for seed in range(20)
    }
    assert len(orders) > 1
    assert all(sorted(order) == [0, 2, 3] for order in orders)


def test_top_must_be_positive(features, contexts):
    with pytest.raises(ValueError, match="top must be at least 1"):
        rows(features, contexts, top=0)
