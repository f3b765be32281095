"""Thresholds that were fixed elsewhere."""

import pytest
import torch

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.jumprelu import FixedThresholds
from crosstime.crosscoder.sparsity.rule import Sparsity
from crosstime.training.config import TrainConfig
from crosstime.training.state import TrainState


def test_codes_above_their_threshold_are_kept():
    h, threshold = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 0.5]]), torch.tensor([1.0, 1.5, 0.0])
    kept = FixedThresholds().select(h, torch.ones(2, 3), threshold)
    assert kept.tolist() == [[0.0, 2.0, 0.0], [3.0, 0.0, 0.5]]
    assert FixedThresholds().initial_threshold(3).tolist() == [0.0] * 3
    assert Sparsity.from_dict(FixedThresholds().to_dict()) == FixedThresholds()


def test_it_cannot_be_trained():
    crosscoder = Crosscoder(CrosscoderConfig(("a", "b"), 0, 4, 3, sparsity=FixedThresholds()))
    with pytest.raises(ValueError, match="is for imported crosscoders and can't be trained"):
        TrainState(crosscoder, TrainConfig())
