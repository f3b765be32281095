"""Fixtures of the tests of language models."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products are many times slower on two threads than on one when the cores have other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
