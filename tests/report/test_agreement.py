"""Cohen's kappa against examples worked out by hand."""

import pytest

from crosstime.report.agreement import Agreement, agreements, cohens_kappa
from crosstime.report.annotation import Annotation


@pytest.mark.parametrize(
    ("a", "b", "kappa"),
    [
        # 50 grant proposals: both yes 20, both no 15, a alone yes 5, b alone yes 10.
        # p = 35/50, q = (25/50)(30/50) + (25/50)(20/50) = 1/2; kappa = 0.2 / 0.5.
        ("y" * 20 + "y" * 5 + "n" * 10 + "n" * 15, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15, 0.4),
        # p = 1/4; q = (2/4)(1/4) + (1/4)(2/4) + (1/4)(1/4) = 5/16; kappa = (-1/16) / (11/16).
        ("xxyz", "yyxz", -1 / 11),
        ("abca", "abca", 1.0),
        # p = 0; q = 2 (1/2)(1/2); kappa = -1.
        ("ab", "ba", -1.0),
        # One annotator knows one category only: p = q = 1/2, nothing beyond chance.
        ("aaaa", "aabb", 0.0),
        ("aaa", "aaa", None),
        ("", "", None),
    ],
)
def test_kappa(a, b, kappa):
    assert cohens_kappa(list(a), list(b)) == (kappa if kappa is None else pytest.approx(kappa, abs=1e-12))


def test_every_two_annotators_on_what_they_share():
    def say(annotator, **categories):
        return [Annotation(int(key[1:]), annotator, category=category) for key, category in categories.items()]

    found = agreements(
        [
            *say("Mary", f1="verb", f2="noun", f3="Verb", f4=""),
            *say("Ann", f1="verb", f2="verb", f3="verb", f4="verb"),
            *say("Zoe", f3="noun", f9="noun"),
            *say("Eve", f7="noun"),
        ]
    )
    # Ann and Mary: p = 2/3, q = 1 (2/3), for Ann always says verb. Case does not matter.
    assert found == [
        Agreement(("Ann", "Mary"), 3, 2 / 3, 0.0),
        Agreement(("Ann", "Zoe"), 1, 0.0, 0.0),
        Agreement(("Mary", "Zoe"), 1, 0.0, 0.0),
    ]
