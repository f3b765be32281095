"""The activation buffer serves every token once, in random order, from fixed memory."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstime.training.buffer import ActivationBuffer

CPU = torch.device("cpu")


def _buffer(size, seed=0):
    return ActivationBuffer(size, 1, dtype=torch.float32, device=CPU, seed=seed)


def _serve_all(buffer, n_tokens, refill, batch):
    """Return all full batches of tokens 0 .. n_tokens - 1, filled in order."""
    filled, served = 0, []
    while True:
        while filled < n_tokens and buffer.free >= refill:
            buffer.fill(torch.arange(filled, min(filled + refill, n_tokens))[:, None].float())
            filled = min(filled + refill, n_tokens)
            buffer.shuffle()
        if buffer.live < batch:
            return served
        served.append(buffer.serve(batch)[:, 0].int().tolist())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), refill=st.integers(1, 20), batch=st.integers(1, 20), spare=st.integers(0, 30))
def test_every_token_is_served_at_most_once_and_few_are_left(n, refill, batch, spare):
    served = [row for rows in _serve_all(_buffer(refill + batch + spare), n, refill, batch) for row in rows]
    assert len(set(served)) == len(served)
    assert n - len(served) < batch


def test_tokens_are_mixed_over_the_whole_buffer():
    served = _serve_all(_buffer(1000), 1000, 100, 50)
    means = [sum(batch) / len(batch) for batch in served[:10]]
    assert max(means) - min(means) < 350  # unmixed, the first batches would differ by hundreds
    assert served != _serve_all(_buffer(1000, seed=1), 1000, 100, 50)


def test_memory_does_not_grow():
    buffer = _buffer(40)
    store = buffer.store.data_ptr()
    _serve_all(buffer, 400, 20, 10)
    assert buffer.store.data_ptr() == store
    assert len(buffer.store) == 40


def test_it_resumes_from_a_saved_state():
    buffer = _buffer(60)
    buffer.fill(torch.arange(60)[:, None].float())
    buffer.shuffle()
    buffer.serve(25)
    saved = {name: tensor.clone() for name, tensor in buffer.tensors().items()}

    def serve_more(buffer):
        rows = [buffer.serve(10)]
        buffer.fill(torch.arange(100, 130)[:, None].float())
        buffer.shuffle()
        return torch.cat([*rows, buffer.serve(30)])

    other = _buffer(60, seed=9)
    other.restore(saved)
    assert torch.equal(serve_more(other), serve_more(buffer))
