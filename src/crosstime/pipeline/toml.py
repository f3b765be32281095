"""Frozen dataclasses from TOML and back, with errors that name the key.

A dataclass is the whole schema: its fields are the keys, its annotations the types, its `__post_init__` the limits. A
field whose metadata says `{"matters": False}` changes how something is computed, never what comes out.
"""

from __future__ import annotations

import json
import math
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from crosstime.base.errors import InputError, SettingError, nearest
from crosstime.base.registry import Family

T = TypeVar("T")


def read(path: Path, make: Callable[[dict[str, Any]], T], settings: Mapping[str, Any] | None = None) -> T:
    """Read a TOML file.

    Args:
        path: The file.
        make: Makes the result from the file's table.
        settings: Values to use in place of the file's, by key (see `override`).

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It isn't TOML, or `make` raises; the message names the file.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    where = f"{path} with {', '.join(settings)}" if settings else str(path)
    try:
        for key, value in (settings or {}).items():
            override(table, key, value)
        return make(table)
    except ValueError as error:  # a user's own sparsity rule may raise a plain one
        raise InputError(f"{where}: {error}") from None


def override(table: dict[str, Any], key: str, value: Any) -> None:
    """Set one value of a TOML table in place.

    Args:
        table: The table, or one of its sections.
        key: Section and key, joined by dots. In a list of sections the key is set in each, or, after the `name` of one
            of them, in that one: "task.agreement.max_pairs".
        value: What TOML could hold, or a tuple; a dict replaces a whole section.

    Raises:
        InputError: the key goes through a value that isn't a section.

    Example:
        >>> table = {"task": [{"name": "a"}, {"name": "b"}]}
        >>> override(table, "training.lr", 0.001)
        >>> override(table, "task.max_pairs", 10)
        >>> override(table, "task.b.max_pairs", 20)
        >>> table
        {'task': [{'name': 'a', 'max_pairs': 10}, {'name': 'b', 'max_pairs': 20}], 'training': {'lr': 0.001}}
    """
    head, _, rest = key.partition(".")
    if not rest:
        table[head] = list(value) if isinstance(value, tuple) else value
        return
    inner = table.setdefault(head, {})
    if isinstance(inner, dict):
        override(inner, rest, value)
    elif isinstance(inner, list) and all(isinstance(section, dict) for section in inner):
        named = [section for section in inner if rest.startswith(f"{section.get('name')}.")]
        for section in named or inner:
            override(section, rest.removeprefix(f"{section.get('name')}.") if named else rest, value)
    else:
        raise InputError(f"`{head}` isn't a section, so it can't hold `{rest}`")


def build(kind: type[T], table: Mapping[str, Any], section: str = "") -> T:
    """The dataclass `kind` from a table; `section` is its name in error messages."""
    kind, table = _variant(kind, table, section)
    hints = get_type_hints(kind)
    known = {_key(field): field for field in fields(cast(Any, kind)) if field.init}
    where = f"[{section}] " if section else ""
    for key in table:
        if key not in known:
            raise InputError(f"{where}{_unknown(key, table[key], known, section)}")
    values = {}
    for key, field in known.items():
        if key in table:
            values[field.name] = convert(hints[field.name], table[key], section, key)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}`{key}` is missing" if section else f"section [{key}] is missing")
    try:
        return kind(**values)
    except SettingError as error:
        raise (error.under(section) if section else error) from None


def write(value: Any) -> str:
    """TOML of a dataclass of sections; keys that are not set are left out, since TOML knows no null."""
    return "\n".join([*_pairs(value), "", *_sections(value, "")])


def lookup(value: Any, name: str) -> Any:
    """Return a section of a configuration, or a value in one, by its dotted name: "training.lr"."""
    for part in name.split("."):
        value = getattr(value, part)
    return value


def flatten(value: Any, name: str) -> dict[str, Any]:
    """Flatten a section, or a value, of a configuration to a dict of dotted names: `{"training.lr": 5e-05, ...}`.

    Settings that don't matter (see above) are left out, and lists of sections are numbered. The values come back equal
    from JSON.
    """
    return dict(_flat(value, name))


def _variant(kind: type[T], table: Mapping[str, Any], section: str) -> tuple[type[T], Mapping[str, Any]]:
    """Of a family of dataclasses, choose the one that the table names, and return it with the other keys."""
    if not issubclass(kind, Family):
        return kind, table
    variants, name = kind.variants(), table.get(kind.variant_key)
    if not isinstance(name, str) or name not in variants:
        known = ", ".join(map(json.dumps, sorted(variants)))
        found = f"it is {_shown(name)}{nearest(str(name), variants)}" if name is not None else "it is missing"
        raise InputError(f"[{section}] `{kind.variant_key}` must be one of {known}; {found}")
    return cast(type[T], variants[name]), {key: value for key, value in table.items() if key != kind.variant_key}


def _key(field: Field[Any]) -> str:
    """What TOML calls a field: its name, less the underscore that keeps it apart from a word of Python's (`from_`)."""
    return field.name.removesuffix("_")


def _unknown(key: str, value: Any, known: Mapping[str, Any], section: str) -> str:
    kind = "key" if section or not isinstance(value, (dict, list)) else "section"
    return f"unknown {kind} `{key}`{nearest(key, known)}"


def convert(hint: Any, value: Any, section: str, key: str) -> Any:
    """Convert a TOML value to the type that an annotation asks for.

    Args:
        hint: The annotation.
        value: The value.
        section: Name of the section that holds it, for messages; empty at the top.
        key: Its key.

    Raises:
        InputError: The value doesn't fit; the message names section and key.
    """
    one, several = _section(hint), _list_of_sections(hint)
    if one or several:
        name = f"{section}.{key}" if section else key
        if one and isinstance(value, dict):
            return build(one, value, name)
        if several and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return tuple(build(several, item, f"{name} {n}") for n, item in enumerate(value, 1))
        wanted = [
            *([f"a section, [{name}], with keys of its own"] if one else []),
            *([f"a list of sections: write [[{name}]] over each"] if several else []),
        ]
        raise InputError(f"`{name}` must be {', or '.join(wanted)}")
    try:
        return _plain(hint, value)
    except TypeError:
        where = f"[{section}] " if section else ""
        hinted = nearest(value, _words(hint)) if isinstance(value, str) else ""
        raise InputError(f"{where}`{key}` must be {_describe(hint)}, not {_shown(value)}{hinted}") from None


def _section(hint: Any) -> type[Any] | None:
    """The dataclass of a key that may be a section, [key]."""
    return next((kind for kind in _kinds(hint) if is_dataclass(kind) and isinstance(kind, type)), None)


def _list_of_sections(hint: Any) -> type[Any] | None:
    """The dataclass of a key that may be a list of sections, [[key]]."""
    return next((_section(get_args(kind)[0]) for kind in _kinds(hint) if get_origin(kind) is tuple), None)


def _kinds(hint: Any) -> Sequence[Any]:
    """The alternatives of an annotation."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(hint: Any, value: Any) -> Any:
    """A value that is no section. Raises TypeError where it does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _any_of(arguments, value)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_plain(arguments[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _plain(arguments[1], item) for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise TypeError


def _any_of(hints: Sequence[Any], value: Any) -> Any:
    for hint in hints:
        try:
            return _plain(hint, value)
        except TypeError:
            continue
    raise TypeError


def _words(hint: Any) -> list[str]:
    """The words that a field of fixed choices takes."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for inner in get_args(hint) for word in _words(inner)]


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(inner) for inner in arguments if inner is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(word) for word in arguments)
    if origin is tuple:
        return f"a list of {_PLURAL[arguments[0]]}"
    if origin is dict:
        return f"a table of {_PLURAL[arguments[1]]}"
    return _SINGULAR[hint]


_SINGULAR = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a string"}
_PLURAL = {bool: "true or false", int: "whole numbers", float: "finite numbers", str: "strings"}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _sections(value: Any, name: str) -> list[str]:
    """The lines of a section's own sections; its other keys stand in it."""
    lines = []
    for field in fields(value):
        content, inner = getattr(value, field.name), f"{name}.{field.name}" if name else field.name
        if is_dataclass(content):
            lines += [f"[{inner}]", *_pairs(content), "", *_sections(content, inner)]
        elif _is_list_of_sections(content):
            for item in content:
                lines += [f"[[{inner}]]", *_pairs(item), "", *_sections(item, inner)]
    return lines


def _pairs(value: Any) -> list[str]:
    pairs = ((_key(field), getattr(value, field.name)) for field in fields(value))
    return [
        f"{name} = {_toml(content)}"
        for name, content in pairs
        if content is not None and not is_dataclass(content) and not _is_list_of_sections(content)
    ]


def _is_list_of_sections(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and is_dataclass(value[0])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # Not ASCII only: JSON would write a character outside the first plane as two escapes, which TOML refuses.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    if is_dataclass(value):
        inner = [
            (f"{name}.{_key(field)}", getattr(value, field.name))
            for field in fields(value)
            if field.metadata.get("matters", True)
        ]
    elif _is_list_of_sections(value):
        inner = [(f"{name}.{n}", item) for n, item in enumerate(value, 1)]
    else:
        return [(name, json.loads(json.dumps(value)))]
    return [pair for key, content in inner for pair in _flat(content, key)]
