import itertools

import pytest

from crosstime.report.plots.style import checkpoint_colours, mix


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("n", range(1, 13))
def test_colours_darken_in_the_order_of_training(n):
    colours = checkpoint_colours(n)
    assert len(set(colours)) == n
    assert all(lightness(a) > lightness(b) for a, b in itertools.pairwise(colours))


def test_mixing_one_colour_gives_it_back():
    assert mix(["#2a9489"], [1.0]) == "#2a9489"
    assert mix(["#dd9f2a", "#2d2b66"], [1.0, 0.0]) == "#dd9f2a"
