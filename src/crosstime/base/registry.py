"""Registries and families: the variants of one kind of thing by name, where users can add their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from crosstime.base.errors import InputError, SettingError, nearest


@runtime_checkable
class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """What run.toml and Python call it."""
        ...


N = TypeVar("N", bound=Named)


class Registry(Generic[N]):
    """Values of one kind by name; each carries all facts about its variant, so no code compares names.

    Args:
        kind: What the values are, for messages: "attribution method".

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Colour:
        ...     name: str
        >>> colours = Registry("colour")
        >>> red = colours.add(Colour("red"))
        >>> colours["red"] is red
        True
        >>> colours["rde"]
        Traceback (most recent call last):
        crosstime.base.errors.InputError: unknown colour 'rde': choose red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, N] = {}

    def add(self, value: N) -> N:
        """Register a value under its name, and return it.

        Raises:
            InputError: the name is taken.
        """
        if self._values.setdefault(value.name, value) is not value:
            raise InputError(f"there is already a {self.kind} {value.name!r}: choose another name")
        return value

    def __getitem__(self, name: str) -> N:
        if name not in self._values:
            known = list(self._values)
            choices = f"choose {' or '.join(filter(None, [', '.join(known[:-1]), *known[-1:]]))}"
            hint = nearest(name, known) if len(known) > 1 else ""
            raise InputError(f"unknown {self.kind} {name!r}: {choices}{hint}")
        return self._values[name]

    def check(self, **settings: str) -> None:
        """Check that settings name registered values.

        Raises:
            SettingError: One of them doesn't.
        """
        for setting, name in settings.items():
            try:
                self[name]
            except InputError as error:
                raise SettingError(setting, f"names an {error}") from None

    def __iter__(self) -> Iterator[N]:
        return iter(self._values.values())

    @property
    def names(self) -> list[str]:
        """The registered names, in the order in which they were added."""
        return list(self._values)


F = TypeVar("F", bound="Family")


class Family:
    """Base of a family of frozen dataclasses: a variant is a subclass, chosen by the value of one of its fields.

    Defining the subclass registers it: run.toml can choose it once its module is imported.

    Example:
        >>> from dataclasses import dataclass, field
        >>> class Shape(Family):
        ...     variant_key = "shape"
        ...     shape: str = ""
        >>> @dataclass(frozen=True)
        ... class Circle(Shape):
        ...     shape: str = field(default="circle", init=False)
        ...     radius: float = 1.0
        >>> list(Shape.variants())
        ['circle']
    """

    variant_key: ClassVar[str]
    """Name of the field whose value chooses the variant, for example "rule"."""

    @classmethod
    def variants(cls: type[F]) -> dict[str, type[F]]:
        """Return all variants whose modules have been imported, by name."""
        variants: dict[str, type[F]] = {}
        for kind in cls.__subclasses__():
            variants |= kind.variants()
            if name := getattr(kind, cls.variant_key):
                variants[name] = kind
        return variants
