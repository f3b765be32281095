"""What every sparsity rule is: which features a crosscoder keeps, and what it pays for keeping them.

A rule is a frozen dataclass of settings; it has no state. Whatever it learns or measures in training is one tensor, the
crosscoder's `threshold`. A new rule is a new subclass of `Sparsity` in a file of its own (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosstime.base.errors import InputError, nearest
from crosstime.base.registry import Family
from crosstime.crosscoder.sparsity.scratch import Scratch

Mode = Literal["training", "inference"]


@dataclass(frozen=True)
class Progress:
    """Where a training run stands: schedules are functions of it."""

    step: int
    """Counted from 0."""
    steps: int
    """Of the whole run."""


END = Progress(1, 1)
"""After the last step: every schedule has arrived."""


class Codes(ABC):
    """What a rule made of one batch in training, and the way back for the gradients."""

    shared: Float[Tensor, "B F"]
    """The features of each row; zero where one does not fire."""
    sums: Float[Tensor, " F"]
    """Those of each feature, added over the rows: 0 for one that fires in no row."""
    written: Sequence[Float[Tensor, "B F"]]
    """What the decoder reads: one matrix for all checkpoints, or one for each where the rule gates them apart."""
    penalty: Float[Tensor, ""]
    """What the rule adds to the loss."""
    threshold: Tensor | None = None
    """The crosscoder's threshold after this batch, where the rule measures it."""
    slope: Float[Tensor, " F"] | None
    """Gradient of the penalty with respect to every row's codes, where that is the same in all rows; None if zero, or
    if `backward` sees to it."""

    @abstractmethod
    def backward(
        self, gradients: Sequence[Float[Tensor, "B F"]]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "F M"] | None, Float[Tensor, " F"] | None]:
        """From gradients of the loss with respect to `written` (`slope` included) to those with respect to h, decoder
        norms and threshold; None where there is none. That of h is 0 where h is 0. May overwrite its arguments.
        """


def total_norms(norms: Float[Tensor, "F M"]) -> Float[Tensor, " F"]:
    """s_i = sum over checkpoints of ||d_i,m||: by f_i s_i features of different decoder norm are compared."""
    return norms.sum(1)


def count_active(f: Float[Tensor, "B F"]) -> Int[Tensor, ""]:
    """How many codes are active. Those that are not are all zero bits, and integers are counted many times faster."""
    return torch.count_nonzero(bits(f))


def bits(values: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """The bits of floats as integers. Where no float is negative, the integers are in the order of the floats."""
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])


def where_positive(
    a: Float[Tensor, "B F"], b: Float[Tensor, "B F"], *, out: Float[Tensor, "B F"]
) -> Float[Tensor, "B F"]:
    """a where b > 0, else 0, in one pass: what torch does to go back through a ReLU.

    It is written into `out`, which may be a or b, unless gradients are to flow back to a.
    """
    kernel = torch.ops.aten.threshold_backward
    return kernel(a, b, 0) if a.requires_grad else kernel.grad_input(a, b, 0, grad_input=out)


class MaskedCodes(Codes):
    """Codes that are h or 0, the same for all checkpoints, at a price of `weight` sum_i f_i s_i a row (0 for none).

    Its gradients are written out, so training keeps nothing but the codes and their gradient.
    """

    def __init__(self, f: Float[Tensor, "B F"], norms: Float[Tensor, "F M"], weight: float) -> None:
        self.shared, self.written = f, (f,)
        price = weight / len(f)
        # Added up in float32 and rounded once, at the end: to ask for float32 would first copy the codes to it.
        self.sums = f.sum(0).float()
        self.penalty = price * (self.sums @ total_norms(norms))
        self.slope = price * total_norms(norms) if weight else None
        self.norms_gradient = (price * self.sums)[:, None].expand(norms.shape) if weight else None
        """Gradient of the penalty with respect to the decoder norms [F, M]; None where there is no penalty."""

    def backward(
        self, gradients: Sequence[Float[Tensor, "B F"]]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "F M"] | None, Float[Tensor, " F"] | None]:
        gradient = where_positive(gradients[0], self.shared, out=gradients[0])
        return gradient, self.norms_gradient, None


@dataclass(frozen=True)
class Sparsity(Family, ABC):
    """Base of all rules. Activations h = ReLU(pre-activations); norms ||d_i,m|| are in scaled units, [F, M]."""

    variant_key: ClassVar[str] = "rule"

    rule: str = field(default="", init=False)
    """What run.toml and config.json call the rule; each subclass states its own."""

    @abstractmethod
    def select(
        self, h: Float[Tensor, "*b F"], norms: Float[Tensor, "F M"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        """The codes at inference: h where a feature is kept, else 0. No row depends on another."""

    def select_in_training(
        self, h: Float[Tensor, "B F"], norms: Float[Tensor, "F M"], threshold: Tensor | None, progress: Progress
    ) -> Float[Tensor, "B F"]:
        """The codes of a batch in training, where they differ from those at inference."""
        return self.select(h, norms, threshold)

    def weight_at(self, progress: Progress) -> float:
        """At a step, the price of sum_i f_i s_i, a row's codes times decoder norms."""
        return 0.0

    def codes(
        self,
        h: Float[Tensor, "B F"],
        norms: Float[Tensor, "F M"],
        threshold: Tensor | None,
        progress: Progress,
        scratch: Scratch,
    ) -> Codes:
        """The codes of a batch in training, their price, and the way back for the gradients.

        They are done with before the next batch, so they may lie in `scratch`.
        """
        f = self.select_in_training(h, norms, threshold, progress).to(h.dtype)
        return MaskedCodes(f, norms, self.weight_at(progress))

    def at(
        self, f: Float[Tensor, "*b F"], norms: Float[Tensor, " F"], threshold: Tensor | None
    ) -> Float[Tensor, "*b F"]:
        """The codes as one checkpoint, whose decoder norms are given, writes them."""
        return f

    def least_code(self, norms: Float[Tensor, "F M"], m: int, threshold: Tensor | None) -> Float[Tensor, " F"] | None:
        """What each feature must exceed for checkpoint m to write it; None where other features of the row decide."""
        return None

    @property
    def decoder_norm(self) -> float:
        """Norm of each d_i,m at the start that suits the rule, in scaled units (1 in the paper for BatchTopK)."""
        return 1.0

    @property
    def gated(self) -> bool:
        """Whether every checkpoint writes codes of its own (`at`): a batch in training then holds M times as many."""
        return False

    @property
    def threshold_lr_share(self) -> float:
        """Learning rate of a learnt threshold, in parts of that of the weights."""
        return 1.0

    def first_threshold(self, features: int) -> Tensor | None:
        """The threshold before training: an nn.Parameter where it is learnt, a tensor where it is measured."""
        return None

    def logged(self, progress: Progress) -> dict[str, float | int]:
        """The rule's scheduled values at a step, for the log."""
        return {}

    def check(self, features: int) -> None:
        """Raise InputError where the rule does not fit a dictionary of so many features."""

    def check_trainable(self) -> None:
        """Raise InputError where nothing can be learnt under the rule."""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Sparsity:
        """The rule that `to_dict` wrote.

        Raises:
            InputError: there is no such rule.
            TypeError: it has no such setting.
        """
        settings = dict(settings)
        name, known = settings.pop("rule"), cls.variants()
        if name not in known:
            raise InputError(
                f"there is no sparsity rule {name!r}{nearest(name, known)} (yours is there once it is imported)"
            )
        return known[name](**settings)

    def to_dict(self) -> dict[str, Any]:
        """The rule's name and settings, as JSON can hold them."""
        return asdict(self)
