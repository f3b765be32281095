"""Configuration, tokenizer and model from a checkpoint's folder: complete and safe, or a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from crosstime.base.errors import InputError, first_line
from crosstime.models.weights import is_safetensors


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of the checkpoint's language model.

    Raises:
        InputError: there is none, or transformers does not understand it.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from None
    return config.get_text_config()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        InputError: there is none, or transformers does not understand it.
    """
    advice = "every checkpoint needs its own; if the run stored it once, copy it into each folder"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(f"{folder} has no usable tokenizer ({first_line(error)}): {advice}") from None
    # Without any of its files transformers makes an empty tokenizer.
    if not any((folder / name).is_file() for name in {"tokenizer.json", *tokenizer.vocab_files_names.values()}):
        raise InputError(f"{folder} has no tokenizer: {advice}")
    return tokenizer


def load_model(
    folder: Path, files: list[Path], dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The checkpoint's causal language model, on the CPU.

    Args:
        files: its weight files (`find_weights`). Pickles are read with `torch.load(weights_only=True)`.

    Raises:
        InputError: the weights do not fill the model that the configuration describes, or cannot be read.
    """
    try:
        with _quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=is_safetensors(files),
                weights_only=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from None
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(key) for key in info.get(problem, ())):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"the weights in {folder} do not fit its config.json: {problem[:-5]} {names[0]}{more}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and warnings of transformers: what matters in them is raised as an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
