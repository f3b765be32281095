"""The sentences of the first page, for every kind of accuracy and of top features."""

import dataclasses
import html
import re

import numpy as np
import pytest

from crosstime.attribution.features import FeatureTable
from crosstime.evaluation.contexts import Context, FeatureContexts
from crosstime.report.data import ReportData, RunFacts, TaskGroup
from crosstime.report.story import accuracy_sentence, lead, task_story

CHECKPOINTS = ["step256", "step1000", "step3786"]
RUN = RunFacts("a folder", 3, 4, 0, 0)


def plain(sentence):
    """The sentence without its markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", sentence))


@pytest.fixture
def survey(synthetic):
    return synthetic.survey(np.random.default_rng(0))


def sentences(survey, groups):
    data = ReportData("title", RUN, CHECKPOINTS, survey=survey, groups=tuple(groups))
    return [plain(accuracy_sentence(data, group)) for group in data.group_shapes]


def test_the_demo_suite_tells_its_story(synthetic, survey):
    determiner, verb, distractor = sentences(survey, synthetic.GROUPS)
    assert determiner == (
        "Determiner-noun agreement emerges mostly between step256 and step1000 (.60\u2009→\u2009.86), "
        "and reaches .95 at step3786; best on determiner noun agreement 1 (.62\u2009→\u2009.87)."
    )
    assert verb == (
        "Subject-verb agreement rises later, mostly between step1000 and step3786 (.61\u2009→\u2009.74); "
        "best on regular plural subject verb agreement 1 (.66\u2009→\u2009.80)."
    )
    assert distractor.startswith("Distractor agreement first falls below chance, to .33 at step2000 (p < 10")
    assert distractor.endswith("and ends at .36.")


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [
        ((0.5, 0.5, 0.51, 0.5), "My task stays at .50."),
        ((0.9, 0.91, 0.9, 0.9), "My task stays at .90."),
        ((0.5, 0.5, 0.6, 0.6), "My task rises between b and c (.50\u2009→\u2009.60)."),
        ((0.5, 0.4, 0.4, 0.4), "My task first falls below chance, to .40 at b (p < 10⁻⁹), and stays there."),
        ((0.4, 0.5, 0.5, 0.5), "My task starts below chance, at .40 at a (p < 10⁻⁹), and ends at .50"),
        (
            (0.5, 0.4, 0.5, 0.8),
            "My task first falls below chance, to .40 at b (p < 10⁻⁹), then rises mostly between c",
        ),
        ((np.nan,) * 4, "My task was not measured."),
    ],
)
def test_every_kind_of_accuracy_has_words(survey, accuracy, sentence):
    one = dataclasses.replace(
        survey,
        checkpoints=["a", "b", "c", "d"],
        tokens=[None] * 4,
        tasks=["my_task"],
        n_pairs=[1000],
        n_prompts=[0],
        sentence_accuracy=np.array([accuracy]).T,
        token_accuracy=np.full((4, 1), np.nan),
        logit_difference=np.full((4, 1), np.nan),
        perplexity=np.full(4, 50.0),
        cosine=np.ones((4, 4)),
        pearson=np.ones((4, 4)),
    )
    (text,) = sentences(one, [TaskGroup("my_task", ("my_task",))])
    assert text.startswith(sentence)


def features_of(synthetic, ie, contexts=None):
    """One task whose features have exactly these effects, features by checkpoints."""
    ie = np.asarray(ie, dtype=float)
    rng = np.random.default_rng(0)
    table = synthetic._table("my_task", CHECKPOINTS, ie, np.ones_like(ie), np.full(len(ie), 0.01), rng)
    data = ReportData("title", RUN, CHECKPOINTS, features=FeatureTable(table), contexts=contexts or {})
    return data.tasks["my_task"]


def test_the_leaders_are_named_with_their_share_and_their_tokens(synthetic):
    context = Context([" in", " these"], [0.0, 2.0], 1)
    contexts = {1: FeatureContexts(1, [context], {"step3786": [(" books", 1.5)]}, {}, 2.0)}
    features = features_of(synthetic, [[3.0, 0, 0], [1.0, 0, 6.0], [0, 0, -2.0], [0, 4.0, 0]], contexts)
    story = task_story(features)
    assert plain(story.half).endswith(": 1 at step256, 1 at step1000 and 1 at step3786.")
    assert [(leader.top.feature, plain(leader.where)) for leader in story.leaders] == [
        (0, "step256 (75\u202f%)"),
        (3, "step1000 (100\u202f%)"),
        (1, "step3786 (75\u202f%)"),
    ]
    last = story.leaders[2].top
    assert (last.class_label, last.fires_on, last.promotes) == ("specific:step3786", ["these"], ["books"])
    assert [top.feature for top in story.top[2]] == [1, 2]
    assert "1 (fires on these) at step3786 (75\u202f%)." in plain(story.brief)


def test_a_leader_against_the_correct_answer_is_marked(synthetic):
    story = task_story(features_of(synthetic, [[-3.0, -3.0, -3.0], [1.0, 1.0, 1.0]]))
    assert plain(story.brief).endswith(", against the correct answer.")
    assert "1 at step256, 1 at step1000 and 1 at step3786" in plain(story.half)


def test_a_task_without_any_effect_says_so(synthetic):
    story = task_story(features_of(synthetic, np.zeros((4, 3))))
    assert plain(story.half) == "No feature has an effect on my task."
    assert story.top == [[], [], []]


def test_with_many_checkpoints_only_the_ends_are_named(synthetic):
    data = synthetic.report_data(synthetic.many(8), n_features=64)
    stories = [task_story(features) for features in data.tasks.values()]
    half = plain(stories[0].half)
    assert half.startswith("Features that make up half of the sum of |IE|: ")
    assert half.count(" at ") <= 3
    assert any(re.search(r"at \d (of the )?checkpoints from \w+ to \w+ \(at most", plain(s.brief)) for s in stories)


def test_the_head_of_the_page_has_the_groups_and_then_lone_tasks(synthetic, survey):
    features = features_of(synthetic, [[1.0, 0, 0]])
    data = dataclasses.replace(features.data, survey=survey, groups=synthetic.GROUPS)
    entries = lead(data, [task_story(features)])
    assert len(entries) == 4
    assert plain(entries[0][0]).startswith("Determiner-noun agreement emerges")
    assert plain(entries[3][0]) == "My task"
    assert plain(entries[3][1]).startswith("Top feature: 0 at step256")


def test_data_in_sentences_is_escaped(synthetic):
    contexts = {0: FeatureContexts(0, [Context(["<b>"], [1.0], 0)], {}, {}, 1.0)}
    story = task_story(features_of(synthetic, [[1.0, 0, 0]], contexts))
    assert "&lt;b&gt;" in story.brief
    assert "<b>" not in story.brief
