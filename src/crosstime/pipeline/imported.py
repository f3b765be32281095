"""A crosscoder that exists already, in a run that would else train one: whether it fits, and what it reads there."""

from __future__ import annotations

from dataclasses import replace

from crosstime.base.errors import InputError
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.models.suite import Suite
from crosstime.pipeline.config import RunConfig


def check_fit(own: CrosscoderConfig, config: RunConfig, layer: int, width: int) -> None:
    """Holds a crosscoder's configuration against a run, as far as that can be done without the checkpoints' weights.

    Args:
        own: of the crosscoder.
        config: of the run; [selection] and [positions] count.
        layer: the block that the run reads.
        width: of the run's models.

    Raises:
        InputError: its checkpoints, width, layer or policy for position 0 are not the run's.
    """
    if config.selection.checkpoints != own.checkpoints:
        raise InputError(
            f"crosscoder.from reads {list(own.checkpoints)}, in this order; selection.checkpoints names "
            f"{list(config.selection.checkpoints) or 'none'}: put the former there"
        )
    if own.width != width:
        raise InputError(f"crosscoder.from reads models of width {own.width}; the suite's have {width}")
    if own.layer != layer:
        raise InputError(f"crosscoder.from reads the output of block {own.layer}: set crosscoder.layer = {own.layer}")
    if own.positions != config.positions:
        wanted = {name: getattr(own.positions, name) for name in ("bos", "encode_first", "train_first")}
        lines = ", ".join(f"{name} = {str(value).lower()}" for name, value in wanted.items() if value is not None)
        raise InputError(f"crosscoder.from was trained under another policy for position 0: set {lines} in [positions]")


def fitted(crosscoder: Crosscoder, suite: Suite, config: RunConfig, layer: int) -> Crosscoder:
    """The crosscoder with the tokens, sources and weights of the run's checkpoints in its configuration.

    Args:
        crosscoder: as it was read.
        suite: all checkpoints of the run.
        config: of the run.
        layer: the block that the run reads.

    Raises:
        InputError: as for `check_fit`, or it was trained on other weights under the same names.
    """
    own = crosscoder.config
    check_fit(own, config, layer, suite.width)
    compared = suite.select(list(own.checkpoints))
    for checkpoint, trained_on in zip(compared, own.weights or [c.sha256 for c in compared], strict=True):
        if checkpoint.sha256 != trained_on:
            raise InputError(
                f"crosscoder.from was trained on other weights than those of checkpoint {checkpoint.name!r} in "
                f"{checkpoint.source}"
            )
    crosscoder.config = replace(
        own,
        tokens=tuple(compared.tokens),
        sources=tuple(checkpoint.origin for checkpoint in compared),
        weights=tuple(checkpoint.sha256 for checkpoint in compared),
    )
    return crosscoder
