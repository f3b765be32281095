"""Stand-ins for what other people's code imports and a step does not use: loggers, plots, model wrappers."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

UNUSED = {
    *("IPython", "circuitsvis", "matplotlib", "nnsight", "requests", "sae_lens", "sae_vis", "seaborn"),
    *("transformer_lens", "umap", "wandb", "zstandard"),
}


def install() -> None:
    """From now on, find a module of stand-ins where one of `UNUSED` is not installed."""
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.append(_StandIns())


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in UNUSED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()
