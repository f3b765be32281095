"""Sizes of a model that determine costs, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from crosstime.base.errors import InputError, first_line
from crosstime.models.split import find_blocks


@dataclass(frozen=True)
class ModelShape:
    """Size and parameter counts of a causal language model."""

    layers: int
    """Number of blocks."""
    width: int
    """Dimensions of the residual stream."""
    vocabulary: int
    """Size of the vocabulary."""
    block: int
    """Parameters of one block; the mean if they differ."""
    parameters: int
    """All parameters: blocks, embedding, final norm, and unembedding unless it is tied to the embedding."""

    @classmethod
    def from_config(cls, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> ModelShape:
        """Measure the model that transformers builds from a configuration, without allocating weights.

        Raises:
            InputError: Transformers can't build it, or it doesn't have exactly one list of blocks.
        """
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            reason = first_line(error)
            raise InputError(f"no {config.model_type} model can be made from config.json: {reason}") from None
        blocks = model.base_model.get_submodule(find_blocks(model))
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            block=sum(parameter.numel() for parameter in blocks.parameters()) // config.num_hidden_layers,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )

    def parameters_up_to(self, layer: int) -> int:
        """Return the parameters of the embedding and blocks 0 to `layer`: what collecting activations needs."""
        return self.vocabulary * self.width + (layer + 1) * self.block
