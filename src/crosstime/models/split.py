"""A causal language model split at one layer: `lower(tokens)` gives the residual stream, `upper(residual)` the logits.

The split is independent of the architecture. It finds the one list of blocks in a transformers model and makes copies
of the module tree that share its tensors and in which some blocks are replaced: `lower` skips all blocks after the
layer, `upper` skips all blocks up to it and starts from a given residual stream, `head` skips them all. Everything
around the blocks (embedding, positions, attention masks, final norm, scaling of the logits) is the model's own code,
and block i stays at index i, so whatever a model decides by index (sliding windows, say) stays right.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crosstime.base.errors import InputError

_PROBE_ROWS, _PROBE_LENGTH, _PROBE_PADDING = 2, 8, 3
"""The batch on which the split is compared with the whole model; in one pass its first row is padded on the left."""


class SplitLM:
    """A causal language model split after block `layer`, counted from 0.

    The parameters are shared with `model` (which isn't changed), frozen, and in evaluation mode. The constructor
    compares the split with the whole model on a small batch, with and without left padding.

    In all methods `mask` is 1 at real tokens and 0 at padding, and positions count the real tokens, so rows may be
    padded on the left. Values at padding are meaningless.

    Args:
        model: A transformers causal language model, on its device and in its dtype.
        layer: The block whose output is the residual stream, 0 <= layer < n_layers. (TransformerLens:
            `blocks.{layer + 1}.hook_resid_pre`; transformers: `hidden_states[layer + 1]`, which after the last block
            has the final norm applied, whereas `lower` never applies it.)
        name: The model's name in error messages.

    Raises:
        InputError: `layer` is out of range; the model doesn't have exactly one list of blocks; or the split model
            doesn't compute what the whole model computes.

    Example:
        >>> import torch, crosstime as ct
        >>> from crosstime import demo
        >>> suite = ct.Suite.from_folder(demo.SUITE, ["step3786"])
        >>> model = suite.load("step3786", layer=2)
        >>> tokens = torch.tensor(suite.tokenizer(["The dog"]).input_ids)
        >>> residual = model.lower(tokens)  # [B, S, D]
        >>> torch.allclose(model.upper(residual), model.logits(tokens))
        True
    """

    def __init__(self, model: PreTrainedModel, layer: int, name: str = "") -> None:
        path = find_blocks(model)
        base = cast(PreTrainedModel, model.base_model)
        blocks = list(base.get_submodule(path).children())
        self.layer, self.name, self.n_layers = layer, name, len(blocks)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._max_positions: int | None = getattr(model.config, "max_position_embeddings", None)
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} is out of range: {self} has blocks 0 to {self.n_layers - 1}")
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters

        shared = _shared_tensors(model)
        whole = _copy_sharing(model, shared)
        taps = [_Tap(block) for block in whole.base_model.get_submodule(path).children()]
        tokens, padded = self._probe(model)
        with torch.no_grad():
            self._forward(whole, None, input_ids=tokens)
        stand_ins = [_PassThrough(block, tap.extra) for block, tap in zip(blocks, taps, strict=True)]
        swaps = list(zip(blocks, stand_ins, strict=True))

        self._lower = _copy_sharing(base, shared, swaps[layer + 1 :])
        self._tap = _Tap(list(self._lower.get_submodule(path).children())[layer])
        self._start, self._head_start = (_Start(blocks[0], taps[0].extra) for _ in range(2))
        upper = _copy_sharing(model, shared, [(blocks[0], self._start), *swaps[1 : layer + 1]])
        self._unembedding = _Unembedding(upper)
        self._upper: PreTrainedModel | None = upper
        self._head: PreTrainedModel | None = _copy_sharing(model, shared, [(blocks[0], self._head_start), *swaps[1:]])

        for mask in (None, padded):
            with torch.no_grad():
                logits = self._forward(whole, mask, input_ids=tokens).logits
            hidden = [tap.take() for tap in taps]
            self._check(tokens, mask, hidden[layer], hidden[-1], logits)
        self.width, self.vocab_size = hidden[layer].shape[-1], logits.shape[-1]

    def __str__(self) -> str:
        return f"model {self.name}" if self.name else "the model"

    def lower(
        self, tokens: Int[Tensor, "B S"], mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Return the residual stream after block `layer`, in the model's dtype, without gradients.

        Raises:
            InputError: The rows are longer than the model's context.
        """
        if self._max_positions is not None and tokens.shape[1] > self._max_positions:
            raise InputError(
                f"{self} has {self._max_positions} positions, but the text has {tokens.shape[1]} tokens: use shorter "
                "texts or a smaller context"
            )
        with torch.no_grad():
            self._forward(self._lower, mask, input_ids=tokens)
        return self._tap.take()

    def upper(
        self,
        residual: Float[Tensor, "B S D"],
        mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None,
        positions: Int[Tensor, " B"] | None = None,
        tokens: Int[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B S V"] | Float[Tensor, "B V"] | Float[Tensor, "B S K"] | Float[Tensor, "B K"]:
        """Return logits from the residual stream after block `layer`; differentiable with respect to `residual`.

        Args:
            residual: In any floating dtype; the model computes in its own.
            mask: As for `lower`.
            positions: One position per row; only its logits are computed: `[B, V]` instead of `[B, S, V]`.
            tokens: K tokens per row; only their logits are computed: `[B, K]` with positions, `[B, S, K]` without.
        """
        residual = residual.to(self.dtype)
        with self._start.replace(residual), self._unembedding.restrict(positions, tokens):
            # The input is discarded: the stand-in for the first block starts from `residual`.
            logits = self._forward(self._upper, mask, inputs_embeds=residual.detach()).logits
        return logits if positions is None else logits.squeeze(1)

    def head(self, residual: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        """Apply only the final norm and the unembedding (the logit lens); differentiable with respect to `residual`."""
        # Each vector is a sequence of its own, so the attention masks, which no block uses, stay small.
        rows = residual.reshape(-1, 1, residual.shape[-1]).to(self.dtype)
        with self._head_start.replace(rows):
            logits = self._forward(self._head, None, inputs_embeds=rows.detach()).logits
        return logits.reshape(*residual.shape[:-1], -1)

    def logits(
        self, tokens: Int[Tensor, "B S"], mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S V"]:
        """Return the logits of the whole model."""
        return self.upper(self.lower(tokens, mask), mask)

    def without_upper(self) -> SplitLM:
        """Return this model with its lower blocks only, on which `upper`, `head` and `logits` raise InputError.

        The memory of the upper blocks is freed once this object and the model it was made from are garbage-collected.
        """
        lower = copy.copy(self)
        lower._upper = lower._head = None
        return lower

    def _forward(self, model: PreTrainedModel | None, mask: Tensor | None, **inputs: Tensor) -> Any:
        """Run one forward pass of a copy of the model."""
        if model is None:
            raise InputError(f"the upper blocks of {self} were freed by without_upper(): load the checkpoint again")
        arguments: dict[str, Any] = {**inputs, "use_cache": False, "return_dict": True}
        if mask is not None:
            arguments["attention_mask"] = mask = mask.long()
            # By default, a model with learnt positions counts the padding. One that takes no positions (BLOOM) derives
            # them from the mask.
            if self._takes_positions:
                arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(**arguments)

    def _probe(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Return a small batch [B, S] of tokens, and a mask that pads its first row on the left."""
        # A large odd stride spreads the ids over the vocabulary.
        ids = torch.arange(_PROBE_ROWS * _PROBE_LENGTH, device=self.device) * 7919 + 11
        tokens = (ids % model.config.get_text_config().vocab_size).reshape(_PROBE_ROWS, _PROBE_LENGTH)
        mask = torch.ones_like(tokens)
        mask[0, :_PROBE_PADDING] = 0
        return tokens, mask

    @torch.no_grad()
    def _check(self, tokens: Tensor, mask: Tensor | None, hidden: Tensor, last_hidden: Tensor, logits: Tensor) -> None:
        """Compare each part with the whole model on the same input, at its real tokens.

        Args:
            tokens: The input [B, S].
            mask: Its mask.
            hidden: The whole model's residual stream after block `layer` [B, S, D].
            last_hidden: Its residual stream after the last block.
            logits: Its logits [B, S, V].
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        end = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        residual = self.lower(tokens, mask)
        pairs = {
            "residual stream": (residual[real], hidden[real]),
            "logits": (self.upper(residual, mask)[real], logits[real]),
            "logits at one position": (self.upper(residual, mask, end), logits[:, -1]),
            "logits of single tokens": (self.upper(residual, mask, end, tokens), logits[:, -1].gather(1, tokens)),
            "logits of the head": (self.head(last_hidden[real]), logits[real]),
        }
        for what, (ours, theirs) in pairs.items():
            if not _equal(ours, theirs):
                padding = "without padding" if mask is None else "with left padding"
                raise InputError(
                    f"{self} cannot be split at layer {self.layer}: {padding}, the {what} of the split model differ "
                    "from the whole model's; its architecture is not supported"
                )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two results of the same computation agree, up to rounding in products of other shapes."""
    # A broken checkpoint (NaN weights) is equal to itself: `finite_residual` reports it.
    finite = theirs.isfinite()
    if ours.shape != theirs.shape or not torch.equal(finite, ours.isfinite()):
        return False
    difference, size = (ours - theirs)[finite].float(), theirs[finite].float()
    tolerance = 1e-4 if torch.finfo(theirs.dtype).bits >= 32 else 3e-2
    return not len(size) or difference.abs().max().item() <= tolerance * max(size.abs().max().item(), 1e-6)


def finite_residual(
    lm: SplitLM, tokens: Int[Tensor, "B S"], tokenizer: PreTrainedTokenizerBase | None = None
) -> Float[Tensor, "B S D"]:
    """Return `lm.lower(tokens)`, or raise if it holds NaN or infinity.

    Args:
        lm: The model.
        tokens: Token ids without padding.
        tokenizer: Used to show text instead of token ids in the error.

    Raises:
        InputError: An activation is not finite; the message names the checkpoint and the token.
    """
    residual = lm.lower(tokens.to(lm.device))
    # The sum over D is not finite if an entry isn't, and is cheaper to check than the entries.
    finite = residual.float().sum(-1).isfinite().all(-1)
    if finite.all() or residual.isfinite().all():
        return residual
    ids = tokens[int(finite.int().argmin())].tolist()
    position = _first_not_finite(lm, ids)
    token = f"token id {ids[position]}, position {position}"
    if tokenizer is not None:
        text = tokenizer.decode(ids[position : position + 1])
        token = f"token {text!r}, position {position} of {tokenizer.decode(ids)!r}"
    raise InputError(
        f"checkpoint {lm.name}: the activation after block {lm.layer} is not finite at {token}; "
        "leave this checkpoint out, or try float32"
    )


def _first_not_finite(lm: SplitLM, ids: list[int]) -> int:
    """Return the first position of a text whose activation is not finite."""
    # Within one pass NaN also reaches earlier positions: attention weights it with zero, and zero times NaN is NaN.
    for end in range(1, len(ids)):
        if not lm.lower(torch.tensor([ids[:end]], device=lm.device)).isfinite().all():
            return end - 1
    return len(ids) - 1


def find_blocks(model: PreTrainedModel) -> str:
    """Return the path of the one list of blocks within `model.base_model`.

    Raises:
        InputError: The model has no base model, or not exactly one `nn.ModuleList` as long as its number of layers.
    """
    base, kind = model.base_model, type(model).__name__
    if base is model:
        raise InputError(f"{kind} is not a causal language model: it has no unembedding around its base model")
    n_layers = model.config.get_text_config().num_hidden_layers
    paths = [path for path, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    # A list within a list (experts, say) may have the same length by chance.
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if len(outermost) != 1:
        found = ", ".join(outermost) or "none"
        raise InputError(
            f"{kind} cannot be split: expected one list of {n_layers} blocks in its base model, found {found}"
        )
    return outermost[0]


def _shared_tensors(model: nn.Module) -> dict[int, Any]:
    """Return what copies of a model share with it, by id: buffers, and frozen parameters over the same memory."""
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return frozen | {id(buffer): buffer for buffer in model.buffers()}


def _copy_sharing(
    model: PreTrainedModel, shared: dict[int, Any], replace: Sequence[tuple[nn.Module, nn.Module]] = ()
) -> PreTrainedModel:
    """Copy a module tree in evaluation mode, with the `shared` tensors and some modules replaced."""
    # Instead of copying an object, a deep copy takes what its memo holds under the object's id.
    memo = shared | {id(old): new for old, new in replace}
    return copy.deepcopy(model, memo).eval()


class _Tap:
    """Record what a block returns."""

    def __init__(self, block: nn.Module) -> None:
        block.register_forward_hook(self._keep)
        self.extra: int | None = None
        """Number of values returned after the hidden state in a tuple; None if the block returns a bare tensor."""
        self._hidden: Tensor | None = None

    def _keep(self, _block: nn.Module, _args: Any, output: Any) -> None:
        # Most families return a tensor, BLOOM a tuple; output[0] of a tensor would be the first row of the batch.
        self.extra = len(output) - 1 if isinstance(output, tuple) else None
        self._hidden = output[0] if isinstance(output, tuple) else output

    def take(self) -> Tensor:
        """Return the hidden state [B, S, D] of the last forward pass, and drop it."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None, "the block did not run"
        assert hidden.ndim == 3, "a block returns one hidden state per position"
        return hidden


class _PassThrough(nn.Module):
    """Stand-in for a block that returns its input, in the form in which the block returns its output."""

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


class _Start(_PassThrough):
    """Stand-in for the first block that returns a given residual stream instead of its input."""

    _residual: Tensor | None = None

    @contextmanager
    def replace(self, residual: Tensor) -> Iterator[None]:
        """Return `residual` [B, S, D] within this context."""
        self._residual = residual
        try:
            yield
        finally:
            # A residual stream with its graph is large: don't keep it after the call.
            self._residual = None

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        assert self._residual is not None, "set a residual stream before every pass"
        assert self._residual.shape == hidden_states.shape
        return super().forward(self._residual)


class _Unembedding:
    """Restrict a model's unembedding to one position per row, and to the logits of some tokens.

    What follows it (scaling, soft-capping) still applies, as long as it is elementwise.
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
    def restrict(self, positions: Tensor | None, tokens: Tensor | None) -> Iterator[None]:
        """Within this context, unembed only `positions` [B], and only into `tokens` [B, K]; None for all."""
        self._positions, self._tokens = positions, tokens
        try:
            yield
        finally:
            self._positions = self._tokens = self._logits = None

    def _before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = args
        if self._positions is not None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), self._positions].unsqueeze(1)
        # Another kind of module (quantised, say) may store its weights in another form: let it compute all logits.
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
