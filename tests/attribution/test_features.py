"""The feature table, and what a reader gets out of it."""

import dataclasses

import numpy as np
import pytest
import torch

from crosstime.attribution.effects import AttributionConfig, attribute
from crosstime.attribution.features import CheckpointTable, FeatureTable, long_table
from crosstime.tasks.task import Prompts


@pytest.fixture
def effects(crosscoder, models):
    rng = np.random.default_rng(5)
    tokens = [rng.integers(0, 96, 5).tolist() for _ in range(4)]
    answers = torch.from_numpy(rng.permutation(96)[:8]).reshape(2, 4)
    prompts = Prompts("random", tokens, answers[0], answers[1], torch.arange(4))
    return attribute(crosscoder, models, prompts, AttributionConfig(steps=16, bootstrap=20))


def test_one_row_per_task_feature_and_checkpoint(crosscoder, effects):
    other = dataclasses.replace(effects, task="a task")
    table = FeatureTable.from_effects([effects, other], crosscoder, np.linspace(0, 1, 40)).table
    assert table.num_rows == 160
    assert table.column_names[:6] == ["task", "feature", "checkpoint", "class", "lifecycle", "frequency"]
    early, late = table.to_pylist()[90:92]
    assert (late["task"], late["feature"], late["checkpoint"]) == ("a task", 5, "late")
    assert (early["feature"], early["checkpoint"], early["class"]) == (5, "early", late["class"])
    assert late["ie"] == pytest.approx(effects.ie[1, 5])
    assert late["sign_consistency"] == pytest.approx(effects.sign_consistency[1, 5])
    assert early["rel_dec"] + late["rel_dec"] == pytest.approx(1)
    assert early["rel_ie"] + late["rel_ie"] == pytest.approx(1)
    assert early["decoder_norm"] == pytest.approx(0.3, rel=1e-5)


def test_the_reader_gives_back_what_went_in(crosscoder, effects, tmp_path):
    other = dataclasses.replace(effects, task="other", ie=2 * effects.ie)
    FeatureTable.from_effects([effects, other], crosscoder, np.linspace(0, 1, 40)).save(tmp_path)
    table = FeatureTable.load(tmp_path)
    assert (table.tasks, table.checkpoints) == (["random", "other"], ["early", "late"])
    assert table.features("other").tolist() == list(range(40))
    for name in ("ie", "ie_low", "rel_ie", "rel_ie_high", "sign_consistency"):
        np.testing.assert_array_equal(table.array("random", name), getattr(effects, name))
    np.testing.assert_array_equal(table.array("other", "ie"), other.ie)
    np.testing.assert_allclose(table.column("other", "frequency"), np.linspace(0, 1, 40), rtol=1e-6)
    assert len(table.column("other", "class")) == 40
    assert table.array("more", "ie").shape == (2, 0)


def test_rows_in_another_order_are_refused():
    columns = {"ie": np.arange(4.0).reshape(2, 2)}
    table = long_table("t", ["a", "b"], np.array([3, 7]), columns)
    assert CheckpointTable(table).array("t", "ie").tolist() == [[0, 1], [2, 3]]
    for wrong in (table.slice(0, 3), table.take([0, 1, 3, 2]), table.take([2, 3, 0, 1]), table.take([0, 3, 2, 1])):
        with pytest.raises(ValueError, match="one row per task, feature and checkpoint"):
            CheckpointTable(wrong)
