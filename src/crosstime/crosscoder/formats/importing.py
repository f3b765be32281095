"""Import a crosscoder in any known format, from disk or from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosstime.base.errors import InputError
from crosstime.base.registry import Registry
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.files import locate
from crosstime.crosscoder.formats import dictionary_learning, llamascopium, paper
from crosstime.crosscoder.formats.reading import Facts, Format, config_of_folder
from crosstime.text.positions import Positions

_PATTERNS = ("*.json", "*.safetensors", "*.pt")
"""Files on the hub that formats read."""


def import_crosscoder(
    source: str | Path,
    format: str | None = None,
    *,
    checkpoints: Sequence[str] | None = None,
    layer: int | None = None,
    scale: Sequence[float] | None = None,
    tokens: Sequence[int | None] | None = None,
    positions: Positions | None = None,
    revision: str | None = None,
) -> Crosscoder:
    """Load a crosscoder of crosstime or of another project (docs/formats.md); it computes the same function as there.

    Arguments supply what the files lack, and replace what they hold, except scale factors.

    Args:
        source: A folder or file of weights; or on the hub "owner/name", or "owner/name:path" for a subfolder or file.
        format: A name in `FORMATS`; by default the first that fits.
        checkpoints: Names of the checkpoints, in the order of training, which must be that of the file.
        layer: The block whose output is read, counted from 0.
        scale: The factor by which each checkpoint's activations were multiplied in training.
        tokens: Tokens that each checkpoint was trained on.
        positions: The policy for position 0 in training.
        revision: Revision of the hub repository.

    Raises:
        InputError: There is no crosscoder of a known format; a file is damaged, or a pickle that could run code; a
            required fact is missing; or a part of the crosscoder has no counterpart here.

    Example:
        >>> import tempfile
        >>> from crosstime import Crosscoder, CrosscoderConfig, import_crosscoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Crosscoder(CrosscoderConfig(("a", "b"), layer=3, width=16, features=64)).save_pretrained(folder)
        ...     import_crosscoder(folder).config.checkpoints
        ('a', 'b')
    """
    path = _locate(str(source), revision)
    chosen = FORMATS[format] if format is not None else next((kind for kind in FORMATS if kind.fits(path)), None)
    if chosen is None:
        raise InputError(f"{path} holds no crosscoder in a known format ({', '.join(FORMATS.names)}): pass `format`")
    return chosen.read(path, Facts(checkpoints, layer, tokens, scale, positions))


def _is_own(path: Path) -> bool:
    """Whether a folder is in crosstime's own format, of any version."""
    return str(config_of_folder(path).get("format")).startswith("crosstime-crosscoder-")


def _read_own(path: Path, given: Facts) -> Crosscoder:
    if given != Facts():
        raise InputError(f"{path} is a crosscoder of crosstime and describes itself: pass no other facts")
    return Crosscoder.from_pretrained(path)


def _locate(source: str, revision: str | None) -> Path:
    """Return a local file or folder; of the hub's "owner/name:path" the subfolder or file, which is downloaded."""
    if Path(source).exists():
        return Path(source)
    repo, _, inner = source.partition(":")
    # Another file in the same folder describes a file of weights, so the whole folder is downloaded.
    folder = str(Path(inner).parent) if Path(inner).suffix in (".pt", ".safetensors") else inner
    prefix = "" if folder in ("", ".") else f"{folder}/"
    path = locate(repo, revision, [f"{prefix}{name}" for name in _PATTERNS]) / inner
    if not path.exists():
        raise InputError(f"{repo} has no {inner} on the hub, or no readable format in it")
    return path


FORMATS: Registry[Format] = Registry("crosscoder format")
"""Add yours with `FORMATS.add`. If several formats fit a folder, the first is taken."""
for _format in (
    Format("crosstime", _is_own, _read_own),
    Format("paper", paper.fits, paper.read),
    Format("ckkissane", paper.fits_ckkissane, paper.read_ckkissane),
    Format("llamascopium", llamascopium.fits, llamascopium.read),
    Format("dictionary-learning", dictionary_learning.fits, dictionary_learning.read),
):
    FORMATS.add(_format)
