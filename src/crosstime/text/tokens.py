"""Text to token ids, many texts at once."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text: no special tokens are added, nothing is cut off or padded."""
    if not texts:
        return []
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    # The tokenizer's own call also builds offsets and masks, which costs as much as the tokens. It sets truncation and
    # padding anew each time, so switching them off here changes nothing for others.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def common_length(*sequences: Sequence[int]) -> int:
    """For how many tokens from the beginning the sequences agree."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
