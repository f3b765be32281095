from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstime.evaluation.choice import beats_chance, find_broken, shifts, spread

BLOOM_STEPS = ("1000", "10000", "100000", "200000", "300000", "400000", "500000", "600000")
BLOOM_PERPLEXITY = np.array([299.04, 53.00, 34.28, 32.37, 30.91, 338341.5, 28.41, 26.76])


def alike(n):
    """Checkpoints that drift apart slowly."""
    index = np.arange(n)
    return 0.95 ** np.abs(index[:, None] - index[None]).astype(float)


def test_the_broken_bloom_checkpoint_is_flagged_and_no_other():
    broken = find_broken(BLOOM_STEPS, BLOOM_PERPLEXITY, alike(8))
    assert list(broken) == ["400000"]
    assert broken["400000"] == "its perplexity on held-out text is 338342, against 30.91 before and 26.76 after"


@pytest.mark.parametrize(
    ("perplexity", "expected"),
    [
        ([90, 40, 30, 20], []),
        ([90, 40, 900, 800, 20], [2, 3]),
        ([90, 40, 30, 70], [3]),
        ([90, 40, 30, 50], []),
        ([90, 40, np.inf, 20], [2]),
        ([np.inf, 40, 30], [0]),
        ([30, 31, 29], []),
        ([50], []),
    ],
    ids=["falls", "two in a row", "the last", "a bump", "infinite", "infinite at first", "flat", "alone"],
)
def test_perplexity_out_of_line(perplexity, expected):
    names = [str(i) for i in range(len(perplexity))]
    found = find_broken(names, np.array(perplexity, dtype=float), alike(len(names)))
    assert list(found) == [str(i) for i in expected]


def test_a_representation_unlike_both_neighbours_is_flagged():
    cosine = alike(5)
    cosine[2, :] = cosine[:, 2] = 0.3
    cosine[2, 2] = 1
    broken = find_broken("abcde", np.linspace(50, 20, 5), cosine)
    assert list(broken) == ["c"]
    assert "unlike those of b (cosine 0.30) and d (0.30), which are like each other (0.90)" in broken["c"]


def test_a_phase_transition_is_not_broken():
    cosine = alike(6)
    cosine[:3, 3:] *= 0.2
    cosine[3:, :3] *= 0.2
    assert find_broken("abcdef", np.array([500, 400, 300, 60, 40, 30.0]), cosine) == {}


def test_chance_depends_on_the_number_of_pairs_and_counts_both_sides():
    accuracy = np.array([[0.6, 0.5], [0.4, 0.5], [0.55, 0.5]])
    assert beats_chance(accuracy, np.array([400, 400])).tolist() == [[True, False], [True, False], [False, False]]
    assert not beats_chance(accuracy, np.array([40, 40])).any()


def test_guessing_rarely_beats_chance():
    rng = np.random.default_rng(0)
    n = np.full(20, 200)
    accuracy = rng.binomial(n, 0.5, size=(2000, 20)) / n
    assert beats_chance(accuracy, n).any(axis=1).mean() < 0.02


def test_shift_is_the_sum_of_both_parts_each_scaled_by_its_largest():
    accuracy = np.array([[0.5, 0.5], [0.6, 0.5], [0.6, 0.9]])
    cosine = np.array([[1, 0.9, 0.6], [0.9, 1, 0.8], [0.6, 0.8, 1]])
    assert shifts(accuracy, cosine) == pytest.approx(np.array([[0, 0.2 + 0.25, 2], [0.45, 0, 0.8 + 0.5], [2, 1.3, 0]]))
    assert (shifts(np.full((3, 2), 0.7), np.ones((3, 3))) == 0).all()


@given(st.integers(2, 7).flatmap(lambda n: st.tuples(st.integers(2, n), st.integers(0, 10**6), st.just(n))))
def test_spread_is_the_best_of_all_choices(case):
    k, seed, n = case
    # Few different values, so that there are ties to be broken by the sum.
    shift = np.random.default_rng(seed).integers(1, 5, size=(n, n)).astype(float)

    def steps(choice):
        return [shift[a, b] for a, b in pairwise(choice)]

    best = max((min(steps(choice)), sum(steps(choice))) for choice in combinations(range(n), k))
    chosen = spread(shift, k)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == k
    assert (min(steps(chosen)), sum(steps(chosen))) == best
