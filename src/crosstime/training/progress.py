"""What a training tells those who wait for it: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from crosstime.base.units import format_bytes, format_duration, format_tokens

LOGGER = logging.getLogger(__name__)
SECONDS = 30.0
"""Between two lines, at least; a line comes with a record of the log."""


class Progress:
    """Tells how far a training is, and what the log's records say.

    On a terminal there is a bar. Where stderr is none, as in a job's log file, there are lines: messages of `LOGGER`.
    """

    def __init__(self, done: int, total: int) -> None:
        self.start, self.begin, self.told = done, time.monotonic(), time.monotonic()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc="train",
            unit_scale=True,
            disable=None,
            leave=False,
            # Without tqdm's own rate, so that what the records say fits beside it into 120 columns.
            bar_format="{l_bar}{bar}| {total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self.done, self.total = done, total

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.close()

    def advance(self, rows: int) -> None:
        """So many rows more are done."""
        self.done += rows
        self.bar.update(rows)

    def tell(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take in the newest records, one a crosscoder."""
        words = ", ".join([speed_in_words(records[0]), "; ".join(map(losses_in_words, records))])
        self.bar.set_postfix_str(words, refresh=False)
        now = time.monotonic()
        if self.bar.disable and now - self.told >= SECONDS:
            self.told = now
            left = (now - self.begin) * (self.total - self.done) / (self.done - self.start)
            LOGGER.info(
                "%.0f %% of %s tokens, %s left; %s",
                100 * self.done / self.total,
                format_tokens(self.total),
                format_duration(left),
                words,
            )


def speed_in_words(record: Mapping[str, Any]) -> str:
    """How fast it goes, and in how much memory: "41K tok/s, 78 % of peak, collection 46 %, 3.1 GiB"."""
    return (
        f"{format_tokens(round(record['tokens_per_second']))} tok/s, {100 * record['peak_share']:.0f} % of peak, "
        f"collection {100 * record['collection_share']:.0f} %, {format_bytes(record['memory'])}"
    )


def losses_in_words(record: Mapping[str, Any]) -> str:
    """How well a crosscoder does: "loss 12.3, L0 45.6, EV 0.812"."""
    who = f"{record['crosscoder']}: " if "crosscoder" in record else ""
    return f"{who}loss {record['loss']:.1f}, L0 {record['l0']:.1f}, EV {record['explained_variance']:.3f}"
