"""Numbers, names and JSON in the form in which the page shows them."""

import json
import math

import numpy as np
import pytest

from crosstime.report.format import (
    format_fixed,
    format_number,
    format_p_value,
    format_percent,
    format_share,
    join_names,
    rounded,
    short_names,
    to_json,
    visible_token,
)


def test_accuracies_have_no_leading_zero():
    assert [format_share(x) for x in (0.62, 1.0, 0.0, 0.996, math.nan)] == [".62", "1.00", ".00", "1.00", "\u2013"]


def test_percentages_never_round_an_effect_to_nothing():
    assert format_percent(0.114) == "11\u202f%"
    assert format_percent(0.00002, 2) == "<\u202f0.01\u202f%"
    assert format_percent(0.0) == "0\u202f%"
    assert format_percent(-0.13) == "\u221213\u202f%"


def test_numbers_use_a_true_minus_and_keep_small_values():
    assert format_number(-1.5) == "\u22121.50"
    assert format_number(0.00003) == "3·10⁻⁵"
    assert format_number(0.0) == "0.00"
    assert format_fixed(-0.001) == "0.00"
    assert format_fixed(-12.5, 1) == "\u221212.5"


def test_probabilities():
    assert format_p_value(0.0031) == "p = .003"
    assert format_p_value(3e-10) == "p < 10⁻⁹"
    assert format_p_value(0.0) == "p < 10⁻³⁰⁰"


def test_short_names_keep_what_tells_tasks_apart():
    names = ["regular_plural_agreement_1", "irregular_plural_agreement_1"]
    assert short_names(names) == ["regular", "irregular"]
    assert short_names(["noun_1", "noun_2"]) == ["set 1", "set 2"]
    assert short_names(["noun", "noun_with_adjective"]) == ["noun", "with adjective"]
    assert short_names(["only_one"]) == ["only one"]


def test_quoted_tokens_show_what_cannot_be_seen():
    assert [visible_token(text) for text in (" these", "\n", " ", "", "a\tb")] == ["these", "↵", "␣", "∅", "a→b"]


HOSTILE = "</script><!-- <script>alert(1)</script> & \u2028\u2029 \ud800 שלום 🦊"


def test_hostile_text_survives_and_cannot_leave_the_script():
    text = to_json({"text": HOSTILE})
    assert not any(sign in text for sign in "<>&\u2028\u2029")
    assert json.loads(text)["text"] == HOSTILE
    text.encode("utf-8")


def test_numbers_that_json_does_not_know_become_null():
    assert json.loads(to_json([np.nan, 1.5, np.inf, {"a": np.array([1.0, np.nan])}, np.int64(3)])) == [
        None,
        1.5,
        None,
        {"a": [1.0, None]},
        3,
    ]


def test_rounding_keeps_significant_digits():
    assert rounded(np.array([0.000123456, np.nan, 0.0, -1234567.0]), 3) == [0.000123, None, 0, -1230000]


def test_unknown_values_are_refused():
    with pytest.raises(TypeError, match="object can't be written"):
        to_json(object())


def test_names_are_joined_as_in_prose():
    joined = [join_names(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])]
    assert joined == ["", "a", "a and b", "a, b and c"]
