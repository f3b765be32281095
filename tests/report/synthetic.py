"""A report's input, made up: a run whose story is known, with texts that try to break out of the page."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pyarrow as pa

from crosstime.attribution.ablation import Ablation
from crosstime.attribution.effects import TaskTotals
from crosstime.attribution.exact import Exact
from crosstime.attribution.features import FeatureTable, long_table
from crosstime.attribution.relative import relative
from crosstime.evaluation.contexts import Context, FeatureContexts
from crosstime.evaluation.diagnostics import LABELS, Diagnostics
from crosstime.evaluation.quality import Quality
from crosstime.evaluation.survey import Proposal, Survey
from crosstime.report.annotation import Annotation
from crosstime.report.data import ReportData, RunFacts, TaskGroup, TrainingPoint

STEPS = (0, 64, 128, 256, 512, 1000, 2000, 3786)
NAMES = [f"step{step}" for step in STEPS]
TASKS = {
    "regular_plural_subject_verb_agreement_1": (0.51, 0.57, 0.57, 0.65, 0.67, 0.66, 0.73, 0.80),
    "irregular_plural_subject_verb_agreement_1": (0.47, 0.49, 0.53, 0.54, 0.57, 0.57, 0.61, 0.68),
    "determiner_noun_agreement_1": (0.52, 0.50, 0.52, 0.62, 0.80, 0.87, 0.87, 0.96),
    "determiner_noun_agreement_2": (0.50, 0.51, 0.53, 0.64, 0.79, 0.88, 0.90, 0.95),
    "determiner_noun_agreement_with_adjective_1": (0.49, 0.50, 0.49, 0.55, 0.70, 0.82, 0.86, 0.93),
    "distractor_agreement_relational_noun": (0.48, 0.52, 0.41, 0.43, 0.38, 0.34, 0.35, 0.42),
    "distractor_agreement_relative_clause": (0.46, 0.46, 0.44, 0.42, 0.38, 0.33, 0.30, 0.31),
}
GROUPS = (
    TaskGroup("subject-verb agreement", tuple(TASKS)[:2]),
    TaskGroup("determiner-noun agreement", tuple(TASKS)[2:5]),
    TaskGroup("distractor agreement", tuple(TASKS)[5:]),
)
ATTRIBUTED = ("subject-verb agreement", "determiner-noun agreement", "distractor agreement")
NASTY = (
    "</script>",
    "<img src=x onerror=alert(1)>",
    " שלום",
    " مرحبا",
    "🦊",
    "<!--",
    "\u2028",
    "\n",
    "",
    "%{y}",
    " a&b",
)
WORDS = (" these", " those", " this", " that", " books", " house", " were", " was", " people", " children", " said")
STORY = """It was in the spring of that year that the old captain came down to the harbour . The boats were lying idle ,
and the children who had followed him from the village stood about in the rain , waiting for a word . " These men , " he
said , " have nothing to do with the house or the people in it . "
"""
TEXT = STORY.split()


def many(n: int) -> tuple[str, ...]:
    """Names of so many checkpoints, the survey's or longer ones."""
    return tuple(NAMES) if n == len(NAMES) else tuple(f"step{143_000 * (m + 1) // n}" for m in range(n))


def report_data(
    chosen: tuple[str, ...] = ("step256", "step1000", "step3786"), n_features: int = 4096, seed: int = 0
) -> ReportData:
    """A whole report: the checkpoints surveyed, `chosen` compared, three tasks attributed and ablated."""
    rng = np.random.default_rng(seed)
    features, tasks = effects(list(chosen), n_features, rng)
    listed = sorted({f for task in tasks for f in _top(features, task.task, 12)})
    return ReportData(
        title="When a small language model learns to agree",
        run=RunFacts(
            source="gutenberg-2m",
            layer=3,
            n_features=n_features,
            tokens_trained=1_048_576,
            seed=17,
            seconds=(("survey", 41.2), ("train", 192.4), ("evaluate", 18.0), ("attribute", 64.9), ("ablate", 33.1)),
            version="0.1.0",
        ),
        checkpoints=list(chosen),
        survey=survey(rng) if set(chosen) <= set(NAMES) else long_survey(list(chosen), rng),
        proposal=Proposal(
            checkpoints=list(chosen),
            reasons=[
                "the last checkpoint before accuracy moves: the activations are still close to those of step128 (.86)",
                "the largest shift on determiner-noun agreement (+.25), and activations that have turned (.58)",
                "the end of training: subject-verb agreement has risen by a further .14, at cosine .61",
            ][: len(chosen)]
            + ["an even step in tokens"] * (len(chosen) - 3),
            excluded=dict.fromkeys(set(NAMES[:2]) - set(chosen), "it is at chance on every task"),
        ),
        quality=quality(list(chosen), features, rng),
        features=features,
        totals=tuple(tasks),
        ablation=ablation(features, tasks, rng),
        contexts={feature: contexts(feature, list(chosen), rng) for feature in listed},
        training=tuple(
            TrainingPoint(
                4096 * i, 900 * np.exp(-i / 30) + 210, 400 * np.exp(-i / 40) + 34, 0.9 - 0.8 * np.exp(-i / 25)
            )
            for i in range(1, 257)
        ),
        groups=GROUPS,
    )


def whole_data(
    chosen: tuple[str, ...] = ("step256", "step1000", "step3786"), n_features: int = 4096, seed: int = 0
) -> ReportData:
    """`report_data` with everything that a run may have besides: diagnostics, exact effects, annotations."""
    data = report_data(chosen, n_features, seed)
    rng = np.random.default_rng(seed + 1)
    assert data.features is not None
    return dataclasses.replace(
        data,
        diagnostics=diagnostics(n_features, data.checkpoints, rng),
        exact=exact(data.features, data.checkpoints, rng),
        validation=validation(data.checkpoints),
        annotations=tuple(annotations(sorted(data.contexts))),
    )


def diagnostics(n: int, chosen: list[str], rng: np.random.Generator) -> Diagnostics:
    """A label for each feature, by its number; features 3 and 5 are complementary."""
    reference = np.arange(n) % len(chosen)
    relative_norm = rng.random((len(chosen), n))
    relative_norm[reference, np.arange(n)] = 1.0
    unknown = rng.random(relative_norm.shape) < 0.02
    return Diagnostics(
        checkpoints=chosen,
        n_tokens=65_000,
        label=[LABELS[i % len(LABELS)] for i in range(n)],
        reference=reference,
        complement=np.array([{3: 5, 5: 3}.get(i, -1) for i in range(n)]),
        fired=rng.integers(0, 4000, n),
        fit=rng.uniform(0.8, 1.3, n),
        relative_norm=relative_norm,
        nu_error=np.where(unknown, np.nan, rng.normal(0.3, 0.3, relative_norm.shape)),
        nu_reconstruction=rng.normal(0.4, 0.4, relative_norm.shape),
        cosine=similarity(n, len(chosen), rng).transpose(1, 2, 0),
    )


def similarity(n_features: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Directions that turn once, in the middle of the checkpoints, and a few that are unknown."""
    later = np.arange(n) >= n / 2
    mean = np.where(later[:, None] == later[None, :], 0.8, 0.2)
    noise = rng.normal(0, 0.05, (n_features, n, n))
    cosine = np.clip(mean + (noise + noise.transpose(0, 2, 1)) / 2, -1, 1)
    cosine[:, np.arange(n), np.arange(n)] = 1.0
    cosine[rng.random(n_features) < 0.02] = np.nan
    return cosine.astype(np.float32)


def exact(features: FeatureTable, chosen: list[str], rng: np.random.Generator, k: int = 60) -> Exact:
    """Exact effects near the attributed ones, of the strongest features of the first two tasks."""
    tables = []
    for task in ATTRIBUTED[:2]:
        ie = features.array(task, "ie")
        rows = np.sort(np.argsort(-np.abs(ie).max(axis=0), kind="stable")[:k])
        true = ie[:, rows] * rng.normal(1.0, 0.15, (len(rows), len(chosen))).T
        share = relative(true)
        columns = {"ie": ie[:, rows], "exact": true, "rel_exact": share}
        for name, values in (("exact", true), ("rel_exact", share)):
            columns |= {f"{name}_low": values - 0.01, f"{name}_high": values + 0.01}
        tables.append(long_table(task, chosen, rows, columns))
    return Exact(pa.concat_tables(tables))


def validation(chosen: list[str]) -> pa.Table:
    """Correlations for each task and pair, and their means."""
    measures = {"rel_ie": 0.8, "rel_dec": 0.35, "difference": 0.45}
    numbers = {f"{name}{bound}": v + d for name, v in measures.items() for bound, d in BOUNDS}
    places = [(task, *pair) for task in ATTRIBUTED[:2] for pair in itertools.pairwise(chosen)]
    places += [(None, *pair) for pair in itertools.pairwise(chosen)] + [(None, None, None)]
    rows = [
        {"task": task, "first": first, "second": second, "top_k": 10, "n_features": 17} | numbers
        for task, first, second in places
    ]
    return pa.Table.from_pylist(rows)


BOUNDS = (("", 0.0), ("_low", -0.1), ("_high", 0.1))


def annotations(features: list[int]) -> list[Annotation]:
    """Two annotators on some features, one of them hostile."""
    said = [Annotation(feature, "Ada", f"plural nouns {feature}", ("en", "fr"), "number") for feature in features[::2]]
    return said + [Annotation(feature, "<b>Eve</b>", NASTY[1], (), "</script>") for feature in features[::4]]


def long_survey(chosen: list[str], rng: np.random.Generator) -> Survey:
    """Accuracies that rise slowly over many checkpoints."""
    n = len(chosen)
    accuracy = np.linspace(0.5, np.linspace(0.7, 0.95, len(TASKS)), n)
    position = np.arange(n)
    cosine = np.exp(-0.08 * np.abs(position[:, None] - position[None, :]))
    return dataclasses.replace(
        survey(rng),
        checkpoints=chosen,
        tokens=[2_097_152 * int(name.removeprefix("step")) for name in chosen],
        sentence_accuracy=accuracy,
        token_accuracy=accuracy,
        logit_difference=6 * (accuracy - 0.5),
        perplexity=np.linspace(400, 20, n),
        cosine=cosine,
        pearson=cosine,
    )


def survey(rng: np.random.Generator) -> Survey:
    """Accuracies of the demo's suite, and similarities that fall with the distance in training."""
    accuracy = np.array(list(TASKS.values())).T
    position = np.log2(np.array(STEPS) + 8.0)
    cosine = np.exp(-0.16 * np.abs(position[:, None] - position[None, :]))
    tokens = [8192 * step for step in STEPS]
    return Survey(
        checkpoints=NAMES,
        tokens=tokens,
        tasks=list(TASKS),
        n_pairs=[1000] * len(TASKS),
        n_prompts=[917, 866, 940, 933, 910, 857, 829],
        sentence_accuracy=accuracy,
        token_accuracy=np.clip(accuracy + rng.normal(0, 0.01, accuracy.shape), 0, 1),
        logit_difference=6 * (accuracy - 0.5),
        perplexity=np.array([4150.0, 584.0, 240.0, 126.0, 90.0, 70.1, 58.6, 43.1]),
        cosine=cosine,
        pearson=cosine**1.2,
        layer=3,
    )


def quality(chosen: list[str], features: FeatureTable, rng: np.random.Generator) -> Quality:
    """Good, and worse at later checkpoints, as crosscoders are."""
    n = len(chosen)
    clean = np.linspace(4.9, 3.8, n)
    cost = np.linspace(0.4, 3.1, n)
    frequency = np.array(features.column(ATTRIBUTED[0], "frequency"), np.float64)
    return Quality(
        checkpoints=chosen,
        n_tokens=262_144,
        l0=34.6,
        dead=int((frequency == 0).sum()),
        frequency=frequency,
        explained_variance=np.linspace(0.934, 0.841, n) + rng.normal(0, 0.001, n),
        ce_clean=clean,
        ce_spliced=clean + cost * np.linspace(0.004, 0.068, n),
        ce_zero=clean + cost,
    )


def effects(chosen: list[str], n_features: int, rng: np.random.Generator) -> tuple[FeatureTable, list[TaskTotals]]:
    """Features whose effects are heavy-tailed and lie at one, some or all checkpoints."""
    n = len(chosen)
    frequency = 10 ** rng.normal(-2.6, 0.55, n_features).clip(-4.5, -0.3)
    frequency[rng.random(n_features) < 0.002] = 0.0
    norms = rng.dirichlet(np.full(n, 2.2), n_features) * rng.uniform(0.5, 1.6, (n_features, 1))
    tables, summaries = [], []
    for k, task in enumerate(ATTRIBUTED):
        size = rng.pareto(1.3, n_features) * 2e-4
        size[rng.random(n_features) < 0.6] = 0.0
        spread = rng.dirichlet(np.full(n, 0.45), n_features) * np.linspace(0.5, 1.5, n)
        sign = np.where(rng.random((n_features, n)) < 0.85, 1.0, -1.0)
        ie = (size[:, None] * spread * sign).clip(-0.4, 0.4) * (1.0 if k < 2 else -0.8)
        tables.append(_table(task, chosen, ie, norms, frequency, rng))
        total = ie.sum(0) * 1.15
        summaries.append(
            TaskTotals(
                task=task,
                n_examples=(1783, 2783, 1686)[k],
                checkpoints=chosen,
                method="integrated",
                baseline="bias",
                total=total,
                explained=total,
                error=total - ie.sum(0),
                gap=np.array([0.0002 + 0.0004 * m + (0.07 if k == 2 and m == 0 else 0) for m in range(n)]),
                metric_clean=-total,
                metric_end=np.zeros(n),
                skipped={"the answers have more than two tokens": 217} if k == 0 else {},
            )
        )
    return FeatureTable(pa.concat_tables(tables)), summaries


def ablation(features: FeatureTable, tasks: list[TaskTotals], rng: np.random.Generator) -> Ablation:
    """Exact effects near the attributed ones."""
    rows, joint = [], []
    for task in tasks:
        for name, ie in zip(task.checkpoints, features.array(task.task, "ie"), strict=True):
            top = np.argsort(-np.abs(ie))[:20]
            for group, index in (("top", top), ("random", rng.integers(0, len(ie), len(top)))):
                delta = ie[index] * rng.normal(1.02, 0.12, len(top)) + rng.normal(0, 0.001, len(top))
                rows += [
                    _ablation_row(task.task, int(f), name, group, float(ie[f]), float(d))
                    for f, d in zip(index, delta, strict=True)
                ]
                total = {"delta_lpd": float(delta.sum()), "delta_accuracy": float(delta.sum() / 6)}
                joint.append({"task": task.task, "checkpoint": name, "group": group, "n_features": len(top)} | total)
    return Ablation(pa.Table.from_pylist(rows), pa.Table.from_pylist(joint))


def contexts(feature: int, chosen: list[str], rng: np.random.Generator) -> FeatureContexts:
    """Twelve stretches of text around a word, one hostile token among them."""
    word = WORDS[feature % len(WORDS)]
    found = []
    for i in range(12):
        start = int(rng.integers(0, len(TEXT) - 40))
        tokens = [" " + text for text in TEXT[start : start + 40]]
        peak = 30
        tokens[peak] = word
        tokens[12] = NASTY[(feature + i) % len(NASTY)]
        activations = np.where(rng.random(40) < 0.12, rng.random(40) * 2, 0.0)
        activations[peak] = 6.0 - 0.3 * i
        found.append(Context(tokens, activations.tolist(), peak))

    def changes(sign: float) -> list[tuple[str, float]]:
        words = [str(word) for word in rng.permutation([*WORDS, *NASTY[:5]])[:10]]
        return [(word, sign * (2.0 - 0.15 * i)) for i, word in enumerate(words)]

    promoted = {name: changes(1.0) for name in chosen}
    return FeatureContexts(feature, found, promoted, {name: changes(-1.0) for name in chosen}, 6.0)


def _table(
    task: str, chosen: list[str], ie: np.ndarray, norms: np.ndarray, frequency: np.ndarray, rng: np.random.Generator
) -> pa.Table:
    total = np.abs(ie).sum(1, keepdims=True)
    shares = relative(ie.T).T
    width = np.abs(ie) * rng.uniform(0.05, 0.3, ie.shape)
    columns = {
        "class": [_class(row, chosen, float(t)) for row, t in zip(shares, total[:, 0], strict=True)],
        "lifecycle": [_lifecycle(row, float(t)) for row, t in zip(shares, total[:, 0], strict=True)],
        "frequency": frequency.astype(np.float32),
    }
    columns |= {
        "ie": ie.T,
        "ie_low": (ie - width).T,
        "ie_high": (ie + width).T,
        "rel_ie": shares.T,
        "rel_ie_low": (shares - 0.06).clip(0, 1).T,
        "rel_ie_high": (shares + 0.06).clip(0, 1).T,
        "decoder_norm": norms.T,
        "rel_dec": (norms / norms.sum(1, keepdims=True)).T,
        "sign_consistency": np.random.default_rng(0).uniform(0.5, 1.0, ie.T.shape),
    }
    return long_table(task, chosen, np.arange(len(ie)), columns)


def _class(relative: np.ndarray, chosen: list[str], total: float) -> str:
    if total == 0:
        return "undefined"
    if total < 2e-5:
        return "negligible"
    if relative.max() > 0.7:
        return f"specific:{chosen[int(relative.argmax())]}"
    among = [name for name, value in zip(chosen, relative, strict=True) if value >= min(0.3, 0.9 / len(chosen))]
    return f"shared:{'+'.join(among)}" if len(among) > 1 else "other"


def _lifecycle(relative: np.ndarray, total: float) -> str:
    if total == 0:
        return "undefined"
    if total < 2e-5:
        return "negligible"
    first, last = (value >= 0.3 / len(relative) for value in (relative[0], relative[-1]))
    return {(0, 0): "transient", (0, 1): "emerged", (1, 0): "dropped", (1, 1): "maintained"}[int(first), int(last)]


def _top(features: FeatureTable, task: str, k: int) -> set[int]:
    return {int(f) for ie in features.array(task, "ie") for f in np.argsort(-np.abs(ie))[:k]}


def _ablation_row(task: str, feature: int, checkpoint: str, group: str, ie: float, delta: float) -> dict[str, object]:
    lpd = {"lpd_clean": 1.4, "lpd_ablated": 1.4 - delta, "delta_lpd": delta}
    accuracy = {"accuracy_clean": 0.8, "accuracy_ablated": 0.8 - delta / 6, "delta_accuracy": delta / 6}
    names = {"task": task, "feature": feature, "checkpoint": checkpoint, "group": group}
    return names | {"ie": ie} | lpd | accuracy
