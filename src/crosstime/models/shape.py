"""The sizes of a model on which costs depend, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from crosstime.base.errors import InputError, first_line
from crosstime.models.blocks import find_blocks


@dataclass(frozen=True)
class Shape:
    """A causal language model, by its numbers of parameters."""

    layers: int
    width: int
    vocabulary: int
    block: int
    """Parameters of one block; of the mean block, where they differ."""
    parameters: int
    """All parameters: blocks, embedding, final norm, and unembedding where it is not the embedding again."""

    @classmethod
    def of(cls, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> Shape:
        """The shape of the model that transformers makes from a configuration. No weights are made.

        Raises:
            InputError: transformers cannot make it, or it has not exactly one list of blocks.
        """
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"no {config.model_type} model can be made from config.json: {first_line(error)}"
            ) from None
        blocks = model.base_model.get_submodule(find_blocks(model))
        layers = config.num_hidden_layers
        return cls(
            layers=layers,
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            block=sum(parameter.numel() for parameter in blocks.parameters()) // layers,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )

    def cut(self, layer: int) -> int:
        """Parameters of the embedding and of the blocks up to `layer`, counted from 0: what harvest needs."""
        return self.vocabulary * self.width + (layer + 1) * self.block
