"""Methods and baselines are values in registries: a new one is one registration, and the report knows it."""

import dataclasses

import numpy as np
import pytest
import torch

from crosstime.attribution.activations import residuals
from crosstime.attribution.baselines import BASELINES, Baseline, ResidualState, states
from crosstime.attribution.effects import AttributionConfig, attribute
from crosstime.attribution.methods import METHODS, Method
from crosstime.attribution.path import IntegrationPath
from crosstime.base.errors import InputError
from crosstime.pipeline.toml import build
from crosstime.report.build import build_report
from crosstime.report.data import ReportData, RunFacts
from crosstime.tasks.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore::crosstime.attribution.effects.CompletenessWarning")


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    """Registries that forget what a test adds."""
    for registry in (METHODS, BASELINES):
        monkeypatch.setattr(registry, "_values", dict(registry._values))


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    tokens = [rng.integers(2, 96, 5).tolist() for _ in range(4)]
    answers = torch.from_numpy(rng.permutation(96)[:8]).reshape(2, 4)
    return Prompts("random", tokens, answers[0], answers[1], torch.arange(4))


def report_of(effects, folder):
    folder.mkdir()
    run = RunFacts(source="random", layer=1, n_features=40, tokens_trained=0, seed=0)
    data = ReportData("A report", run, effects.checkpoints, totals=(effects,))
    return build_report(data, folder).read_text(encoding="utf-8")


def test_a_method_with_the_gradient_at_the_end_of_the_path(crosscoder, models, prompts, tmp_path):
    sentence = "It is estimated by the gradient at the baseline."
    METHODS.add(Method("endpoint", sentence, feature_path=IntegrationPath.from_point(1.0)))
    config = build(AttributionConfig, {"method": "endpoint", "bootstrap": 0}, "attribution")
    found = attribute(crosscoder, models, prompts, config)
    assert (found.method, config.n_gradients) == ("endpoint", 1 + 1 + 16)
    start = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    np.testing.assert_array_equal(found.explained, start.explained)
    assert np.corrcoef(found.ie.ravel(), start.ie.ravel())[0, 1] < 0.999
    # The trapezoid rule with two nodes is the mean of the gradients at both ends.
    trapezoid = AttributionConfig(method="integrated", rule="trapezoid", steps=2, bootstrap=0)
    both = attribute(crosscoder, models, prompts, trapezoid)
    np.testing.assert_allclose((found.ie + start.ie) / 2, both.ie, atol=1e-6)
    html = report_of(found, tmp_path / "report")
    assert sentence in html
    assert "integrated gradients" not in html


def test_a_baseline_of_ones_own(crosscoder, models, prompts, tmp_path):
    BASELINES.add(Baseline("half", "The baseline of a feature is half of its value.", _halves))
    found = attribute(crosscoder, models, prompts, AttributionConfig(baseline="half", bootstrap=0))
    whole = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    # The gradient at the start is the same with every baseline, and the features change by half as much.
    np.testing.assert_allclose(found.ie, whole.ie / 2, rtol=1e-5, atol=1e-7)
    assert "half of its value" in report_of(found, tmp_path / "report")


def _halves(crosscoders, models, prompts, _text):
    def ends(index):
        x = residuals(crosscoders[0], models, prompts.batch(index))
        return ([ResidualState(s.x / 2, s.f / 2) for s in states(crosscoder, x)] for crosscoder in crosscoders)

    return ends


def test_an_unknown_method_or_baseline_is_an_error_in_the_report(crosscoder, models, prompts, tmp_path):
    found = attribute(crosscoder, models, prompts, AttributionConfig(bootstrap=0))
    for name in ("method", "baseline"):
        with pytest.raises(InputError, match=r"unknown .* 'endpoint'"):
            report_of(dataclasses.replace(found, **{name: "endpoint"}), tmp_path / name)


@pytest.mark.parametrize("registry", [METHODS, BASELINES])
def test_the_report_prints_a_sentence_of_each(registry):
    assert all(value.sentence.endswith(".") for value in registry)


def test_the_papers_code_does_not_claim_completeness():
    assert [method.name for method in METHODS if not method.claims_completeness] == ["released"]
