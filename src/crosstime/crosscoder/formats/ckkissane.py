"""The hub layout of ckkissane/crosscoder-model-diff-replication: cc_weights.pt and cfg.json.

The weights are those of `paper`, whose code descends from it, for two models. The files say neither which models nor
the scale factors; those of ckkissane/crosscoder-gemma-2-2b-model-diff were published apart (docs/formats.md).
"""

from __future__ import annotations

from pathlib import Path

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.paper import l1, matrices
from crosstime.crosscoder.formats.reading import read_config, read_tensors, setting
from crosstime.crosscoder.formats.stated import Found, Stated, assemble, layer_of_hook
from crosstime.text.positions import Positions

WEIGHTS, CONFIG = "cc_weights.pt", "cfg.json"
POSITIONS = Positions(bos=True, encode_first=False)
"""Its sequences begin with BOS, which is dropped."""


def fits(path: Path) -> bool:
    """Whether a folder or file is of this format."""
    return _weights(path).is_file()


def read(path: Path, stated: Stated) -> Crosscoder:
    """Read cc_weights.pt, or a folder with it.

    Raises:
        InputError: see `assemble`; or a file is missing or not of this format.
    """
    weights = _weights(path)
    where = weights.with_name(CONFIG)
    config = read_config(where)
    found = Found(
        **matrices(weights, read_tensors(weights)),
        sparsity=l1(where, config),
        layer=layer_of_hook(setting(where, config, "hook_point", str)),
        positions=POSITIONS,
    )
    return assemble(found, stated)


def _weights(path: Path) -> Path:
    return path if path.name == WEIGHTS else path / WEIGHTS
