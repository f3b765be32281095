"""The collector reads every block once an epoch, and knows where it stands."""

import numpy as np
import pytest
import torch

from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from crosstime.training.collect import ActivationCollector, calibrate
from planted import plant

WORLD = plant(n_rows=300, noise=0.1)
CORPUS = Corpus(np.arange(300, dtype=np.uint16).reshape(30, 10), "counting")


def _collector(positions=Positions(), seed=0):  # noqa: B008
    return ActivationCollector(WORLD.models(), CORPUS, positions, seed=seed)


def _rows(collector, blocks):
    return torch.cat(list(collector.collect(blocks)))


def _tokens(rows):
    """Which token each row is the activation of."""
    return [int((WORLD.rows - row).abs().sum((1, 2)).argmin()) for row in rows]


def test_an_epoch_holds_every_encoded_position_once_and_the_next_has_another_order():
    collector = _collector()
    first = _tokens(torch.cat([_rows(collector, n) for n in (7, 7, 7, 7, 2)]))
    second = _tokens(torch.cat([_rows(collector, n) for n in (16, 14)]))
    expected = [token for token in range(300) if token % 10 != 0]  # position 0 of each block is not encoded
    assert sorted(first) == sorted(second) == expected
    assert first != second


def test_every_position_is_encoded_where_the_policy_says_so():
    collector = _collector(Positions(encode_first=True))
    assert sorted(_tokens(_rows(collector, 30))) == list(range(300))


def test_rows_are_those_of_all_checkpoints_at_the_same_token():
    rows = _rows(_collector(), 3)
    assert torch.equal(rows, WORLD.rows[_tokens(rows)])


def test_position_is_all_there_is_to_going_on_across_an_epochs_end():
    one, other = _collector(), _collector()
    _rows(one, 25)
    other.position = one.position
    assert torch.equal(_rows(one, 11), _rows(other, 11))


def test_calibration_is_mean_and_scale_of_the_encoded_rows_and_winds_back():
    collector = _collector()
    mean, scale = calibrate(collector, blocks=99, batch=8)
    rows = WORLD.rows[[token for token in range(300) if token % 10 != 0]]
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(scale, rows.shape[-1] ** 0.5 / rows.norm(dim=-1).mean(0))
    assert collector.position == 0


def test_activations_that_are_not_finite_name_checkpoint_and_token():
    models = WORLD.models()
    models[1].embed[123] = torch.nan
    with pytest.raises(ValueError, match=rf"checkpoint {models[1].name}: .* token id 123, position 3"):
        _rows(ActivationCollector(models, CORPUS, Positions(), seed=0), 30)


def test_activations_that_are_all_zero_are_refused():
    models = WORLD.models()
    models[2].embed.zero_()
    with pytest.raises(ValueError, match=rf"checkpoint {models[2].name}: all of its activations are zero"):
        calibrate(ActivationCollector(models, CORPUS, Positions(), seed=0), blocks=5, batch=5)


def _short_of_memory(monkeypatch, models, most):
    """Lets the models' lower blocks run out of memory on more than so many blocks."""
    for model in models:
        whole = model.lower

        def lower(tokens, mask=None, whole=whole):
            if len(tokens) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
            return whole(tokens, mask)

        monkeypatch.setattr(model, "lower", lower)


def test_the_same_rows_in_the_same_order_where_memory_runs_out(monkeypatch):
    expected = _rows(_collector(), 13)
    models, notes = WORLD.models(), []
    _short_of_memory(monkeypatch, models, 3)
    collector = ActivationCollector(models, CORPUS, Positions(), seed=0, notify=notes.append)
    torch.testing.assert_close(_rows(collector, 13), expected)
    assert len(notes) == 2
    assert notes[-1].startswith(
        "activation collection: out of memory with 6 blocks of 10 tokens per batch; continuing with 3 (CUDA out"
    )
    sizes = [len(rows) for rows in collector.collect(8)]
    assert sizes == [27, 27, 18]
    assert len(notes) == 2


def test_blocks_at_once_bound_a_pass():
    collector = ActivationCollector(WORLD.models(), CORPUS, Positions(), seed=0, max_batch_blocks=4)
    assert [len(rows) for rows in collector.collect(10)] == [36, 36, 18]


def test_where_not_one_block_fits_it_says_what_to_lower(monkeypatch):
    models = WORLD.models()
    _short_of_memory(monkeypatch, models, 0)
    collector = ActivationCollector(models, CORPUS, Positions(), seed=0, max_batch_blocks=1)
    with pytest.raises(ValueError, match=r"collection: .* a single block of 10 tokens: lower buffer_tokens"):
        _rows(collector, 2)
