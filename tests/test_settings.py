"""Every setting has one owner: Python and run.toml have the same defaults, and no function repeats a setting."""

import dataclasses
import inspect
import re
import typing

import pytest

import crosstime as ct
from crosstime.pipeline.config import RunConfig

SECTIONS = {
    hint: field
    for field in dataclasses.fields(RunConfig)
    if dataclasses.is_dataclass(hint := typing.get_type_hints(RunConfig)[field.name])
}
"""The settings class of each section of run.toml, with the section."""
FUNCTIONS = {name: function for name in dir(ct) if inspect.isfunction(function := getattr(ct, name))}


def settings_of(function):
    """By the parameter's name, the section whose settings a function takes."""
    return {
        name: section
        for name, parameter in inspect.signature(function).parameters.items()
        for kind, section in SECTIONS.items()
        if re.search(rf"\b{kind.__name__}\b", str(parameter.annotation))
    }


TAKEN = [
    pytest.param(function, parameter, section, id=f"{name}-{section.name}")
    for name, function in FUNCTIONS.items()
    for parameter, section in settings_of(function).items()
]


def default_of(section):
    return section.default if section.default_factory is dataclasses.MISSING else section.default_factory()


def test_the_sections_are_taken_by_public_functions():
    taken = {parameter.values[2].name for parameter in TAKEN}
    assert taken >= {"survey", "training", "evaluation", "diagnostics", "contexts", "positions"}


@pytest.mark.parametrize(("function", "parameter", "section"), TAKEN)
def test_python_and_run_toml_have_the_same_defaults(function, parameter, section):
    default = inspect.signature(function).parameters[parameter].default
    assert default is inspect.Parameter.empty or default is None or default == default_of(section)


@pytest.mark.parametrize(("function", "parameter", "section"), TAKEN)
def test_no_function_repeats_a_setting_that_it_takes(function, parameter, section):
    fields = {field.name for field in dataclasses.fields(default_of(section))}
    assert not fields & (inspect.signature(function).parameters.keys() - {parameter})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_repeats_a_setting_of_its_module(name):
    """Settings are beside the function that reads them, which takes them as one object."""
    function = FUNCTIONS[name]
    for kind in SECTIONS:
        if kind.__module__ == function.__module__:
            parameters = inspect.signature(function).parameters.values()
            optional = {parameter.name for parameter in parameters if parameter.default is not inspect.Parameter.empty}
            assert not optional & {field.name for field in dataclasses.fields(kind)}
