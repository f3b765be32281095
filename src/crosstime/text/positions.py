"""The policy for position 0, which every stage of a run follows."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from crosstime.base.errors import InputError, SettingError


@dataclass(frozen=True)
class Positions:
    """[positions]: what happens at the first position of every sequence and prompt.

    The first position is an attention sink whose activation is far larger than others and the same for every text. So
    by default each sequence starts with BOS, and position 0 is never encoded: its activation passes unchanged.

    Example:
        >>> import crosstime as ct
        >>> ct.Positions().first_encoded
        1
        >>> paper = ct.Positions(bos=False, encode_first=True, train_first=False)
        >>> paper.first_encoded, paper.first_trained
        (0, 1)
    """

    bos: bool = True
    """Put BOS before every sequence and prompt."""
    encode_first: bool = False
    """Encode position 0 like any other, in training and in every analysis."""
    train_first: bool | None = None
    """Train on position 0; default: if it's encoded. The paper encodes it in its analyses though its crosscoders
    weren't trained on it: `bos = false`, `encode_first = true`, `train_first = false`."""

    def __post_init__(self) -> None:
        if self.train_first and not self.encode_first:
            raise SettingError(
                "train_first", "needs `encode_first`: a position that's never encoded needn't be trained"
            )

    @property
    def first_encoded(self) -> int:
        """Index of the first position that the crosscoder encodes and replaces."""
        return 0 if self.encode_first else 1

    @property
    def first_trained(self) -> int:
        """Index of the first position that the crosscoder is trained on."""
        return self.first_encoded if self.train_first is None else int(not self.train_first)

    def check(self, bos: bool, what: str) -> None:
        """Refuse token ids that were made under another policy.

        Args:
            bos: Whether they start with BOS.
            what: What they are, for the message.

        Raises:
            InputError: They start with BOS and the policy has none, or the reverse.
        """
        if bos != self.bos:
            theirs, ours = ("with", "without") if bos else ("without", "with")
            raise InputError(
                f"{what} was tokenised {theirs} BOS, but the crosscoder's policy is {ours}: "
                "pass the same Positions everywhere"
            )

    def bos_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the ids to put before every text: BOS, or EOS if the tokenizer has no BOS, or nothing.

        Raises:
            InputError: The policy asks for BOS and the tokenizer has neither token.
        """
        if not self.bos:
            return []
        for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if isinstance(token_id, int):
                return [token_id]
        raise InputError("the tokenizer has neither a BOS nor an EOS token: use Positions(bos=False)")
