"""Amounts as people read and write them, and values that fit JSON."""

import math

import pytest

from crosstime.base.errors import SettingError
from crosstime.base.units import format_bytes, format_duration, format_tokens, jsonable, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("20GiB", 20 * 2**30), ("500MB", 500_000_000), ("1.5 TB", 1_500_000_000_000), (" 64MiB ", 64 * 2**20)],
)
def test_amounts_of_memory(text, count):
    assert parse_bytes(text, "memory") == count


@pytest.mark.parametrize("text", ["", "20", "20G", "20gib", "GiB", "-1GB", "0GB", "1e3MB", "two GB"])
def test_what_is_no_amount_is_named_with_what_is_allowed(text):
    with pytest.raises(SettingError, match=r'^memory must be an amount like "20GiB", in one of MB, GB') as error:
        parse_bytes(text, "memory")
    assert f'it is "{text}"' in str(error.value)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 MiB"), (2**20, "1 MiB"), (600 * 2**20, "600 MiB"), (2**30, "1.0 GiB"), (int(3.14 * 2**30), "3.1 GiB")],
)
def test_bytes_are_binary(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.32, "0.3 s"), (12.4, "12 s"), (99.4, "99 s"), (150.0, "2.5 min"), (5000.0, "83 min")],
        *[(9000.0, "2.5 h"), (1e6, "12 days")],
    ],
)
def test_durations_are_short(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *[(None, "?"), (0, "0"), (512, "512"), (524_288, "524K"), (2_097_152, "2.1M"), (8_192_000, "8.2M")],
        *[(31_014_912, "31M"), (9_960_000, "10M"), (4_000_000, "4M"), (286 * 10**9, "286B"), (3_048 * 10**9, "3T")],
    ],
)
def test_token_counts_are_short(count, text):
    assert format_tokens(count) == text


def test_what_is_not_finite_becomes_null():
    value = {"a": [1.5, math.nan, (math.inf, 2)], "b": -math.inf, "c": "nan", "d": None}
    assert jsonable(value) == {"a": [1.5, None, [None, 2]], "b": None, "c": "nan", "d": None}
