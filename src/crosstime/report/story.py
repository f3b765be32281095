"""The findings in words: what the model learnt when, and which features carry it. Written from the data alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crosstime.evaluation.contexts import FeatureContexts
from crosstime.evaluation.survey import Survey
from crosstime.report import words
from crosstime.report.data import TaskGroup
from crosstime.report.features import TaskFeatures, class_words
from crosstime.report.trajectory import Dip, Rise, Segment, Shape, pooled, positions, shape

LEAD_GROUPS = 6
"""Groups told in the head of the page; all have a panel of their own."""

BRIEF_LEADERS = 3
TOLD_LEADERS = 6
FEW = 3
"""So many checkpoints are told one by one; of more of them, where they begin and end."""


@dataclass(frozen=True)
class Span:
    """A piece of a sentence. `ref` names the checkpoint or the feature that the piece speaks of."""

    text: str
    kind: Literal["text", "task", "checkpoint", "feature", "figure", "token"] = "text"
    ref: str = ""


Sentence = tuple[Span, ...]


@dataclass(frozen=True)
class GroupStory:
    """What one group of tasks did over training."""

    name: str
    shape: Shape
    sentence: Sentence


@dataclass(frozen=True)
class Carrier:
    """A feature that carries a task at a checkpoint."""

    feature: int
    share: float
    """Its part of the sum of |IE| over all features."""
    ie: float
    class_label: str
    fires_on: tuple[str, ...]
    promotes: tuple[str, ...]


@dataclass(frozen=True)
class Leader:
    """A feature that is the strongest at one or more checkpoints, as it is where its part of the effect is largest."""

    carrier: Carrier
    at: tuple[int, ...]
    """The checkpoints at which it leads."""
    best: int
    """The one of them at which its share is largest."""
    where: Sentence
    """ "step256 (19 %)", "3 checkpoints from step64 to step256 (at most 19 %, at step128)"."""


@dataclass(frozen=True)
class TaskStory:
    """Which features carry one attributed task; `carriers` is by checkpoint, strongest first."""

    name: str
    brief: Sentence
    """One line for the head of the page: who leads at which checkpoint; empty where no feature has an effect."""
    sentences: tuple[Sentence, ...]
    carriers: tuple[tuple[Carrier, ...], ...]
    leaders: tuple[Leader, ...]
    """The strongest features, in the order of the checkpoints at which they lead."""
    half: tuple[int, ...]
    """By checkpoint: how many features make up half of the sum of |IE|."""

    @property
    def largest(self) -> float:
        """The largest share of any carrier, to which bars are drawn."""
        return max((carrier.share for at in self.carriers for carrier in at), default=1.0)


def lead(groups: Sequence[GroupStory], tasks: Sequence[TaskStory]) -> list[tuple[Sentence, Sentence]]:
    """The head of the page: for each group what it did, and who carries it; then attributed tasks in no group."""
    briefs = {task.name: task.brief for task in tasks}
    told = [(group.sentence, briefs.pop(group.name, ())) for group in groups[:LEAD_GROUPS]]
    later = {group.name for group in groups[LEAD_GROUPS:]}
    alone = [((Span(words.sentence_case(name), "task"),), brief) for name, brief in briefs.items() if name not in later]
    return told + [(name, brief) for name, brief in alone if brief]


# ---------------------------------------------------------------------------------------- accuracy over training


def group_stories(survey: Survey, groups: Sequence[TaskGroup]) -> list[GroupStory]:
    """One story a group: rises in the order in which they happen, then dips, then what stays as it is.

    Accuracy is that of whole sentences, pooled over the pairs of the group's tasks.
    """
    places = positions(survey.tokens)
    shapes = []
    for group in groups:
        columns = [survey.tasks.index(task) for task in group.tasks]
        n_pairs = [survey.n_pairs[column] for column in columns]
        accuracy = np.asarray(survey.sentence_accuracy, dtype=float)[:, columns]
        form = shape(pooled(accuracy, n_pairs), sum(n_pairs), places)
        shapes.append((words.name(group.name), form, _clearest(group.tasks, accuracy, form)))
    shapes.sort(key=lambda story: _order(story[1]))
    first = shapes[0][1].rise if shapes else None
    return [
        GroupStory(name, form, _tell(name, form, survey.checkpoints, first, clearest))
        for name, form, clearest in shapes
    ]


def _clearest(tasks: Sequence[str], accuracy: np.ndarray, form: Shape) -> Sentence:
    """ "; best on determiner noun agreement 1 (.62 -> .87)": the task learnt best, over its group's stretch."""
    if form.rise is None or len(tasks) < 2:
        return ()
    before, after = accuracy[form.rise.steepest.start], accuracy[form.rise.steepest.end]
    best = int(np.nan_to_num(accuracy[-1], nan=-np.inf).argmax())
    figures = f"{words.share(before[best])}\u2009→\u2009{words.share(after[best])}"
    return Span(f"; best on {words.name(tasks[best])} ("), Span(figures, "figure"), Span(")")


def _order(form: Shape) -> tuple[int, float, float]:
    """Rises before dips before flat lines; rises by when the steepest part of them ends, then by size."""
    if form.dip is not None and not form.dip.recovered:
        return 1, float(form.dip.lowest), form.dip.accuracy
    if form.rise is not None:
        return 0, float(form.rise.steepest.end), -form.rise.whole.rise
    return 2, 0.0, -form.last if not math.isnan(form.last) else 0.0


def _tell(name: str, form: Shape, checkpoints: Sequence[str], first: Rise | None, clearest: Sentence = ()) -> Sentence:
    """One sentence on a group.

    Args:
        name: of the group.
        form: what its accuracy did.
        checkpoints: all names.
        first: the rise that was told first, to which a later one is compared.
        clearest: what is said of the task that rises most.
    """
    task = Span(words.sentence_case(name), "task")
    if math.isnan(form.last):
        return task, Span(" was not measured.")
    if form.dip is not None:
        return task, *_tell_dip(form.dip, form.rise, checkpoints), Span(".")
    if form.rise is None:
        return task, Span(" stays where it was, at "), _figure(form.last), Span(".")
    verb = " emerges" if form.rise.emerges else " rises"
    later = first is not None and form.rise.steepest.end > first.steepest.end
    return task, Span(f"{verb} later," if later else verb), *_tell_rise(form.rise, checkpoints), *clearest, Span(".")


def _tell_rise(rise: Rise, checkpoints: Sequence[str]) -> list[Span]:
    """ " mostly between step256 and step1000 (.60 -> .86), and reaches .95 at step3786" """
    if rise.steepest.rise >= 0.95 * rise.whole.rise:
        return [Span(" "), *_stretch(rise.steepest, checkpoints)]
    spans = [Span(" mostly "), *_stretch(rise.steepest, checkpoints)]
    if rise.whole.after - rise.steepest.after >= 0.01:
        reached = [_figure(rise.whole.after), Span(" at "), _checkpoint(checkpoints[rise.whole.end])]
        return [*spans, Span(", and reaches "), *reached]
    return spans


def _tell_dip(dip: Dip, rise: Rise | None, checkpoints: Sequence[str]) -> list[Span]:
    verb = " starts below chance, at " if dip.lowest == 0 else " first falls below chance, to "
    spans = [Span(verb), _figure(dip.accuracy)]
    spans += [Span(" at "), _checkpoint(checkpoints[dip.lowest]), Span(f" ({words.probability(dip.p_value)})")]
    if dip.recovered and rise is not None and rise.steepest.start >= dip.lowest:
        return [*spans, Span(", then rises"), *_tell_rise(rise, checkpoints)]
    if dip.recovered:
        return [*spans, Span(", and ends above it, at "), _figure(dip.last)]
    if dip.last - dip.accuracy >= 0.01:
        return [*spans, Span(", and has only come back to "), _figure(dip.last), Span(" by the end")]
    return [*spans, Span(", and stays there")]


def _stretch(segment: Segment, checkpoints: Sequence[str]) -> list[Span]:
    return [
        Span("between "),
        _checkpoint(checkpoints[segment.start]),
        Span(" and "),
        _checkpoint(checkpoints[segment.end]),
        Span(" ("),
        Span(f"{words.share(segment.before)}\u2009→\u2009{words.share(segment.after)}", "figure"),
        Span(")"),
    ]


def _figure(value: float) -> Span:
    return Span(words.share(value), "figure")


def _checkpoint(name: str) -> Span:
    return Span(name, "checkpoint", name)


# ---------------------------------------------------------------------------------------- the features that carry it


def task_story(features: TaskFeatures, contexts: Mapping[int, FeatureContexts], k: int = 3) -> TaskStory:
    """Which features carry a task: how many make up half of the effect, and who leads at which checkpoint."""
    n = len(features.checkpoints)
    carriers = tuple(tuple(_carrier(features, row, m, contexts) for row in features.top(m, k)) for m in range(n))
    half = tuple(features.count_for(m, 0.5) for m in range(n))
    name = words.name(features.task)
    if not any(half):
        nothing = (Span("No feature has an effect on "), Span(name, "task"), Span("."))
        return TaskStory(name, (), (nothing,), carriers, (), half)
    leaders = _leaders(features.checkpoints, carriers)
    sentences = [_tell_leader(features, leader) for leader in _largest(leaders, TOLD_LEADERS)]
    brief = _tell_briefly(_largest(leaders, BRIEF_LEADERS))
    told = (_tell_half(features.checkpoints, half), *sentences)
    return TaskStory(name, brief, told, carriers, tuple(leaders), half)


def _carrier(features: TaskFeatures, row: int, m: int, contexts: Mapping[int, FeatureContexts]) -> Carrier:
    feature = int(features.feature[row])
    found = contexts.get(feature)
    return Carrier(
        feature=feature,
        share=float(features.share[m, row]),
        ie=float(features.ie[m, row]),
        class_label=features.classes[row],
        fires_on=fires_on(found) if found else (),
        promotes=promotes(found, features.checkpoints[m]) if found else (),
    )


def fires_on(contexts: FeatureContexts, limit: int = 3) -> tuple[str, ...]:
    """The tokens on which a feature peaks, the most frequent first."""
    peaks = [words.token(context.tokens[context.peak]) for context in contexts.contexts]
    return tuple(text for text, _ in Counter(peaks).most_common(limit))


def promotes(contexts: FeatureContexts, checkpoint: str, limit: int = 3) -> tuple[str, ...]:
    """The first tokens that a feature promotes at a checkpoint."""
    return tuple(words.token(text) for text, _ in contexts.promoted.get(checkpoint, [])[:limit])


def _tell_half(checkpoints: Sequence[str], half: Sequence[int]) -> Sentence:
    """ "Half of the features' effect rests on 31 features at step256 and on 18 at step1000." """
    spans = [Span(f"Half of the features{words.APOSTROPHE} effect rests on ")]
    active = [(name, count) for name, count in zip(checkpoints, half, strict=True) if count]
    if len(active) > FEW:  # the first and the last, and where it rests on the fewest
        fewest = min(active, key=lambda item: item[1])
        active = [item for item in active if item in (active[0], fewest, active[-1])]
    for i, (name, count) in enumerate(active):
        if i:
            spans.append(Span(" and " if i == len(active) - 1 else ", "))
        noun = (" feature" if count == 1 else " features") if i == 0 else ""
        spans += [Span(str(count), "figure"), Span(f"{noun} at "), _checkpoint(name)]
    return *spans, Span(".")


def _leaders(checkpoints: Sequence[str], carriers: Sequence[Sequence[Carrier]]) -> list[Leader]:
    """The features that lead somewhere, in the order of the checkpoints."""
    leading: dict[int, list[int]] = {}
    for m, strongest in enumerate(carriers):
        if strongest:
            leading.setdefault(strongest[0].feature, []).append(m)
    leaders = []
    for at in leading.values():
        shares = {m: carriers[m][0].share for m in at}
        # The latest of equals, as for one at each of which it leads by the same.
        best = max(at, key=lambda m: (shares[m], m))
        leaders.append(Leader(carriers[best][0], tuple(at), best, tuple(_where(checkpoints, shares))))
    return leaders


def _largest(leaders: Sequence[Leader], limit: int) -> list[Leader]:
    """Those with the largest shares, in the order in which they came."""
    kept = sorted(leaders, key=lambda leader: -leader.carrier.share)[:limit]
    return [leader for leader in leaders if leader in kept]


def _tell_leader(features: TaskFeatures, leader: Leader) -> Sentence:
    """ "Feature 2107 leads at step1000 (11 %): specific to step1000, it fires on “these” and promotes “books”." """
    carrier = leader.carrier
    spans = [Span(f"Feature {carrier.feature}", "feature", str(carrier.feature)), Span(" leads at "), *leader.where]
    said = [[Span(class_words(carrier.class_label, features.checkpoints))]]
    if carrier.fires_on:
        said.append([Span("it fires on "), *_quoted(carrier.fires_on)])
    if carrier.promotes:
        said.append([Span("promotes " if carrier.fires_on else "it promotes "), *_quoted(carrier.promotes)])
    if carrier.ie < 0:
        said.append([Span("works against the right answer" if len(said) > 1 else "it works against the right answer")])
    spans.append(Span(": "))
    for i, piece in enumerate(said):
        if i:
            spans.append(Span(" and " if i == len(said) - 1 and i > 1 else ", "))
        spans += piece
    return *spans, Span(".")


def _tell_briefly(leaders: Sequence[Leader]) -> Sentence:
    """ "Carried most by feature 452 (fires on those) at step256 (19 %); by feature 1487 at step1000 (7 %)." """
    spans = [Span("Carried most by ")]
    for i, leader in enumerate(leaders):
        carrier = leader.carrier
        if i:
            spans.append(Span("; by " if i == len(leaders) - 1 else "; "))
        spans.append(_feature(carrier.feature))
        if carrier.fires_on:
            spans += [Span(" (fires on "), *_quoted(carrier.fires_on[:2]), Span(")")]
        spans += [Span(" at "), *leader.where]
        if carrier.ie < 0:
            spans.append(Span(", against the right answer"))
    return *spans, Span(".")


def _where(checkpoints: Sequence[str], shares: Mapping[int, float]) -> list[Span]:
    """ "step1000 (7 %) and step3786 (6 %)": the checkpoints at which a feature leads, and its share there."""
    at = list(shares)
    if len(at) > FEW:
        best = max(at, key=lambda m: (shares[m], m))
        kind = "" if at[-1] - at[0] + 1 == len(at) else "of the "
        return [
            Span(f"{len(at)} {kind}checkpoints from "),
            _checkpoint(checkpoints[at[0]]),
            Span(" to "),
            _checkpoint(checkpoints[at[-1]]),
            Span(" (at most "),
            Span(words.percent(shares[best]), "figure"),
            Span(", at "),
            _checkpoint(checkpoints[best]),
            Span(")"),
        ]
    spans = []
    for i, m in enumerate(at):
        if i:
            spans.append(Span(" and " if i == len(at) - 1 else ", "))
        spans += [_checkpoint(checkpoints[m]), Span(" ("), Span(words.percent(shares[m]), "figure"), Span(")")]
    return spans


def _feature(feature: int) -> Span:
    return Span(f"feature {feature}", "feature", str(feature))


def _quoted(tokens: Sequence[str]) -> list[Span]:
    spans = []
    for i, text in enumerate(tokens):
        if i:
            spans.append(Span(", "))
        spans.append(Span(text, "token"))
    return spans
