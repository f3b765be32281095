"""The stages of a run, from checkpoints to the report: each reads the artifacts before it and writes one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosstime.attribution.ablation import Ablation, ablate, strongest
from crosstime.attribution.baselines import BASELINES
from crosstime.attribution.effects import Effects, attribute, load_totals, save_totals
from crosstime.attribution.exact import Exact, exact_effects, validate
from crosstime.attribution.features import FeatureTable
from crosstime.base import artifact
from crosstime.base.units import jsonable
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK
from crosstime.evaluation.contexts import contexts, load_contexts, save_contexts
from crosstime.evaluation.diagnostics import Diagnostics, diagnose
from crosstime.evaluation.quality import Quality, evaluate
from crosstime.evaluation.survey import survey
from crosstime.models.tokenizer import fingerprint
from crosstime.pipeline.annotations import FOLDER as ANNOTATIONS
from crosstime.pipeline.annotations import annotations_hash, read_annotations
from crosstime.pipeline.config import ERROR_LOG, FILE, RESOLVED, RunConfig
from crosstime.pipeline.engine import STAGES, Stage, Workload, stages_for
from crosstime.pipeline.estimate import MEMORY, collected_tokens, estimate
from crosstime.pipeline.measure import FIRING
from crosstime.pipeline.run import Run
from crosstime.pipeline.summary import seconds
from crosstime.report.build import build_report
from crosstime.report.data import ReportData, RunFacts, TaskGroup, TrainingPoint
from crosstime.report.sections import SECTIONS
from crosstime.text import tokenise
from crosstime.training.log import Record, read_log
from crosstime.training.train import train_several

TRAINING_STATE = "training/state"
TRAINING_LOG = "training/log.jsonl"
TOKENS_PER_PAIR = 24
"""Of both sentences, assumed."""
RESERVED = (FILE, RESOLVED, ERROR_LOG, ANNOTATIONS)
"""Names in a run folder that no stage owns."""


def write_suite(run: Run, draft: Path) -> None:
    """checkpoints.json: what decides the activations, by hash. tokenizer.json: what decides the tokens, by hash.
    sources.json: what is only told about the checkpoints.
    """
    _write_json(draft / "checkpoints.json", run.shared.fingerprints())
    _write_json(draft / "tokenizer.json", {"sha256": fingerprint(run.shared.tokenizer)})
    told = ("name", "tokens", "source", "revision", "commit")
    _write_json(draft / "sources.json", [{key: getattr(c, key) for key in told} for c in run.shared.suite])


def write_tokens(run: Run, draft: Path) -> None:
    """Write blocks of tokens to train on and held out. An interrupted stage is resumed from its state."""
    tokenise.write_tokens(run.config.text, run.folder, run.shared.tokenizer, run.config.positions, draft)


def write_survey(run: Run, draft: Path) -> None:
    """Every checkpoint on every set of minimal pairs and on held-out text."""
    found = survey(
        run.shared.suite,
        run.shared.sets,
        run.shared.heldout_text,
        replace(run.config.survey, batch_tokens=run.shared.batch_size("survey") * run.config.text.context),
        layer=run.shared.layer,
        positions=run.config.positions,
        dtype=run.shared.dtype,
        device=run.shared.device,
    )
    for name, why in found.broken.items():
        warnings.warn(f"checkpoint {name!r} looks broken: {why}", stacklevel=1)
    found.save(draft)


def write_selection(run: Run, draft: Path) -> None:
    """checkpoints.json: the compared ones, as in the suite's. proposal.json: why these, where the survey chose."""
    names, reasons = list(run.config.selection.checkpoints), None
    if not names:
        proposal = run.shared.read_survey().propose(run.config.selection.number)
        names, reasons = proposal.checkpoints, proposal.reasons
    chosen = [row for row in run.shared.read_json("suite/checkpoints.json") if row["name"] in names]
    _write_json(draft / "checkpoints.json", chosen)
    _write_json(draft / "proposal.json", reasons)


def write_crosscoder(run: Run, draft: Path) -> None:
    """The trained crosscoder. An interrupted training goes on from its state, which lies outside the artifact."""
    write_crosscoders([run], [draft])


def write_crosscoders(runs: Sequence[Run], drafts: Sequence[Path]) -> None:
    """Train several crosscoders on the same activations; each ends with the weights of a run of its own."""
    shared, config = runs[0].shared, runs[0].config
    specs = {run.name: run.config.spec for run in runs}
    trained = train_several(
        shared.compared,
        shared.train_text,
        specs,
        layer=shared.layer,
        positions=config.positions,
        config=config.training,
        device=shared.device,
        state_folder=shared.folder / TRAINING_STATE,
        log_path=shared.folder / TRAINING_LOG,
        max_batch_blocks=shared.batch_size("train"),
    )
    for run, draft in zip(runs, drafts, strict=True):
        trained[run.name].save_pretrained(draft)


def write_imported_crosscoder(run: Run, draft: Path) -> None:
    """The crosscoder that run.toml names, in our format."""
    run.imported.save_pretrained(draft)


def drop_training_state(run: Run) -> None:
    """A finished training needs no state to go on from."""
    artifact.discard(run.folder / TRAINING_STATE, run.folder)


def unfinished_seconds(run: Run) -> float:
    """How long the unfinished training that is to go on has trained, by its log."""
    if not (run.folder / TRAINING_STATE).exists():
        return 0.0
    log = [{"tokens": 0}, *_training_log(run)]
    return sum(((now["tokens"] - before["tokens"]) / now["tokens_per_second"] for before, now in pairwise(log)), 0.0)


def _training_log(run: Run) -> list[Record]:
    """The crosscoder's own records of the log, which all that are trained in a run folder share."""
    return [record for record in read_log(run.folder / TRAINING_LOG) if record.get("crosscoder", "") == run.name]


def write_evaluation(run: Run, draft: Path) -> None:
    """The crosscoder on held-out text."""
    config = replace(run.config.evaluation, batch_blocks=run.shared.batch_size("evaluate"))
    evaluate(run.crosscoder, run.shared.models, run.shared.heldout_text, config).save(draft)


def write_diagnostics(run: Run, draft: Path) -> None:
    """What the data say of every feature's decoder."""
    config = replace(run.config.diagnostics, batch_blocks=run.shared.batch_size("diagnose"))
    diagnose(run.crosscoder, run.shared.models, run.shared.heldout_text, config).save(draft)


def write_effects(run: Run, draft: Path) -> None:
    """features.parquet and tasks.json for people; task-N/ for the stages that follow."""
    config = replace(run.config.attribution, max_positions=run.shared.batch_size("attribute"))
    text = run.shared.heldout_text if BASELINES[config.baseline].needs_text else None
    found = []
    for n, prompts in enumerate(run.shared.prompts, 1):
        effects = attribute(run.crosscoder, run.shared.models, prompts, config, text=text)
        (draft / f"task-{n}").mkdir()
        effects.save(draft / f"task-{n}")
        found.append(effects)
    frequency = Quality.load(run.folder_of("evaluation")).frequency
    FeatureTable.from_effects(found, run.crosscoder, frequency).save(draft)
    save_totals(draft / "tasks.json", found)


def write_ablation(run: Run, draft: Path) -> None:
    """The strongest features set to zero, beside random ones; exact effects of more, and what they validate."""
    config = replace(run.config.ablation, batch_size=run.shared.batch_size("ablate"))
    frequency = Quality.load(run.folder_of("evaluation")).frequency
    ablations, exacts = [], []
    for n, prompts in enumerate(run.shared.prompts, 1):
        effects = Effects.load(run.folder_of("effects") / f"task-{n}")
        ablations.append(ablate(run.crosscoder, run.shared.models, prompts, effects, frequency, config))
        if config.exact:
            exacts.append(exact_effects(run.crosscoder, run.shared.models, prompts, effects, config))
    Ablation.join(ablations).save(draft)
    if exacts:
        exact = Exact.join(exacts)
        exact.save(draft)
        pq.write_table(validate(exact, run.crosscoder, config), draft / "validation.parquet")


def write_contexts(run: Run, draft: Path) -> None:
    """Where the strongest features fire, and which tokens they promote."""
    config = replace(run.config.contexts, batch_blocks=run.shared.batch_size("contexts"))
    features: set[int] = set()
    for n in range(1, len(run.shared.prompts) + 1):
        effects = Effects.load(run.folder_of("effects") / f"task-{n}")
        features.update(i for ie in effects.ie for i in strongest(ie, config.top_k))
    found = contexts(
        run.crosscoder,
        run.shared.models,
        run.shared.heldout_text,
        run.shared.tokenizer,
        sorted(features),
        config,
    )
    save_contexts(draft / "contexts.json", found)


def write_report(run: Run, draft: Path) -> None:
    """index.html, and what it needs beside it."""
    build_report(report_data(run), draft)


def report_data(run: Run) -> ReportData:
    """What the report is made from, read from the artifacts."""
    survey_found = run.shared.read_survey()
    proposed = not run.config.selection.checkpoints
    crosscoder = run.crosscoder.config
    trained = not run.config.crosscoder.from_
    log = _training_log(run) if trained else []
    exact, validation = _exact(run.folder_of("ablation"))
    return ReportData(
        title=_title(run),
        run=RunFacts(
            source=run.shared.config.suite.source,
            layer=crosscoder.layer,
            n_features=crosscoder.features,
            tokens_trained=run.config.training.steps * run.config.training.batch_size if trained else 0,
            seed=run.config.start_seed,
            seconds=tuple(seconds(run, {stage.name: stage.folder for stage in _STAGES}).items()),
            version=version("crosstime"),
        ),
        checkpoints=list(crosscoder.checkpoints),
        survey=survey_found,
        proposal=survey_found.propose(run.config.selection.number) if proposed else None,
        quality=Quality.load(run.folder_of("evaluation")),
        features=FeatureTable.load(run.folder_of("effects")),
        totals=tuple(load_totals(run.folder_of("effects") / "tasks.json")),
        ablation=Ablation.load(run.folder_of("ablation")),
        contexts=load_contexts(run.folder_of("contexts") / "contexts.json"),
        diagnostics=Diagnostics.load(run.folder_of("diagnostics")),
        exact=exact,
        validation=validation,
        annotations=tuple(read_annotations(run)),
        training=tuple(TrainingPoint(r["tokens"], r["loss"], r["l0"], r["explained_variance"]) for r in log),
        groups=tuple(TaskGroup(name, tuple(p.name for p in parts)) for name, parts in run.shared.surveyed.items()),
    )


def _title(run: Run) -> str:
    title = run.config.report.title or run.folder.resolve().name
    return f"{title}: {run.name}" if run.name else title


def _exact(folder: Path) -> tuple[Exact | None, pa.Table | None]:
    """The exact effects, and what they validate; None where the run measured none."""
    if not (folder / "exact.parquet").is_file():
        return None, None
    return Exact.load(folder), pq.read_table(folder / "validation.parquet")


def _tasks(run: Run) -> dict[str, Any]:
    """The attributed tasks, in order, since their effects are kept by number; and how their pairs were chosen."""
    facts: dict[str, Any] = {}
    for n, task in enumerate((task for task in run.config.task if task.attribute), 1):
        facts[f"task {n} {task.name}"] = run.shared.tasks[task.name].sha256
        facts[f"task {n} max_pairs, sample_seed, prefix"] = [task.max_pairs, task.sample_seed, task.prefix]
    return facts


def _surveyed(run: Run) -> dict[str, Any]:
    return {f"task {part.name}": part.sha256 for part in run.shared.sets}


def _tasks_and_groups(run: Run) -> dict[str, Any]:
    groups = enumerate(run.shared.surveyed.items(), 1)
    return {f"task {n} {name}": [part.name for part in parts] for n, (name, parts) in groups}


def _shown_besides(run: Run) -> dict[str, Any]:
    """What the report shows besides artifacts: groups of tasks, annotations, and sections by their templates."""
    sections = {section.name: sha256(section.source.encode()).hexdigest() for section in SECTIONS}
    return _tasks_and_groups(run) | {"annotations": annotations_hash(run), "sections": sections}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(jsonable(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _select_variant(stage: Stage[Run], config: RunConfig) -> Stage[Run]:
    """If run.toml names the checkpoints, selecting them doesn't wait for the survey."""
    return replace(stage, inputs=("suite",)) if config.selection.checkpoints else stage


def _train_variant(stage: Stage[Run], config: RunConfig) -> Stage[Run]:
    """If run.toml names a crosscoder, that is imported."""
    if not config.crosscoder.from_:
        return stage
    return replace(
        stage,
        doing="importing the crosscoder",
        settings=("positions", "crosscoder"),
        inputs=("selection/checkpoints.json",),
        facts=Run.imported_facts,
        work=write_imported_crosscoder,
        together=None,
        seconds_before=lambda _: 0.0,
        workload=None,
    )


def _attribute_variant(stage: Stage[Run], config: RunConfig) -> Stage[Run]:
    """The mean activation, as a baseline, is measured on the held-out text."""
    if not BASELINES[config.attribution.baseline].needs_text:
        return stage
    return replace(stage, inputs=(*stage.inputs, "tokens/heldout.npy"))


# ---- How much work the stages are, for `crosstime plan`.


def _survey_tokens(run: Run) -> float:
    """Tokens that the survey reads, about."""
    pairs = sum(map(len, run.shared.sets))
    text = _heldout_blocks(run, run.config.survey.blocks) * run.config.text.context
    return float(len(run.shared.metadata.checkpoints) * (pairs * TOKENS_PER_PAIR + text))


def _shrink_survey(run: Run, size: int) -> RunConfig:
    survey = run.config.survey
    blocks = max(1, round(survey.blocks * size / max(map(len, run.shared.sets))))
    return replace(run.config, survey=replace(survey, max_pairs=size, blocks=blocks))


def _training_tokens(run: Run) -> float:
    """Tokens trained on, and those that are only collected, by what collecting takes of the FLOP."""
    estimated = estimate([run.config, *run.shared.beside], run.shared.shape)
    share = estimated.forward_flop / (estimated.forward_flop + estimated.matmul_flop)
    return estimated.tokens + share * (collected_tokens(run.config) - estimated.tokens)


def _shrink_training(run: Run, size: int) -> RunConfig:
    """A few steps after a short calibration and with a small buffer, as sparse from the beginning as later on.

    With L1, and for the first steps with BatchTopK, most features fire at first. A CPU then takes several times as long
    for a step: it multiplies sparse matrices where it can.
    """
    training, rule = run.config.training, run.config.sparsity
    if isinstance(rule, BatchTopK):
        rule = replace(rule, k_start=rule.k)
    elif isinstance(rule, L1):
        k = max(1, round(FIRING * run.config.crosscoder.features))
        rule = BatchTopK(k, k_start=k)
    tokens = size * training.batch_size
    training = replace(
        training,
        tokens=tokens,
        buffer_tokens=training.batch_size,
        model_batch_blocks=min(training.model_batch_blocks, max(1, tokens // run.config.text.context)),
        calibration_blocks=1,
        loggers=(),
    )
    return replace(run.config, training=training, sparsity=rule)


def _training_advice(run: Run) -> str:
    share = read_log(run.folder / TRAINING_LOG)[-1]["collection_share"]
    if share >= 0.5:
        more = (1 - share) / (1 + len(run.shared.beside))
        return (
            f"fewer training.tokens: collecting activations is {share:.0%} of it; another [[crosscoder]] on the same "
            f"activations would add only {more:.0%}"
        )
    return f"fewer crosscoder.features or training.tokens: the crosscoder's steps are {1 - share:.0%} of it"


def _heldout_blocks(run: Run, blocks: int) -> int:
    """So many held-out blocks, or all there are if that's known yet."""
    tokens = run.folder / "tokens" / "heldout.npy"
    return min(blocks, len(run.shared.heldout_text)) if tokens.exists() else blocks


def _reads_blocks(stage: str, section: str, *, loads: bool = False) -> Workload[Run]:
    """The workload of a stage that reads held-out blocks, as many as the key `blocks` of its section says."""

    def shrink(run: Run, size: int) -> RunConfig:
        return replace(run.config, **{section: replace(getattr(run.config, section), blocks=size)})

    return Workload(
        "blocks",
        units=lambda run: _heldout_blocks(run, getattr(run.config, section).blocks),
        shrink=shrink,
        advice=lambda _: f"fewer {section}.blocks",
        loads=lambda run: loads * run.config.selection.size,
        memory=MEMORY[stage],
    )


def _reads_prompts(stage: str, advice: str) -> Workload[Run]:
    """The workload of a stage that reads the prompts of the attributed tasks."""

    def units(run: Run) -> float:
        return float(sum(map(len, run.shared.prompts)))

    def shrink(run: Run, size: int) -> RunConfig:
        return replace(run.config, task=tuple(replace(task, max_pairs=size) for task in run.config.task))

    return Workload("prompts", units, shrink, advice=lambda _: advice, memory=MEMORY[stage])


_MODELS = ("compute.dtype", "positions", "crosscoder.layer")
_TEXT = ("context", "column", "limit_tokens", "heldout_share", "hub")
_PACKING = ("packing", "min_tokens", "min_characters", "shuffle_seed")

_STAGES: tuple[Stage[Run], ...] = (
    Stage(
        "suite",
        "suite",
        "reading the checkpoints and hashing their weights",
        settings=("suite",),
        inputs=(),
        work=write_suite,
        settle=Run.check_suite,
        shared=True,
    ),
    Stage(
        "tokens",
        "tokens",
        "reading the text",
        settings=("positions.bos", *(f"text.{key}" for key in (*_TEXT, *_PACKING))),
        inputs=("suite/tokenizer.json",),
        facts=lambda run: tokenise.file_hashes(run.config.text, run.folder),
        work=write_tokens,
        settle=lambda run: tokenise.discard_state(run.folder),
        seconds_before=lambda run: tokenise.unfinished_seconds(run.folder),
        shared=True,
        scratch=(tokenise.STATE,),
    ),
    Stage(
        "survey",
        "survey",
        "every checkpoint on every task",
        settings=(*_MODELS, "survey"),
        inputs=("suite/checkpoints.json", "tokens/heldout.npy"),
        facts=_surveyed,
        work=write_survey,
        shared=True,
        workload=Workload(
            "tokens",
            units=_survey_tokens,
            shrink=_shrink_survey,
            advice=lambda _: "a smaller survey.max_pairs or survey.blocks",
            loads=lambda run: len(run.shared.metadata.checkpoints),
            memory=MEMORY["survey"],
        ),
    ),
    Stage(
        "select",
        "selection",
        "choosing checkpoints",
        settings=("selection",),
        inputs=("suite", "survey"),
        work=write_selection,
        shared=True,
        variant=_select_variant,
    ),
    Stage(
        "train",
        "crosscoder",
        "training the crosscoder",
        settings=("positions", "crosscoder", "sparsity", "training"),
        inputs=("selection/checkpoints.json", "tokens/train.npy"),
        work=write_crosscoder,
        together=write_crosscoders,
        settle=drop_training_state,
        seconds_before=unfinished_seconds,
        variant=_train_variant,
        scratch=("training",),
        workload=Workload(
            "tokens",
            units=_training_tokens,
            shrink=_shrink_training,
            advice=_training_advice,
            loads=lambda run: run.config.selection.size,
            memory=MEMORY["train"],
        ),
    ),
    Stage(
        "evaluate",
        "evaluation",
        "the crosscoder on held-out text",
        settings=(*_MODELS, "evaluation"),
        inputs=("selection/checkpoints.json", "tokens/heldout.npy", "crosscoder"),
        work=write_evaluation,
        workload=_reads_blocks("evaluate", "evaluation", loads=True),
    ),
    Stage(
        "diagnose",
        "diagnostics",
        "every feature's decoder against the data",
        settings=(*_MODELS, "diagnostics"),
        inputs=("selection/checkpoints.json", "tokens/heldout.npy", "crosscoder"),
        work=write_diagnostics,
        workload=_reads_blocks("diagnose", "diagnostics"),
    ),
    Stage(
        "attribute",
        "effects",
        "indirect effects of every feature",
        settings=(*_MODELS, "attribution"),
        inputs=("selection/checkpoints.json", "crosscoder", "evaluation/frequency.parquet"),
        facts=_tasks,
        work=write_effects,
        variant=_attribute_variant,
        workload=_reads_prompts("attribute", "fewer attribution.steps or a task's max_pairs"),
    ),
    Stage(
        "ablate",
        "ablation",
        "the strongest features set to zero",
        settings=(*_MODELS, "ablation"),
        inputs=("selection/checkpoints.json", "crosscoder", "evaluation/frequency.parquet", "effects"),
        facts=_tasks,
        work=write_ablation,
        workload=_reads_prompts("ablate", "a smaller ablation.exact or a task's max_pairs"),
    ),
    Stage(
        "contexts",
        "contexts",
        "where the strongest features fire",
        settings=(*_MODELS, "contexts"),
        inputs=("selection/checkpoints.json", "tokens/heldout.npy", "crosscoder", "effects"),
        work=write_contexts,
        workload=_reads_blocks("contexts", "contexts"),
    ),
    Stage(
        "report",
        "report",
        "writing the pages",
        settings=("report.title", "selection"),
        inputs=(
            "suite/sources.json",
            "survey",
            "selection",
            "crosscoder",
            "evaluation",
            "diagnostics",
            "effects",
            "ablation",
            "contexts",
        ),
        facts=_shown_besides,
        work=write_report,
        code=lambda _: SECTIONS,
    ),
)


for _stage in _STAGES:
    STAGES.add(_stage)


def stages(config: RunConfig) -> tuple[Stage[Run], ...]:
    """Return all stages, those of plugins included, as a configuration needs them and in order."""
    return stages_for(config)
