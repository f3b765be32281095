import math

from crosstime.report import words


def test_accuracies_have_no_leading_zero():
    assert [words.share(x) for x in (0.62, 1.0, 0.0, 0.996, math.nan)] == [".62", "1.00", ".00", "1.00", "\u2013"]


def test_percentages_never_round_an_effect_to_nothing():
    assert words.percent(0.114) == "11\u202f%"
    assert words.percent(0.00002, 2) == "<\u202f0.01\u202f%"
    assert words.percent(0.0) == "0\u202f%"
    assert words.percent(-0.13) == "\u221213\u202f%"


def test_numbers_use_a_true_minus_and_keep_small_values():
    assert words.number(-1.5) == "\u22121.50"
    assert words.number(0.00003) == "3·10⁻⁵"
    assert words.number(0.0) == "0.00"
    assert words.fixed(-0.001) == "0.00"
    assert words.fixed(-12.5, 1) == "\u221212.5"


def test_probabilities():
    assert words.probability(0.0031) == "p = .003"
    assert words.probability(3e-10) == "p < 10⁻⁹"
    assert words.probability(0.0) == "p < 10⁻³⁰⁰"


def test_short_names_keep_what_tells_tasks_apart():
    names = ["regular_plural_agreement_1", "irregular_plural_agreement_1"]
    assert words.short_names(names) == ["regular", "irregular"]
    assert words.short_names(["noun_1", "noun_2"]) == ["set 1", "set 2"]
    assert words.short_names(["noun", "noun_with_adjective"]) == ["noun", "with adjective"]
    assert words.short_names(["only_one"]) == ["only one"]


def test_quoted_tokens_show_what_cannot_be_seen():
    assert [words.token(text) for text in (" these", "\n", " ", "", "a\tb")] == ["these", "↵", "␣", "∅", "a→b"]
