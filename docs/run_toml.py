"""Write docs/run-toml.md, the reference of run.toml, from the dataclasses that are its sections.

    python docs/run_toml.py

A key's description is the string under its field, so this page can't drift from the code; a test compares the two.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from crosstime.base.registry import Family
from crosstime.pipeline.config import RunConfig

PAGE = Path(__file__).with_name("run-toml.md")
HEAD = """# run.toml

Every section and key, with its default. Paths are relative to run.toml. An unknown key is an error that names the
nearest valid one; `resolved.toml`, which a run writes, holds every value. `docs/run_toml.py` writes this page.
"""


seen: dict[type[Any], str] = {}
"""Families of variants that the page has described, and under which section."""


def page() -> str:
    """Return the whole page."""
    seen.clear()
    hints = get_type_hints(RunConfig)
    sections = [section for name, hint in hints.items() for section in _sections(name, hint)]
    plain = [field for field in fields(RunConfig) if not _dataclasses(hints[field.name])]
    return "\n".join([HEAD, "Above all sections:", "", *_table(RunConfig, plain), *sections])


def _sections(name: str, hint: Any) -> list[str]:
    """One key of the file as sections of the page: one per dataclass that it may hold, and theirs."""
    parts = []
    for kind in _dataclasses(hint):
        if not issubclass(kind, Family):
            parts += _section(f"[{name}]", kind)
            continue
        if kind in seen:
            parts += [f"## `[{name}]`", "", f"As `[{seen[kind]}]`.", ""]
            continue
        seen[kind] = name
        for variant, member in kind.variants().items():
            if not member.__module__.startswith("crosstime."):
                continue  # of a plugin
            parts += _section(f"[{name}] {kind.variant_key} = {json.dumps(variant)}", member)
    return parts


def _section(title: str, kind: type[Any]) -> list[str]:
    path = title.strip("[]").split("]")[0]
    hints = get_type_hints(kind)
    inner = []
    for field in fields(kind):
        if field.init and _dataclasses(hints[field.name]):
            inner += _sections(f"{path}.{_key(field)}", hints[field.name])
    return [f"## `{title}`", "", _first_paragraph(kind), "", *_table(kind, fields(kind)), *inner]


def _table(kind: type[Any], keys: Iterable[Field[Any]]) -> list[str]:
    described = _descriptions(kind)
    rows = [
        f"| `{_key(field)}` | {_default(field)} | {described.get(field.name, '')} |" for field in keys if field.init
    ]
    return ["| key | default | meaning |", "|---|---|---|", *rows, ""] if rows else []


def _dataclasses(hint: Any) -> list[type[Any]]:
    """The dataclasses among the alternatives of an annotation, those of lists included."""
    if is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    found = [kind for inner in get_args(hint) for kind in _dataclasses(inner)] if get_origin(hint) else []
    return list(dict.fromkeys(found))


def _key(field: Field[Any]) -> str:
    return field.name.removesuffix("_")


def _default(field: Field[Any]) -> str:
    value = field.default if field.default is not MISSING else None
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    if value is None or is_dataclass(value) or field.default_factory is not MISSING:
        return "-"
    return f"`{json.dumps(value)}`"


def _first_paragraph(kind: type[Any]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def _descriptions(kind: type[Any]) -> dict[str, str]:
    """The strings under the fields of a dataclass and of its bases, by field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for statement, after in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                text = " ".join(str(after.value.value).split())
                found[statement.target.id] = text.replace("|", "\\|")  # type: ignore[union-attr]
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
