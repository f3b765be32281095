"""What a run does with position 0: one policy that every stage obeys."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError


@dataclass(frozen=True)
class Positions:
    """The policy for the first position of every sequence and every prompt.

    The first position is an attention sink with an activation of its own kind (far larger, the same for every text),
    so by default each sequence starts with BOS and position 0 is never encoded: its activation passes unchanged.
    """

    bos: bool = True
    """Put BOS before every sequence and prompt."""
    encode_first: bool = False
    """Encode position 0 like any other, in training and in every analysis."""
    train_first: bool | None = None
    """Train on position 0; without it, where it is encoded. The paper encodes it in its analyses though its crosscoders
    were not trained on it: `bos = false`, `encode_first = true`, `train_first = false`."""

    def __post_init__(self) -> None:
        if self.train_first and not self.encode_first:
            raise InputError(
                "positions.train_first goes with `encode_first = true`: else it would be learnt for nothing"
            )

    @property
    def first_encoded(self) -> int:
        """Index of the first position that the crosscoder reads and replaces."""
        return 0 if self.encode_first else 1

    @property
    def first_trained(self) -> int:
        """Index of the first position that the crosscoder is trained on."""
        return self.first_encoded if self.train_first is None else int(not self.train_first)

    def check(self, bos: bool, what: str) -> None:
        """Refuse text that was tokenised under another policy than this one.

        Raises:
            InputError: `what` has BOS where the policy has none, or the reverse.
        """
        if bos != self.bos:
            has, wants = ("with", "without") if bos else ("without", "with")
            raise InputError(
                f"{what} was tokenised {has} BOS, the policy of the crosscoder is {wants}: "
                "pass the same Positions everywhere"
            )

    def bos_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids that stand before every text: BOS, or EOS where a tokenizer has no BOS, or nothing.

        Raises:
            InputError: the policy asks for BOS and the tokenizer has neither token.
        """
        if not self.bos:
            return []
        for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if isinstance(token_id, int):
                return [token_id]
        raise InputError("the tokenizer has neither a BOS nor an EOS token: set `bos = false` under [positions]")
