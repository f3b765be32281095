"""Where memory runs out in an analysis, it goes on in smaller batches and finds the same."""

from functools import partial

import numpy as np
import pytest
import torch

from crosstime.attribution.ablation import intervene
from crosstime.attribution.effects import AttributionConfig, attribute
from crosstime.base.memory import MemoryWarning
from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.evaluation.contexts import ContextsConfig, contexts
from crosstime.evaluation.diagnostics import DiagnosticsConfig, latent_scaling
from crosstime.evaluation.quality import EvaluationConfig, evaluate
from crosstime.evaluation.survey import survey
from crosstime.models.split import SplitLM
from crosstime.models.suite import Suite
from crosstime.tasks.task import Pair, Task
from crosstime.text.corpus import Corpus
from planted import plant

WORLD = plant(n_rows=300, noise=0.1)
CORPUS = Corpus(np.random.default_rng(0).integers(300, size=(12, 9), dtype=np.uint16), "planted")


def run_out(monkeypatch, owner, name, most, of=lambda *arguments: arguments[1]):
    """Lets a method run out of memory where it is given more than so many rows."""
    whole = getattr(owner, name)

    def method(*arguments, **options):
        if len(of(*arguments)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, method)


ANALYSES = {
    "evaluate": partial(evaluate, config=EvaluationConfig(batch_blocks=8)),
    "diagnose": partial(latent_scaling, config=DiagnosticsConfig(batch_blocks=8)),
}


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("method", ["encode", "decode"])  # before and after a part of the batch was measured
def test_batches_are_halved(monkeypatch, name, method):
    crosscoder = WORLD.crosscoder()
    expected = ANALYSES[name](crosscoder, WORLD.models(), CORPUS)
    rows = {"encode": 3, "decode": 3 * (8 if name == "diagnose" else 1)}[method]
    run_out(monkeypatch, Crosscoder, method, rows)
    with pytest.warns(MemoryWarning) as warned:
        found = ANALYSES[name](crosscoder, WORLD.models(), CORPUS)
    assert [str(warning.message).split(" (")[0] for warning in warned] == [
        f"{name}: out of memory with 8 blocks of 9 tokens per batch; continuing with 4",
        f"{name}: out of memory with 4 blocks of 9 tokens per batch; continuing with 2",
    ]
    for field, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(found, field), value, rtol=1e-4, atol=1e-6, err_msg=field)
        else:
            assert getattr(found, field) == pytest.approx(value), field


def test_where_one_block_does_not_fit_it_says_what_to_lower(monkeypatch):
    run_out(monkeypatch, Crosscoder, "encode", 0)
    expected = r"evaluate: .* a single block of 9 tokens: lower text\.context or crosscoder\.features"
    with pytest.raises(ValueError, match=expected), pytest.warns(MemoryWarning):
        evaluate(WORLD.crosscoder(), WORLD.models(), CORPUS)


def test_contexts_are_the_same(monkeypatch, tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    models = [suite.load(name, layer=1) for name in suite.names]
    corpus = Corpus(np.random.default_rng(0).integers(2, suite.vocab_size, (9, 12), dtype=np.uint16), "random")
    config = CrosscoderConfig(tuple(suite.names), 1, suite.width, 8)
    crosscoder = Crosscoder(config)
    crosscoder.initialise(
        torch.zeros(3, suite.width), torch.ones(3), decoder_norm=1.0, tied=True, generator=torch.Generator()
    )
    find = partial(
        contexts, crosscoder, models, corpus, suite.tokenizer, [0, 3], ContextsConfig(per_feature=2, window=6)
    )
    expected = find()
    run_out(monkeypatch, Crosscoder, "encode", 4)
    with pytest.warns(MemoryWarning, match="contexts: out of memory with 9 blocks"):
        found = find()
    for feature, of_one in expected.items():
        assert [context.tokens for context in found[feature].contexts] == [c.tokens for c in of_one.contexts]


def test_a_survey_is_the_same(monkeypatch, tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    task = Task.from_pairs(
        "the",
        [Pair(prefix=prefix, right=" the", wrong=" that") for prefix in ("The key on", "A man", "The cat at", "Some")],
    )
    heldout = Corpus(np.random.default_rng(0).integers(2, suite.vocab_size, (9, 12), dtype=np.uint16), "random")
    find = partial(survey, suite, [task], heldout, layer=1)
    expected = find()
    run_out(monkeypatch, SplitLM, "lower", 3)
    with pytest.warns(MemoryWarning, match="survey: out of memory with .* texts of .* tokens per batch"):
        found = find()
    for name in ("sentence_accuracy", "token_accuracy", "logit_difference", "perplexity", "cosine", "pearson"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(("name", "most"), [("upper", 8), ("upper", 3), ("lower", 3)])
def test_ablations_are_the_same(monkeypatch, name, most):
    prompts, crosscoder, features = WORLD.prompts(), WORLD.crosscoder(), range(6)
    groups = [[[0, 1], [2]]] * len(WORLD.names)
    expected = intervene(crosscoder, WORLD.models(), prompts, features, groups, batch_size=16)
    models = WORLD.models()
    for model in models:
        whole = getattr(model, name)

        def limited(rows, *arguments, whole=whole, **options):
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return whole(rows, *arguments, **options)

        monkeypatch.setattr(model, name, limited)
    with pytest.warns(MemoryWarning, match=r"ablate: out of memory with \d+ prompts of \d tokens per batch"):
        found = intervene(crosscoder, models, prompts, features, groups, batch_size=16)
    for answers in ("clean", "alone", "together"):
        torch.testing.assert_close(getattr(found, answers), getattr(expected, answers), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::crosstime.attribution.effects.CompletenessWarning")
def test_effects_against_means_over_a_text_are_the_same(monkeypatch):
    config = AttributionConfig(baseline="mean")
    find = partial(attribute, WORLD.crosscoder(), WORLD.models(), WORLD.prompts(), config, text=CORPUS)
    expected = find()
    run_out(monkeypatch, Crosscoder, "encode", 8)
    with pytest.warns(MemoryWarning, match="effects: out of memory with 12 blocks of 9 tokens per batch"):
        found = find()
    for name in ("ie", "explained", "total", "error"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6, err_msg=name)
