from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstime.pipeline import toml


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    steps: int = 3
    words: tuple[str, ...] = ()
    counts: tuple[int, ...] | dict[str, int] | None = None
    kind: Literal["red", "green"] = "red"
    fast: bool = field(default=False, metadata={"matters": False})
    title: str | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"inner.steps must not be negative, not {self.steps}")


@dataclass(frozen=True)
class Item:
    name: str


@dataclass(frozen=True)
class Shelf:
    length: int = 1
    book: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    item: tuple[Item, ...] = ()
    shelf: Shelf = Shelf()


@dataclass(frozen=True)
class Either:
    shelf: Shelf | tuple[Shelf, ...] = Shelf()
    inner: Inner | None = None


def make(table):
    return toml.build(Outer, table)


def read(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    return toml.read(path, make)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[iner]", r"unknown section `iner`; the nearest is 'inner'"),
        ("[inner]\nstep = 1", r"\[inner\] unknown key `step`; the nearest is 'steps'"),
        ("[inner]\nzzzz = 1", r"\[inner\] unknown key `zzzz`; the nearest is '"),
        ("[inner]\nsteps = 1.0", r"\[inner\] `steps` must be a whole number, not 1\.0"),
        ("[inner]\nsteps = true", r"\[inner\] `steps` must be a whole number, not true"),
        ("[inner]\nsteps = -1", r"inner\.steps must not be negative"),
        ("[inner]\nrate = nan", r"\[inner\] `rate` must be a finite number"),
        ("[inner]\nfast = 1", r"\[inner\] `fast` must be true or false, not 1"),
        ('[inner]\nwords = "a"', r'\[inner\] `words` must be a list of strings, not "a"'),
        ("[inner]\nwords = [1]", r"\[inner\] `words` must be a list of strings, not \[1\]"),
        ("[inner]\ncounts = 1.5", r"\[inner\] `counts` must be a list of whole numbers or a table of whole numbers"),
        ('[inner]\nkind = "gren"', r'one of "red", "green", not "gren"; the nearest is \'green\''),
        ("inner = 3", r"`inner` must be a section, \[inner\]"),
        ("[item]\nname = 'a'", r"`item` must be a list of sections: write \[\[item\]\]"),
        ("[[item]]\nname = 'a'\n[[item]]", r"\[item 2\] `name` is missing"),
        ("[[item]]\nnam = 'a'", r"\[item 1\] unknown key `nam`; the nearest is 'name'"),
        (
            "[[shelf.book]]\nname = 'a'\n[[shelf.book]]\nnam = 'b'",
            r"\[shelf\.book 2\] unknown key `nam`; the nearest is 'n",
        ),
        ("[shelf]\nbook = 'a'", r"`shelf\.book` must be a list of sections: write \[\[shelf\.book\]\]"),
        ("[inner", "is not valid TOML: "),
    ],
)
def test_errors_name_the_file_the_section_and_the_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"x\.toml.*{message}"):
        read(tmp_path, text)


def test_a_section_may_stand_once_or_several_times_or_not_at_all():
    once, twice = toml.build(Either, {"shelf": {"length": 2}}), toml.build(Either, {"shelf": [{"length": 2}, {}]})
    assert (once.shelf, twice.shelf) == (Shelf(2), (Shelf(2), Shelf()))
    assert once.inner is None
    assert toml.build(Either, {"inner": {"steps": 4}}).inner == Inner(steps=4)
    with pytest.raises(ValueError, match=r"\[shelf 2\] unknown key `lenth`"):
        toml.build(Either, {"shelf": [{}, {"lenth": 2}]})
    with pytest.raises(ValueError, match=r"`shelf` must be a section, \[shelf\], .*, or a list of sections"):
        toml.build(Either, {"shelf": 3})


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ValueError, match=r"x\.toml is not UTF-8 at byte 5"):
        toml.read(tmp_path / "x.toml", make)


def test_a_whole_number_is_a_number(tmp_path):
    assert read(tmp_path, "[inner]\nrate = 2").inner == Inner(rate=2.0)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50)
@given(
    inner=st.builds(
        Inner,
        rate=st.floats(allow_nan=False, allow_infinity=False),
        steps=st.integers(0, 2**62),
        words=st.lists(TEXT).map(tuple),
        counts=st.none() | st.lists(st.integers(0, 99)).map(tuple) | st.dictionaries(TEXT, st.integers(0, 9)),
        kind=st.sampled_from(["red", "green"]),
        fast=st.booleans(),
        title=st.none() | TEXT,
    ),
    names=st.lists(TEXT),
    books=st.lists(TEXT),
)
def test_what_is_written_is_read_back(tmp_path_factory, inner, names, books):
    items, shelf = (tuple(Item(name) for name in some) for some in (names, books))
    outer = Outer(inner, items, Shelf(len(books), shelf))
    path = tmp_path_factory.mktemp("toml") / "x.toml"
    path.write_text(toml.write(outer), encoding="utf-8", newline="")
    assert toml.read(path, make) == outer


def test_settings_are_flat_and_leave_out_what_does_not_matter():
    outer = Outer(Inner(words=("a",)), (Item("x"), Item("y")))
    assert toml.flatten(toml.lookup(outer, "inner.rate"), "inner.rate") == {"inner.rate": 0.5}
    flat = toml.flatten(outer.inner, "inner")
    assert flat["inner.words"] == ["a"]
    assert "inner.fast" not in flat
    assert toml.flatten(outer.item, "item") == {"item.1.name": "x", "item.2.name": "y"}
    shelf = Outer(shelf=Shelf(2, (Item("x"), Item("y"))))
    assert toml.flatten(shelf.shelf.book, "shelf.book") == {"shelf.book.1.name": "x", "shelf.book.2.name": "y"}


def test_a_list_of_sections_may_be_written_in_one_line(tmp_path):
    assert read(tmp_path, "[shelf]\nbook = [{name = 'a'}, {name = 'b'}]").shelf.book == (Item("a"), Item("b"))
