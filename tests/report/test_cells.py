"""No cell is a formula, and every text comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstime.report.cells import guarded, unguarded


@pytest.mark.parametrize("text", ["=1+1", "+49", "-er", "@home", "'=1", "''-x", "\t=1"])
def test_what_a_spreadsheet_would_run_is_text(text):
    assert guarded(text) == f"'{text}"
    assert unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", ["", "plain", "'tis", "a=b", "'", "«=»"])
def test_other_text_stays_as_it_is(text):
    assert guarded(text) == unguarded(text) == text


@given(st.text(alphabet="'=+-@\t\rab"))
def test_guarding_is_undone(text):
    assert unguarded(guarded(text)) == text
    assert guarded(text)[:1] not in set("=+-@\t\r")
