"""Numbers as files hold them and as sentences say them."""

import math

import pytest

from crosstime.base.numbers import finite, token_count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *[(None, "?"), (0, "0"), (512, "512"), (524_288, "524K"), (2_097_152, "2.1M"), (8_192_000, "8.2M")],
        *[(31_014_912, "31M"), (9_960_000, "10M"), (4_000_000, "4M"), (286 * 10**9, "286B"), (3_048 * 10**9, "3T")],
    ],
)
def test_token_counts_are_short(count, text):
    assert token_count(count) == text


def test_what_is_not_finite_becomes_null():
    value = {"a": [1.5, math.nan, (math.inf, 2)], "b": -math.inf, "c": "nan", "d": None}
    assert finite(value) == {"a": [1.5, None, [None, 2]], "b": None, "c": "nan", "d": None}
