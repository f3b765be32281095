"""RelIE and RelDec: the paper's cases and its code's numbers, any number of checkpoints, and classes."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from crosstime.attribution.relative import level, lifecycle, negligible, pairwise, relative, sharing
from golden_numbers import FOLDER

NAMES = ["A", "B", "C"]


def _rel(*rows):
    return relative(np.array(rows, dtype=np.float64).T)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.2, 0.3, 0.5), (0.2, 0.3, 0.5)),
        ((1, 1, 2), (0.25, 0.25, 0.5)),
        ((0, 0, 2), (0, 0, 1)),
        ((-1, 3, 0), (0.25, 0.75, 0)),
        ((1, 3), (0.25, 0.75)),
    ],
)
def test_relative_is_the_share_of_the_absolute_values(values, expected):
    np.testing.assert_allclose(_rel(values)[:, 0], expected)


def test_no_effect_anywhere_is_undefined_not_shared():
    assert np.isnan(_rel((0, 0, 0))).all()


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 8), st.just(5)), elements=st.floats(-1e3, 1e3, width=32)),
    st.floats(0.1, 10),
)
def test_columns_sum_to_one_and_units_do_not_matter(values, factor):
    rel = relative(values)
    defined = np.abs(values).sum(0) > 0
    np.testing.assert_allclose(rel[:, defined].sum(0), 1)
    assert np.isnan(rel[:, ~defined]).all()
    np.testing.assert_allclose(relative(values * factor), rel, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((0.1, 0.1, 0.8), "specific:C"),
        ((0.7, 0.3, 0.0), "shared:A+B"),  # exactly .7 is not specific, exactly .3 is shared: the paper's bounds
        ((0.34, 0.33, 0.33), "shared:A+B+C"),
        ((0.4, 0.1, 0.5), "shared:A+C"),
        ((0.65, 0.2, 0.15), "other"),
        ((np.nan, np.nan, np.nan), "undefined"),
    ],
)
def test_classes(row, expected):
    assert sharing(np.array([row]).T, np.array([False]), NAMES) == [expected]


def test_with_two_checkpoints_the_classes_are_the_papers():
    rel = np.array([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5], [0.2, 0.8]])
    assert sharing(rel.T, np.zeros(4, bool), ["A", "B"]) == ["specific:A", "shared:A+B", "shared:A+B", "specific:B"]


def test_an_equal_share_of_many_checkpoints_is_shared_by_all():
    names = [f"c{i}" for i in range(8)]
    assert sharing(np.full((8, 1), 1 / 8), np.array([False]), names) == ["shared:" + "+".join(names)]


def test_lifecycles():
    rel = np.array(
        [[0.02, 0.28, 0.7], [0.3, 0.3, 0.4], [0.9, 0.1, 0], [0.05, 0.9, 0.05], [np.nan] * 3, [0.3, 0.3, 0.4]]
    )
    small = np.array([False, False, False, False, False, True])
    expected = ["emerged", "maintained", "dropped", "transient", "undefined", "negligible"]
    assert lifecycle(rel.T, small) == expected


def test_an_effect_is_negligible_only_if_it_is_so_at_every_checkpoint():
    ie = np.array([[100.0, 0.01, 0.01], [1.0, 0.5, 0.0001]])
    assert negligible(ie, 1e-3).tolist() == [False, False, True]


def test_two_checkpoints_have_one_pair():
    values = np.array([[1.0, -0.2, 0, 0], [3.0, 0.3, 2, 0]])
    pairs = pairwise(values)
    assert list(pairs) == [(0, 1)]
    np.testing.assert_array_equal(pairs[0, 1], relative(values)[1])
    np.testing.assert_allclose(pairs[0, 1], [0.75, 0.6, 1, np.nan])


@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 6), st.just(4)), elements=st.floats(-1e3, 1e3, width=32)))
def test_pairs_follow_from_the_shares_of_all(values):
    rel, pairs = relative(values), pairwise(values)
    assert list(pairs) == list(combinations(range(len(values)), 2))
    for (m, n), share in pairs.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            np.testing.assert_allclose(share, rel[n] / (rel[m] + rel[n]), rtol=1e-6)


# ------------------------------------------------------------------------------------- the numbers of the paper's code


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "relative_measures.safetensors")


def _papers_pairs(values, no_effect="undefined"):
    pairs = pairwise(values, no_effect)
    return np.stack([pairs[0, 1], pairs[1, 2], pairs[0, 2]])


def test_relative_effects_of_the_papers_code(golden):
    three, two = golden["abs_ie_3"], golden["abs_ie_2"]
    np.testing.assert_array_equal(relative(three, "shared"), golden["rel_ie_3.one_vs_all"])
    np.testing.assert_array_equal(_papers_pairs(three, "shared"), golden["rel_ie_3.pairwise"])
    np.testing.assert_array_equal(relative(two, "shared")[1], golden["rel_ie_2"])
    # Its option to drop features without effect.
    np.testing.assert_array_equal(relative(three[:, three.any(0)]), golden["rel_ie_3.one_vs_all.drop"])
    np.testing.assert_array_equal(_papers_pairs(three[:, three.any(0)]), golden["rel_ie_3.pairwise.drop"])
    np.testing.assert_array_equal(relative(two[:, two.any(0)])[1], golden["rel_ie_2.drop"])


def test_our_relative_effects_differ_only_where_there_is_no_effect(golden):
    for values in (golden["abs_ie_3"], golden["abs_ie_2"]):
        nowhere = ~values.any(0)
        assert nowhere.any()
        assert np.isnan(relative(values)[:, nowhere]).all()
        np.testing.assert_array_equal(relative(values)[:, ~nowhere], relative(values, "shared")[:, ~nowhere])


@pytest.mark.parametrize("form", ["unfolded", "folded"])
def test_relative_decoder_norms_of_the_papers_code(golden, form):
    decoder = load_file(FOLDER / "encode_decode.safetensors")["folded_param.W_dec"]
    if form == "unfolded":
        decoder = load_file(FOLDER / "crosscoder_unfolded.safetensors")["W_dec"]
    norms = np.linalg.norm(decoder, axis=-1).T
    np.testing.assert_allclose(relative(norms), golden[f"{form}.one_vs_all"], rtol=1e-6)
    np.testing.assert_allclose(_papers_pairs(norms), golden[f"{form}.pairwise"], rtol=1e-6)
    assert np.isnan(golden[f"{form}.pairwise"]).any()


def test_relative_decoder_norms_of_two_checkpoints_of_the_papers_code(golden):
    norms = np.linalg.norm(load_file(FOLDER / "crosscoder_unfolded.safetensors")["W_dec"], axis=-1).T
    for m, n in combinations(range(3), 2):
        np.testing.assert_allclose(relative(norms[[m, n]])[1], golden[f"unfolded.two_way_{m}{n}"], rtol=1e-6)


def test_levels_of_the_papers_code():
    cases = json.loads((FOLDER / "relative_measures.json").read_text())["classify"]
    shares, levels = np.array([[np.nan if value is None else value for value in case] for case in cases]).T
    np.testing.assert_array_equal(level(shares), levels)


def _papers_group(a, b, c):
    """The groups of the paper's tables, in its order: the first that fits."""
    for name, value in zip(NAMES, (a, b, c), strict=True):
        if value > 0.7 and value == max(a, b, c):
            return f"specific:{name}"
    if min(a, b, c) >= 0.3:
        return "shared:A+B+C"
    for name, pair in (("A+B", (a, b)), ("A+C", (a, c)), ("B+C", (b, c))):
        if min(pair) >= 0.3:
            return f"shared:{name}"
    return "other"


def test_groups_of_the_papers_tables(golden):
    columns = [golden[f"{name}.one_vs_all"] for name in ("rel_ie_3", "unfolded", "folded")]
    columns.append(np.array([[0.65, 0.2, 0.15], [0.7, 0.3, 0], [0.5, 0.5, 0.5], [0.01, 0.68, 0.31]]).T)
    for rel in columns:
        found = sharing(rel, np.zeros(rel.shape[1], bool), NAMES)
        assert found == [_papers_group(*feature) for feature in rel.T]
    groups = {group for rel in columns for group in sharing(rel, np.zeros(rel.shape[1], bool), NAMES)}
    assert groups >= {"specific:A", "specific:B", "specific:C", "shared:A+B", "shared:A+C", "shared:A+B+C", "other"}
