"""The findings in sentences, from the data alone: what the model learnt when, and the top features of each task.

Sentences are HTML: `Markup.format` escapes whatever comes from data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from crosstime.report.data import GroupShape, ReportData, TaskFeatures
from crosstime.report.format import format_p_value, format_percent, format_share, readable, sentence_case
from crosstime.report.plots.style import FAINT
from crosstime.report.trends import Dip, Rise, Segment

LEAD_GROUPS = 6
"""Groups in the head of the page; all groups have a panel further down."""
BRIEF_LEADERS = 3
FEW = 3
"""Up to this number, checkpoints are named one by one; of more, the first and the last."""


@dataclass(frozen=True)
class TopFeature:
    """A feature among those with the largest |IE| on a task at a checkpoint."""

    feature: int
    share: float
    """Its |IE| over the sum of |IE| of all features."""
    ie: float
    class_label: str
    fires_on: list[str]
    promotes: list[str]


@dataclass(frozen=True)
class Leader:
    """A feature with the largest |IE| at one or more checkpoints, described where its share is largest."""

    top: TopFeature
    best: int
    """The checkpoint of its largest share, among those at which it leads."""
    where: Markup
    """ "step256 (19 %)", "3 checkpoints from step64 to step256 (at most 19 %, at step128)"."""


@dataclass(frozen=True)
class TaskStory:
    """The top features of one task."""

    name: str
    brief: Markup
    """One line for the head of the page; empty if no feature has an effect."""
    half: Markup
    """How many features make up half of the sum of |IE|, at each checkpoint or at some of many."""
    top: list[list[TopFeature]]
    """By checkpoint, largest |IE| first."""
    leaders: list[Leader]
    """In the order of the checkpoints at which they lead."""

    @property
    def largest(self) -> float:
        """The largest share of any top feature: the full length of the bars."""
        return max((top.share for tops in self.top for top in tops), default=1.0)


def lead(data: ReportData, stories: Sequence[TaskStory]) -> list[tuple[Markup, Markup]]:
    """Write the head of the page: (accuracy, top features) of each group, then of attributed tasks in no group."""
    briefs = {story.name: story.brief for story in stories}
    entries = [(accuracy_sentence(data, group), briefs.pop(group.name, Markup())) for group in data.group_shapes]
    alone = [(_strong(sentence_case(name)), brief) for name, brief in briefs.items() if brief]
    return entries[:LEAD_GROUPS] + alone


# --------------------------------------------------------------------------------- accuracy over training


def accuracy_sentence(data: ReportData, group: GroupShape) -> Markup:
    """Write one sentence on the accuracy of a group: its rise, its dip below chance, or its level."""
    shape, first = group.shape, data.group_shapes[0].shape.rise
    if math.isnan(shape.last):
        rest = Markup("was not measured")
    elif shape.dip is not None:
        rest = _dip(data, shape.dip, shape.rise)
    elif shape.rise is None:
        rest = Markup("stays at {}").format(_share(shape.last))
    else:
        verb = "emerges" if shape.rise.emerges else "rises"
        later = " later," if first is not None and shape.rise.steepest.end > first.steepest.end else ""
        rest = Markup("{}{} {}{}").format(verb, later, _rise(data, shape.rise), _best(group, shape.rise))
    return Markup("{} {}.").format(_strong(sentence_case(group.name)), rest)


def _best(group: GroupShape, rise: Rise) -> Markup:
    """ "; best on determiner noun agreement 1 (.62 → .87)": the task with the highest final accuracy."""
    if len(group.group.tasks) < 2:
        return Markup()
    best = int(np.nan_to_num(group.accuracy[-1], nan=-np.inf).argmax())
    before, after = (float(group.accuracy[i, best]) for i in (rise.steepest.start, rise.steepest.end))
    return Markup("; best on {} ({})").format(readable(group.group.tasks[best]), _change(before, after))


def _rise(data: ReportData, rise: Rise) -> Markup:
    """ "mostly between step256 and step1000 (.60 → .86), and reaches .95 at step3786" """
    stretch = _stretch(data, rise.steepest)
    if rise.steepest.rise >= 0.95 * rise.whole.rise:
        return stretch
    if rise.whole.after - rise.steepest.after < 0.01:
        return Markup("mostly {}").format(stretch)
    end = _surveyed(data, rise.whole.end)
    return Markup("mostly {}, and reaches {} at {}").format(stretch, _share(rise.whole.after), end)


def _dip(data: ReportData, dip: Dip, rise: Rise | None) -> Markup:
    verb = "starts below chance, at" if dip.lowest == 0 else "first falls below chance, to"
    if dip.recovered and rise is not None and rise.steepest.start >= dip.lowest:
        rest = Markup("then rises {}").format(_rise(data, rise))
    elif dip.recovered:
        rest = Markup("and ends above it, at {}").format(_share(dip.last))
    elif dip.last - dip.accuracy >= 0.01:
        rest = Markup("and ends at {}").format(_share(dip.last))
    else:
        rest = Markup("and stays there")
    where, p = _surveyed(data, dip.lowest), format_p_value(dip.p_value)
    return Markup("{} {} at {} ({}), {}").format(verb, _share(dip.accuracy), where, p, rest)


def _stretch(data: ReportData, segment: Segment) -> Markup:
    start, end = (_surveyed(data, i) for i in (segment.start, segment.end))
    return Markup("between {} and {} ({})").format(start, end, _change(segment.before, segment.after))


def _surveyed(data: ReportData, i: int) -> Markup:
    assert data.survey is not None
    return checkpoint(data.survey.checkpoints[i], data.colours)


# --------------------------------------------------------------------------------- top features


def task_story(features: TaskFeatures, k: int = 3) -> TaskStory:
    """Describe the `k` top features of a task at each checkpoint, and those that lead anywhere."""
    data = features.data
    tops = [[_top_feature(features, row, m) for row in features.top(m, k)] for m in range(len(data.checkpoints))]
    leaders = _leaders(data, tops)
    if not leaders:
        nothing = Markup("No feature has an effect on {}.").format(_strong(features.name))
        return TaskStory(features.name, Markup(), nothing, tops, [])
    return TaskStory(features.name, _brief(leaders), _half(features), tops, leaders)


def _top_feature(features: TaskFeatures, row: int, m: int) -> TopFeature:
    data, feature = features.data, int(features.feature[row])
    return TopFeature(
        feature,
        share=float(features.share[m, row]),
        ie=float(features.ie[m, row]),
        class_label=features.classes[row],
        fires_on=data.fires_on(feature),
        promotes=data.promotes(feature, data.checkpoints[m]),
    )


def _leaders(data: ReportData, tops: Sequence[Sequence[TopFeature]]) -> list[Leader]:
    """Find the features that lead anywhere, in the order of the checkpoints."""
    leading: dict[int, list[int]] = {}
    for m, strongest in enumerate(tops):
        if strongest:
            leading.setdefault(strongest[0].feature, []).append(m)
    leaders = []
    for at in leading.values():
        shares = {m: tops[m][0].share for m in at}
        best = max(at, key=lambda m: (shares[m], m))
        leaders.append(Leader(tops[best][0], best, _where(data, shares, best)))
    return leaders


def _half(features: TaskFeatures) -> Markup:
    """ "Features that make up half of the sum of |IE|: 31 at step256 and 18 at step1000." """
    data = features.data
    counts = [(features.count_for(m, 0.5), name) for m, name in enumerate(data.checkpoints)]
    counts = [(count, name) for count, name in counts if count]
    if len(counts) > FEW:  # the first, the last, and the one with the fewest
        fewest = min(counts, key=lambda entry: entry[0])
        counts = [entry for entry in counts if entry in (counts[0], fewest, counts[-1])]
    places = [Markup("{} at {}").format(_figure(count), checkpoint(name, data.colours)) for count, name in counts]
    return Markup("Features that make up half of the sum of |IE|: {}.").format(_listed(places))


def _brief(leaders: Sequence[Leader]) -> Markup:
    """ "Top features: 452 (fires on those) at step256 (19 %); 1487 at step1000 (7 %), against the correct answer." """
    largest = sorted(leaders, key=lambda leader: -leader.top.share)[:BRIEF_LEADERS]
    parts = []
    for leader in leaders:
        if leader not in largest:
            continue
        top = leader.top
        fires = Markup(" (fires on {})").format(tokens(top.fires_on[:2])) if top.fires_on else ""
        against = ", against the correct answer" if top.ie < 0 else ""
        name = _feature(top.feature, str(top.feature))
        parts.append(Markup("{}{} at {}{}").format(name, fires, leader.where, against))
    return Markup("Top feature{}: {}.").format("s" if len(parts) > 1 else "", Markup("; ").join(parts))


def _where(data: ReportData, shares: Mapping[int, float], best: int) -> Markup:
    """ "step1000 (7 %) and step3786 (6 %)": the checkpoints at which a feature leads, and its share there."""
    names = {m: checkpoint(data.checkpoints[m], data.colours) for m in shares}
    percent = {m: _figure(format_percent(share)) for m, share in shares.items()}
    if len(shares) <= FEW:
        return _listed([Markup("{} ({})").format(names[m], percent[m]) for m in shares])
    first, *_, last = shares
    kind = "" if last - first + 1 == len(shares) else "of the "
    ends = Markup("{} {}checkpoints from {} to {}").format(len(shares), kind, names[first], names[last])
    return Markup("{} (at most {}, at {})").format(ends, percent[best], names[best])


# --------------------------------------------------------------------------------- pieces of HTML


def checkpoint(name: str, colours: Mapping[str, str]) -> Markup:
    """A checkpoint's name after a dot in its colour."""
    return Markup('<span class="checkpoint" title="{0}"><i class="dot" style="--c: {1}"></i>{0}</span>').format(
        name, colours.get(name, FAINT)
    )


def tokens(texts: Sequence[str]) -> Markup:
    """Tokens, separated by commas."""
    return Markup(", ").join(Markup('<bdi class="token">{}</bdi>').format(text) for text in texts)


def _feature(feature: int, text: str) -> Markup:
    return Markup('<a class="feature-link" href="#feature-{}">{}</a>').format(feature, text)


def _strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


def _figure(text: object) -> Markup:
    return Markup('<span class="figure-number">{}</span>').format(text)


def _share(value: float) -> Markup:
    return _figure(format_share(value))


def _change(before: float, after: float) -> Markup:
    return _figure(f"{format_share(before)}\u2009→\u2009{format_share(after)}")


def _listed(items: Sequence[Markup]) -> Markup:
    """ "a, b and c" """
    return Markup(" and ").join(filter(None, [Markup(", ").join(items[:-1]), *items[-1:]]))
