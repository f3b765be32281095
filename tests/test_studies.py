"""The studies compare what they say they compare."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("study", ["attribution", "validation"])
def test_every_method_is_named_and_no_two_are_one(study, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "studies")
    methods = import_module(study).METHODS.values()
    # Where none is named, single features have the default's effects, whatever the rule of the integral.
    assert all("method" in how for how in methods)
    one_gradient = [how["method"] for how in methods if how["method"] != "integrated"]
    assert len(set(one_gradient)) == len(one_gradient)
