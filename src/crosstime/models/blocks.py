"""Copies of a transformers model that share its tensors and in which some blocks are replaced.

`split.py` says what they are for. Nothing here changes the model it is given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosstime.base.errors import InputError


def find_blocks(model: PreTrainedModel) -> str:
    """The path, within `model.base_model`, of the one list of blocks.

    Raises:
        InputError: the model has no base model, or not exactly one `nn.ModuleList` as long as its number of layers.
    """
    base, what = model.base_model, type(model).__name__
    if base is model:
        raise InputError(f"{what} is not a causal language model: it has no unembedding around its base model")
    n_layers = model.config.get_text_config().num_hidden_layers
    paths = [path for path, part in base.named_modules() if isinstance(part, nn.ModuleList) and len(part) == n_layers]
    # A list within a list (experts, say) may have the same length by chance.
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if len(outermost) != 1:
        found = ", ".join(outermost) or "none"
        raise InputError(
            f"{what} cannot be cut: expected one list of {n_layers} blocks in its base model, found {found}"
        )
    return outermost[0]


def shared_tensors(model: nn.Module) -> dict[int, Any]:
    """What copies of the model share with it: buffers, and parameters as frozen ones over the same memory."""
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return frozen | {id(buffer): buffer for buffer in model.buffers()}


def copy_sharing(
    model: PreTrainedModel, shared: dict[int, Any], replace: Sequence[tuple[nn.Module, nn.Module]] = ()
) -> PreTrainedModel:
    """A copy of the module tree, in evaluation mode, that holds the `shared` tensors and the replaced modules."""
    # A deep copy takes from its memo whatever it finds there under an object's id instead of copying the object.
    memo = shared | {id(old): new for old, new in replace}
    return copy.deepcopy(model, memo).eval()


class Tap:
    """Keeps what a block returns."""

    def __init__(self, block: nn.Module) -> None:
        block.register_forward_hook(self._keep)
        self.extra: int | None = None
        """How many values the block returns after the hidden state, in a tuple; None if it returns a bare tensor."""
        self._hidden: Tensor | None = None

    def _keep(self, _block: nn.Module, _args: Any, output: Any) -> None:
        # Most families return a tensor, BLOOM a tuple; output[0] of a tensor would be the first row of the batch.
        self.extra = len(output) - 1 if isinstance(output, tuple) else None
        self._hidden = output[0] if isinstance(output, tuple) else output

    def take(self) -> Tensor:
        """The hidden state [B, S, D] of the last forward pass, which is then forgotten."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None, "the block did not run"
        assert hidden.ndim == 3, "a block returns one hidden state for each position"
        return hidden


class PassThrough(nn.Module):
    """Stands in for a block: hands the hidden state on, in the form in which the block returns it."""

    def __init__(self, block: nn.Module, extra: int | None) -> None:
        super().__init__()
        self.extra = extra
        # A model may read attributes of its blocks, such as `attention_type`.
        own = vars(self).keys()
        for name, value in vars(block).items():
            if name not in own and name != "forward" and not isinstance(value, Tensor):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        return hidden_states if self.extra is None else (hidden_states, *[None] * self.extra)


class Start(PassThrough):
    """Stands in for the first block: hands on a given residual stream instead of what the embedding made."""

    _residual: Tensor | None = None

    @contextmanager
    def at(self, residual: Tensor) -> Iterator[None]:
        """Within this context the blocks start from `residual` [B, S, D]."""
        self._residual = residual
        try:
            yield
        finally:
            # A residual stream with its graph is large: do not outlive the call.
            self._residual = None

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        assert self._residual is not None, "a residual stream is given before every pass"
        assert self._residual.shape == hidden_states.shape
        return super().forward(self._residual)


class Unembedding:
    """Lets a model unembed one position of each row only, into some tokens' logits only.

    Whatever follows (scaling, soft-capping) still applies, as long as it treats every logit by itself.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        unembedding = model.get_output_embeddings()
        if unembedding is None:
            raise InputError(f"{type(model).__name__} is not a causal language model: it has no unembedding")
        unembedding.register_forward_pre_hook(self._before)
        unembedding.register_forward_hook(self._after)
        self._positions: Tensor | None = None
        self._tokens: Tensor | None = None
        self._logits: Tensor | None = None

    @contextmanager
    def at(self, positions: Tensor | None, tokens: Tensor | None) -> Iterator[None]:
        """Within this context only `positions` [B] are unembedded, and into `tokens` [B, K]; None for all."""
        self._positions, self._tokens = positions, tokens
        try:
            yield
        finally:
            self._positions = self._tokens = self._logits = None

    def _before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = args
        if self._positions is not None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), self._positions].unsqueeze(1)
        # Weights of another kind of module (quantised, say) are its own affair: it makes all logits.
        if self._tokens is not None and type(module) is nn.Linear:
            self._logits = hidden @ module.weight[self._tokens].mT
            if module.bias is not None:
                self._logits = self._logits + module.bias[self._tokens].unsqueeze(1)
            hidden = hidden[:0]  # no rows, so the product over the vocabulary costs nothing
        return (hidden,)

    def _after(self, _module: nn.Module, _args: Any, logits: Tensor) -> Tensor | None:
        if self._tokens is None or self._logits is not None:
            return self._logits
        return logits.gather(2, self._tokens[:, None].expand(-1, logits.shape[1], -1))
