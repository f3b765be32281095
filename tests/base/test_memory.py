"""Budgets as people write them, and work in parts that become smaller when memory runs out."""

import pytest
import torch

from crosstime.base import memory
from crosstime.base.errors import is_out_of_memory
from crosstime.base.memory import AdaptiveBatches, MemoryWarning

CPU = torch.device("cpu")
CPU_ERROR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


def test_the_resident_set_grows_with_what_is_held():
    before = memory.used_bytes(CPU)
    ones = torch.ones(128 * 2**20, dtype=torch.uint8)  # so much comes from the system, not from what was freed before
    grown = memory.peak_bytes(CPU) - before
    assert 120 * 2**20 < grown < 150 * 2**20
    assert before < memory.total_bytes(CPU)
    del ones


def test_without_proc_the_highest_resident_set_is_taken(monkeypatch):
    now = memory.used_bytes(CPU)
    monkeypatch.setattr(memory.Path, "exists", lambda _: False)
    assert memory.used_bytes(CPU) >= now


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError(CPU_ERROR), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GiB, max allowed: 18.1 GiB)."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_means_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    """Under the type checks of the tests there is a great deal of garbage to look through."""
    monkeypatch.setattr(memory.gc, "collect", lambda: None)


class Fits:
    """Doubles numbers, where no more than `most` are given at once; and notes how many there were."""

    def __init__(self, most, error=MemoryError):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise self.error("no room\nfor that")
        return 2 * rows


@pytest.mark.parametrize("positions", [None, 40, 80, 1000])
def test_work_that_fits_is_done_in_parts_of_the_size_asked_for(positions):
    fits, rows = Fits(100), torch.arange(10)
    done = torch.cat(list(AdaptiveBatches("work", "row", positions, lower="x").run(rows, fits, length=10)))
    assert torch.equal(done, 2 * rows)
    assert fits.sizes == {None: [10], 40: [4, 4, 2], 80: [8, 2], 1000: [10]}[positions]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, lambda _: RuntimeError(CPU_ERROR)])
def test_parts_are_halved_for_good_and_it_is_told(error):
    fits, rows, notes = Fits(3, error), torch.arange(10), []
    batches = AdaptiveBatches("survey", "block", None, lower="x", notify=notes.append)
    for _ in range(2):
        assert torch.equal(torch.cat(list(batches.run(rows, fits, length=7))), 2 * rows)
    assert fits.sizes == [10, 5, *[2] * 5, *[2] * 5]
    assert len(notes) == 2
    assert notes[0].startswith("survey: out of memory with 10 blocks of 7 tokens per batch; continuing with 5 (")
    assert "\n" not in notes[0]


def test_rows_of_another_length_are_limited_by_their_positions():
    batches = AdaptiveBatches("work", "text", None, lower="x", notify=lambda _: None)
    list(batches.run(torch.arange(8), Fits(4), length=10))
    assert batches.max_tokens == 40
    fits = Fits(4)
    list(batches.run(torch.arange(5), fits, length=20))
    assert fits.sizes == [2, 2, 1]
    fits = Fits(4)
    list(batches.run(torch.arange(2), fits, length=100))
    assert fits.sizes == [1, 1]


def test_without_another_listener_a_warning_tells():
    with pytest.warns(MemoryWarning, match=r"work: out of memory with 2 rows of 5 tokens per batch; continuing with 1"):
        list(AdaptiveBatches("work", "row", None, lower="x").run(torch.arange(2), Fits(1), length=5))


def test_where_not_one_row_fits_the_settings_to_lower_are_named():
    batches = AdaptiveBatches("survey", "block", None, lower="text.context", notify=lambda _: None)
    expected = r"survey: out of memory with a single block of 7 tokens: lower text\.context \(no room\)"
    with pytest.raises(ValueError, match=expected):
        list(batches.run(torch.arange(4), Fits(0), length=7))


def test_other_errors_are_not_caught():
    with pytest.raises(RuntimeError, match="a bug"):
        list(
            AdaptiveBatches("work", "row", None, lower="x").run(
                torch.arange(4), Fits(0, lambda _: RuntimeError("a bug")), length=1
            )
        )


def test_what_did_not_fit_is_free_before_the_next_try():
    """The error holds the frames that hold it."""
    import weakref

    held = []

    def work(rows):
        assert all(reference() is None for reference in held)
        large = torch.ones(4)
        held.append(weakref.ref(large))
        if len(rows) > 1:
            raise MemoryError
        return rows

    list(AdaptiveBatches("work", "row", None, lower="x", notify=lambda _: None).run(torch.arange(4), work, length=1))


@pytest.mark.parametrize(("name", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_a_limit_is_that_of_the_device_which_is_meant(monkeypatch, name, index):
    limits = []
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr("torch.cuda.memory._lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *limit: limits.append(limit), raising=False)
    monkeypatch.setattr(memory, "total_bytes", lambda _: 2**30)
    memory.limit_bytes(torch.device(name), 2**28)
    memory.limit_bytes(torch.device(name), 2**31)
    assert limits == [(0.25, index), (1.0, index)]


@pytest.mark.gpu
def test_a_limit_is_enforced_on_cuda():
    device = torch.device("cuda")
    memory.limit_bytes(device, 2**28)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**29, dtype=torch.uint8, device=device)
        assert memory.used_bytes(device) == 0
    finally:
        memory.limit_bytes(device, memory.total_bytes(device))
