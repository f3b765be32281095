"""Text for a terminal: columns and quantities."""

from __future__ import annotations

from collections.abc import Container, Sequence


def columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Rows of cells as aligned columns.

    Args:
        rows: all of one length.
        right: the columns whose cells stand at the right.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def gigabytes(count: int) -> str:
    """A number of bytes: "0.3 GB", "17 GB"."""
    return f"{count / 1e9:.0f} GB" if count >= 9.95e9 else f"{count / 1e9:.1f} GB"


def hours(seconds: float) -> str:
    """A time: "<0.1", "0.7", "12"."""
    if seconds < 360:
        return "<0.1"
    return f"{seconds / 3600:.0f}" if seconds >= 9.95 * 3600 else f"{seconds / 3600:.1f}"
