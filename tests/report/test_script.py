import json

import numpy as np
import pytest

from crosstime.report.script import rounded, to_json

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
    with pytest.raises(TypeError, match="object is not a value"):
        to_json(object())
