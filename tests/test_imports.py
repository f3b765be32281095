"""The way of the data is the order of imports: a folder knows only those below it."""

import ast
from pathlib import Path

import pytest

import crosstime

SOURCE = Path(crosstime.__file__).parent
ORDER = [
    "base",
    "demo",
    "models",
    "text",
    "tasks",
    "crosscoder",
    "training",
    "attribution",
    "evaluation",
    "report",
    "pipeline",
    "cli",
    "__main__",
]
"""From the bottom to the top."""


def _part(module: str) -> str | None:
    """The folder or file right below crosstime that a module lies in."""
    names = module.split(".")
    return names[1] if names[0] == "crosstime" and len(names) > 1 else None


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_part_imports_only_parts_below_it(path):
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    assert own in ORDER, f"{own} has no place in the order of imports"
    for part in filter(None, map(_part, _imported(path))):
        if part != "__version__":
            assert ORDER.index(part) <= ORDER.index(own), f"{path}: {own} must not know {part}"


def test_importing_crosstime_is_instant():
    """Its public names are imported on first use."""
    import subprocess
    import sys

    code = "import sys, crosstime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    for name in crosstime.__all__:
        assert getattr(crosstime, name) is not None
    assert set(crosstime.__all__) <= set(dir(crosstime))
    with pytest.raises(AttributeError, match="nosuch"):
        crosstime.nosuch  # noqa: B018
