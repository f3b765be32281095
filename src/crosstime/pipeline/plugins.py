"""Plugins: code of users that adds sparsity rules, pair sources, methods, baselines, report sections or stages.

Importing a plugin registers what it adds. run.toml names its plugins, `plugins = ["my_rules.py", "package.module"]`,
and an installed package may offer one as an entry point of the group "crosstime.plugins".
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType
from typing import Any

from crosstime.base.artifact import sha256_of
from crosstime.base.errors import InputError, first_line

GROUP = "crosstime.plugins"


@dataclass(frozen=True)
class _Plugin:
    name: str
    """As run.toml gives it; of a path the last part, since run folders move."""
    files: tuple[Path, ...]
    """Its code: one file, or all of a package."""
    sha256: str


_LOADED: dict[str, _Plugin] = {}
"""All imported plugins, by the name of their module or package in `sys.modules`."""


def load_plugins(names: Sequence[str], folder: Path) -> None:
    """Import the plugins of a run, and those that installed packages offer.

    Args:
        names: Files (relative to `folder`) that end in .py, or modules.
        folder: The run folder.

    Raises:
        InputError: There is no such file or module, it fails (the message names file and line), or the file was changed
            since this process imported it.
    """
    for entry in entry_points(group=GROUP):
        _load(entry.module, entry.module)
    for name in names:
        if not name.endswith(".py"):
            _load(name, name)
            continue
        path = (folder / Path(name).expanduser()).resolve()
        if not path.is_file():
            raise InputError(f"plugin {name}: there is no file {path}")
        _load(path.name, f"crosstime_plugin_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}", path)


def code_hashes(values: Iterable[Any]) -> dict[str, str]:
    """Return the hash of each plugin that defines one of the values, by the plugin's name.

    Args:
        values: Functions, classes, instances of classes, or dataclasses and tuples of such.
    """
    roots = {module.partition(".")[0] for value in values for module in _modules(value)}
    return {f"plugin {plugin.name}": plugin.sha256 for root, plugin in sorted(_LOADED.items()) if root in roots}


def blame(error: BaseException) -> str | None:
    """Return the file and line of a plugin if that raised an error, and not the code of crosstime that it called."""
    files = [file for plugin in _LOADED.values() for file in plugin.files]
    line = _last_line(error, files)
    return line if line and line == _last_line(error, [*files, *_files("crosstime")]) else None


def _load(name: str, module_name: str, path: Path | None = None) -> None:
    root = module_name.partition(".")[0]
    files = (path,) if path else _files(root)
    if root not in _LOADED or module_name not in sys.modules:
        try:
            _import(module_name, path)
        except SyntaxError as error:
            raise InputError(f"plugin {name}: {error.filename}:{error.lineno}: SyntaxError: {error.msg}") from error
        except Exception as error:
            where = f"{line}: " if (line := _last_line(error, files)) else ""
            raise InputError(f"plugin {name}: {where}{type(error).__name__}: {first_line(error)}") from error
        _LOADED[root] = _Plugin(name, files, _hash(files))
    if _hash(files) != _LOADED[root].sha256:
        raise InputError(f"plugin {name} was changed since it was imported: restart Python")


def _files(root: str) -> tuple[Path, ...]:
    """All files of a package, or the one of a module."""
    spec = find_spec(root)
    if spec is None:
        return ()
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    own = [Path(spec.origin)] if spec.origin and not folders else []
    return tuple(sorted([*own, *(path for folder in folders for path in folder.rglob("*.py"))]))


def _import(module_name: str, path: Path | None) -> None:
    if path is None:
        import_module(module_name)
        return
    spec = spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _last_line(error: BaseException, files: Sequence[Path]) -> str:
    """The last file and line among some files that an error came from; empty if it came from none of them."""
    names = set(map(str, files))
    frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if f.filename in names]
    return frames[-1] if frames else ""


def _modules(value: Any) -> Iterator[str]:
    """Names of the modules that define a value and what it holds."""
    if isinstance(value, tuple):
        for item in value:
            yield from _modules(item)
        return
    yield value.__module__ if isinstance(value, (type, FunctionType)) else type(value).__module__
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _modules(getattr(value, field.name))


def _hash(files: Sequence[Path]) -> str:
    hashes = [sha256_of(path) if path.is_file() else "" for path in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
