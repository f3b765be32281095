"""A causal language model cut at one layer: `lower(tokens)` gives the residual stream, `upper(residual)` the logits.

The cut knows no architecture. It finds the one list of blocks in a transformers model and makes copies of the module
tree that share its tensors and in which some blocks are replaced: `lower` passes by all blocks after the layer,
`upper` passes by all blocks up to it and starts from a given residual stream, `head` passes by them all. Whatever
surrounds the blocks (embedding, positions, attention masks, final norm, scaling of the logits) is the model's own
code, and block i stays at index i, so what a model decides by index (sliding windows, say) stays right.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from crosstime.base.errors import InputError
from crosstime.models.blocks import PassThrough, Start, Tap, Unembedding, copy_sharing, find_blocks, shared_tensors

PROBE_ROWS, PROBE_LENGTH, PROBE_PADDING = 2, 8, 3
"""The batch on which a cut is compared with the whole model; in one pass its first row is padded on the left."""


class SplitLM:
    """A causal language model cut after block `layer`, counted from 0.

    The parameters are shared with `model` (which is not changed), frozen, and in evaluation mode. On construction
    the cut is compared with the whole model on a small batch, with left padding and without.

    In all methods `mask` is 1 at real tokens and 0 at padding, and positions count the real tokens, so rows may be
    padded on the left. Values at padding mean nothing.

    Args:
        model: a transformers causal language model, on its device and in its dtype.
        layer: the block whose output is the residual stream, 0 <= layer < n_layers. (TransformerLens:
            `blocks.{layer + 1}.hook_resid_pre`; transformers: `hidden_states[layer + 1]`, which after the last block
            has the final norm applied, whereas `lower` never applies it.)
        name: what error messages call the model.

    Raises:
        InputError: `layer` is out of range; the model has not exactly one list of blocks; or the cut model does not
            compute what the whole model computes.
    """

    def __init__(self, model: PreTrainedModel, layer: int, name: str = "") -> None:
        path = find_blocks(model)
        base = cast(PreTrainedModel, model.base_model)
        blocks = list(base.get_submodule(path).children())
        self.layer, self.name, self.n_layers = layer, name, len(blocks)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._most_positions: int | None = getattr(model.config, "max_position_embeddings", None)
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} is out of range: {self} has blocks 0 to {self.n_layers - 1}")
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters

        shared = shared_tensors(model)
        whole = copy_sharing(model, shared)
        taps = [Tap(block) for block in whole.base_model.get_submodule(path).children()]
        tokens, padded = self._probe(model)
        with torch.no_grad():
            self._forward(whole, None, input_ids=tokens)
        stand_ins = [PassThrough(block, tap.extra) for block, tap in zip(blocks, taps, strict=True)]
        swaps = list(zip(blocks, stand_ins, strict=True))

        self._lower = copy_sharing(base, shared, swaps[layer + 1 :])
        self._tap = Tap(list(self._lower.get_submodule(path).children())[layer])
        self._start, self._head_start = (Start(blocks[0], taps[0].extra) for _ in range(2))
        upper = copy_sharing(model, shared, [(blocks[0], self._start), *swaps[1 : layer + 1]])
        self._unembedding = Unembedding(upper)
        self._upper: PreTrainedModel | None = upper
        self._head: PreTrainedModel | None = copy_sharing(model, shared, [(blocks[0], self._head_start), *swaps[1:]])

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
        """The residual stream after block `layer`, in the model's dtype. Later blocks do not run; no gradients.

        Raises:
            InputError: the rows are longer than the model has positions.
        """
        if self._most_positions is not None and tokens.shape[1] > self._most_positions:
            raise InputError(
                f"{self} was made for {self._most_positions} positions at most, got rows of {tokens.shape[1]} tokens: "
                "give shorter texts, or a smaller context"
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
        """Logits from the residual stream after block `layer`; differentiable with respect to `residual`.

        Args:
            residual: of any floating dtype; the model computes in its own.
            mask: as for `lower`.
            positions: one position per row. Only their logits are made: `[B, V]` instead of `[B, S, V]`.
            tokens: K tokens per row. Only their logits are made: `[B, K]` with positions, `[B, S, K]` without.

        Raises:
            InputError: the upper blocks were freed by `without_upper`.
        """
        residual = residual.to(self.dtype)
        with self._start.at(residual), self._unembedding.at(positions, tokens):
            # What the embedding makes of this input is thrown away: the first block's stand-in starts from `residual`.
            logits = self._forward(self._upper, mask, inputs_embeds=residual.detach()).logits
        return logits if positions is None else logits.squeeze(1)

    def head(self, residual: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        """Final norm and unembedding alone (the logit lens); differentiable with respect to `residual`.

        Raises:
            InputError: the upper blocks were freed by `without_upper`.
        """
        # Each vector is a sequence by itself, so that the attention masks, which no block will use, stay small.
        rows = residual.reshape(-1, 1, residual.shape[-1]).to(self.dtype)
        with self._head_start.at(rows):
            logits = self._forward(self._head, None, inputs_embeds=rows.detach()).logits
        return logits.reshape(*residual.shape[:-1], -1)

    def logits(
        self, tokens: Int[Tensor, "B S"], mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S V"]:
        """Logits of the whole model: the lower and the upper blocks, joined.

        Raises:
            InputError: the upper blocks were freed by `without_upper`.
        """
        return self.upper(self.lower(tokens, mask), mask)

    def without_upper(self) -> SplitLM:
        """This model with its lower blocks only: enough to harvest.

        The memory of the upper blocks is free as soon as nobody holds this object, nor the model it was made from.
        """
        lower = copy.copy(self)
        lower._upper = lower._head = None
        return lower

    def _forward(self, model: PreTrainedModel | None, mask: Tensor | None, **inputs: Tensor) -> Any:
        """One pass of a copy of the model."""
        if model is None:
            raise InputError(f"the upper blocks of {self} were freed by without_upper(): load the checkpoint again")
        arguments: dict[str, Any] = {**inputs, "use_cache": False, "return_dict": True}
        if mask is not None:
            arguments["attention_mask"] = mask = mask.long()
            # Left to itself, a model with learnt positions would count the padding. One that takes no positions
            # (BLOOM) derives them from the mask.
            if self._takes_positions:
                arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(**arguments)

    def _probe(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """A small batch [B, S] of tokens, and the mask by which its first row is padded on the left."""
        # An odd stride that is large spreads the ids over the vocabulary.
        ids = torch.arange(PROBE_ROWS * PROBE_LENGTH, device=self.device) * 7919 + 11
        tokens = (ids % model.config.get_text_config().vocab_size).reshape(PROBE_ROWS, PROBE_LENGTH)
        mask = torch.ones_like(tokens)
        mask[0, :PROBE_PADDING] = 0
        return tokens, mask

    @torch.no_grad()
    def _check(self, tokens: Tensor, mask: Tensor | None, hidden: Tensor, last_hidden: Tensor, logits: Tensor) -> None:
        """Compare each part with what the whole model computed for the same input, at its real tokens.

        Args:
            hidden: residual stream after block `layer` of the whole model [B, S, D].
            last_hidden: the same after its last block.
            logits: its logits [B, S, V].
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
                    f"{self} cannot be cut at layer {self.layer}: {padding}, the {what} of the cut model differ from "
                    "the whole model's; its architecture is not supported"
                )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results of the same computation agree, up to the rounding of products of another shape."""
    # A broken checkpoint (NaN weights) is equal to itself: that it is broken is for others to say.
    finite = theirs.isfinite()
    if ours.shape != theirs.shape or not torch.equal(finite, ours.isfinite()):
        return False
    difference, size = (ours - theirs)[finite].float(), theirs[finite].float()
    tolerance = 1e-4 if torch.finfo(theirs.dtype).bits >= 32 else 3e-2
    return not len(size) or difference.abs().max().item() <= tolerance * max(size.abs().max().item(), 1e-6)
