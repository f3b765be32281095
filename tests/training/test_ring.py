"""The ring serves every row once, in random order, from a fixed store."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstime.training.ring import Ring

CPU = torch.device("cpu")


def _ring(rows, seed=0):
    return Ring(rows, 1, dtype=torch.float32, device=CPU, seed=seed)


def _serve_all(ring, n_rows, refill, batch):
    """All full batches of rows 0 .. n_rows - 1, filled in order."""
    filled, served = 0, []
    while True:
        while filled < n_rows and ring.free >= refill:
            ring.fill(torch.arange(filled, min(filled + refill, n_rows))[:, None].float())
            filled = min(filled + refill, n_rows)
            ring.shuffle()
        if ring.live < batch:
            return served
        served.append(ring.serve(batch)[:, 0].int().tolist())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), refill=st.integers(1, 20), batch=st.integers(1, 20), spare=st.integers(0, 30))
def test_every_row_is_served_at_most_once_and_few_are_left(n, refill, batch, spare):
    served = [row for rows in _serve_all(_ring(refill + batch + spare), n, refill, batch) for row in rows]
    assert len(set(served)) == len(served)
    assert n - len(served) < batch


def test_rows_are_mixed_over_the_whole_store():
    served = _serve_all(_ring(1000), 1000, 100, 50)
    means = [sum(batch) / len(batch) for batch in served[:10]]
    assert max(means) - min(means) < 350  # unmixed, the first batches would differ by hundreds
    assert served != _serve_all(_ring(1000, seed=1), 1000, 100, 50)


def test_memory_does_not_grow():
    ring = _ring(40)
    store = ring.store.data_ptr()
    _serve_all(ring, 400, 20, 10)
    assert ring.store.data_ptr() == store
    assert len(ring.store) == 40


def test_it_goes_on_from_a_saved_state():
    ring = _ring(60)
    ring.fill(torch.arange(60)[:, None].float())
    ring.shuffle()
    ring.serve(25)
    saved = {name: tensor.clone() for name, tensor in ring.state().items()}

    def goes_on(ring):
        rows = [ring.serve(10)]
        ring.fill(torch.arange(100, 130)[:, None].float())
        ring.shuffle()
        return torch.cat([*rows, ring.serve(30)])

    other = _ring(60, seed=9)
    other.restore(saved)
    assert torch.equal(goes_on(other), goes_on(ring))
