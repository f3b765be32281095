import dataclasses

import numpy as np
import pytest

from crosstime.attribution.features import FeatureTable
from crosstime.evaluation.contexts import Context, FeatureContexts
from crosstime.report.data import TaskGroup
from crosstime.report.features import by_task, class_words
from crosstime.report.story import group_stories, lead, task_story

CHOSEN = ["step256", "step1000", "step3786"]


def plain(sentence):
    """The sentence without its markup."""
    return "".join(span.text for span in sentence)


@pytest.fixture
def survey(synthetic):
    return synthetic.survey(np.random.default_rng(0))


def told(survey, groups):
    return [plain(story.sentence) for story in group_stories(survey, groups)]


def test_the_demo_suite_tells_its_story(synthetic, survey):
    determiner, verb, distractor = told(survey, synthetic.GROUPS)
    assert determiner == (
        "Determiner-noun agreement emerges mostly between step256 and step1000 (.60\u2009→\u2009.86), "
        "and reaches .95 at step3786; best on determiner noun agreement 1 (.62\u2009→\u2009.87)."
    )
    assert verb == (
        "Subject-verb agreement rises later, mostly between step1000 and step3786 (.61\u2009→\u2009.74); "
        "best on regular plural subject verb agreement 1 (.66\u2009→\u2009.80)."
    )
    assert distractor.startswith("Distractor agreement first falls below chance, to .33 at step2000 (p < 10")
    assert distractor.endswith("and has only come back to .36 by the end.")


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [
        ((0.5, 0.5, 0.51, 0.5), "My task stays where it was, at .50."),
        ((0.9, 0.91, 0.9, 0.9), "My task stays where it was, at .90."),
        ((0.5, 0.5, 0.6, 0.6), "My task rises between b and c (.50\u2009→\u2009.60)."),
        ((0.5, 0.4, 0.4, 0.4), "My task first falls below chance, to .40 at b (p < 10⁻⁹), and stays there."),
        ((0.4, 0.5, 0.5, 0.5), "My task starts below chance, at .40 at a (p < 10⁻⁹), and has only come back to .50"),
        (
            (0.5, 0.4, 0.5, 0.8),
            "My task first falls below chance, to .40 at b (p < 10⁻⁹), then rises mostly between c",
        ),
        ((np.nan,) * 4, "My task was not measured."),
    ],
)
def test_every_kind_of_trajectory_has_words(survey, accuracy, sentence):
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
    (text,) = told(one, [TaskGroup("my_task", ("my_task",))])
    assert text.startswith(sentence)


def features_of(synthetic, ie):
    """One task whose features have exactly these effects, features by checkpoints."""
    ie = np.asarray(ie, dtype=float)
    rng = np.random.default_rng(0)
    table = synthetic._table("my_task", CHOSEN, ie, np.ones_like(ie), np.full(len(ie), 0.01), rng)
    return by_task(FeatureTable(table))["my_task"]


def test_the_leaders_are_named_with_their_share_and_what_they_do(synthetic):
    features = features_of(synthetic, [[3.0, 0, 0], [1.0, 0, 6.0], [0, 0, -2.0], [0, 4.0, 0]])
    context = Context([" in", " these"], [0.0, 2.0], 1)
    contexts = {1: FeatureContexts(1, [context], {"step3786": [(" books", 1.5)]}, {}, 2.0)}
    story = task_story(features, contexts)
    half, first, second, third = (plain(sentence) for sentence in story.sentences)
    assert half.endswith("rests on 1 feature at step256, 1 at step1000 and 1 at step3786.")
    assert first == "Feature 0 leads at step256 (75\u202f%): specific to step256."
    assert second == "Feature 3 leads at step1000 (100\u202f%): specific to step1000."
    assert third == (
        "Feature 1 leads at step3786 (75\u202f%): specific to step3786, it fires on these and promotes books."
    )
    assert [carrier.feature for carrier in story.carriers[2]] == [1, 2]
    assert "feature 1 (fires on these) at step3786 (75\u202f%)." in plain(story.brief)


def test_a_leader_against_the_right_answer_is_said_to_be(synthetic):
    story = task_story(features_of(synthetic, [[-3.0, -3.0, -3.0], [1.0, 1.0, 1.0]]), {})
    assert plain(story.sentences[1]).endswith("shared by all checkpoints, it works against the right answer.")
    assert story.half == (1, 1, 1)


def test_a_task_without_any_effect_says_so(synthetic):
    story = task_story(features_of(synthetic, np.zeros((4, 3))), {})
    assert plain(story.sentences[0]) == "No feature has an effect on my task."
    assert story.carriers == ((), (), ())


def test_the_head_of_the_page_tells_groups_and_then_lone_tasks(synthetic, survey):
    groups = group_stories(survey, synthetic.GROUPS)
    lone = task_story(features_of(synthetic, [[1.0, 0, 0]]), {})
    sentences = lead(groups, [lone])
    assert len(sentences) == 4
    assert plain(sentences[0][0]).startswith("Determiner-noun agreement emerges")
    assert plain(sentences[3][0]) == "My task"
    assert plain(sentences[3][1]).startswith("Carried most by feature 0 at step256")


def test_classes_in_words():
    assert class_words("specific:step256", CHOSEN) == "specific to step256"
    assert class_words("shared:step256+step1000", CHOSEN) == "shared by step256 and step1000"
    assert class_words("shared:" + "+".join(CHOSEN), CHOSEN) == "shared by all checkpoints"
    assert class_words("shared:a+b+c", ["a+b", "c"]) == "shared by a+b and c"
    assert class_words("undefined", CHOSEN) == "no effect"
