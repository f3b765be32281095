"""Effects equal to those of the paper's public code on its tiny models, in every variant that was stored.

The public code pads on the left; here nothing is padded, so its numbers at real tokens are compared with those of each
prompt alone. The tolerance is relative to a number and to the largest one of its kind: what is near zero is a sum of
larger products, whose rounding is of their size.
"""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import golden_numbers
from crosstime.attribution.activations import residuals
from crosstime.attribution.baselines import BASELINES, ResidualState, states
from crosstime.attribution.effects import AttributionConfig, attribute, error_effects, feature_effects
from crosstime.attribution.methods import METHODS
from crosstime.attribution.path import START, metric, metric_gradient
from crosstime.attribution.relative import pairwise
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.sparsity.rules import BatchTopK
from crosstime.models.split import SplitLM
from crosstime.tasks.task import Pair, Task
from golden_numbers import FEATURES, FOLDER, LAYER, NAMES, POSITIONS, tensors

BATCH, COLUMNS = 4, 5
STEPS = 10
"""Of the paper's text."""
TOLERANCE = 1e-5

# The public code's way leaves gaps that deserve a warning.
pytestmark = pytest.mark.filterwarnings("ignore::crosstime.attribution.effects.CompletenessWarning")

PAPER = METHODS["paper"].total_path
VARIANTS = {
    "released": ("file", START),
    "ig": ("file", PAPER),
    "sorted_released": ("sorted", START),
    "sorted_ig": ("sorted", PAPER),
}
METHOD_OF = {"released": "released", "released_maskfix": "released", "ig": "paper"}


def assert_close(found, golden, tolerance=TOLERANCE):
    found, golden = np.asarray(found), np.asarray(golden)
    assert np.abs(golden).max() > 0
    np.testing.assert_allclose(found, golden, rtol=tolerance, atol=tolerance * np.abs(golden).max())


@pytest.fixture(autouse=True)
def _no_graph():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models():
    folders = [FOLDER / "models" / f"pythia-tiny-{name}" for name in NAMES]
    return [
        SplitLM(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LAYER, name)
        for name, folder in zip(NAMES, folders, strict=True)
    ]


@pytest.fixture(scope="module")
def crosscoder():
    return golden_numbers.crosscoder(tensors("crosscoder_unfolded"), scale=tensors("fixed_activations")["c"])


def read(order):
    file = {"file": "prompts", "sorted": "prompts_sorted"}[order]
    rows = [json.loads(line) for line in (FOLDER / f"{file}.jsonl").read_text().splitlines()]
    pairs = [Pair(prefix=r["clean_prefix"], right=r["clean_answer"], wrong=r["patch_answer"]) for r in rows]
    prompts = Task.from_pairs(order, pairs).prompts(AutoTokenizer.from_pretrained(FOLDER / "tokenizer"), POSITIONS)
    assert len(prompts) == 24
    return prompts


@pytest.fixture(scope="module")
def prompts():
    return {order: read(order) for order in ("file", "sorted")}


def padded_batches(prompts):
    """The prompts' numbers, a batch of the public code apiece."""
    return torch.arange(len(prompts)).split(BATCH)


@pytest.mark.parametrize("order", ["file", "sorted"])
def test_residuals_codes_errors_and_metrics(crosscoder, models, prompts, order):
    golden, task = tensors(f"attribution_states_{order}_fp32"), prompts[order]
    end_of = BASELINES["bias"].path_ends([crosscoder], models, task, None)
    for b, batch in enumerate(padded_batches(task)):
        for row, n in enumerate(batch.tolist()):
            tokens = torch.tensor([task.tokens[n]])
            length = tokens.shape[1]
            assert golden[f"b{b}.input_ids"][row, -length:].tolist() == task.tokens[n]
            assert golden[f"b{b}.attention_mask"][row].sum() == length
            assert golden[f"b{b}.correct_id"][row] == task.right[n]
            assert golden[f"b{b}.wrong_id"][row] == task.wrong[n]
            for m, (start, end) in enumerate(paths(crosscoder, models, tokens, end_of, n)):
                assert_close(start.f[0], golden[f"b{b}.f"][row, -length:])
                assert_close(start.x[0], golden[f"b{b}.m{m}.resid"][row, -length:])
                error = start.x - start.f @ crosscoder.raw_decoder(m) - crosscoder.raw_bias()[m]
                assert_close(error[0], golden[f"b{b}.m{m}.residual_error"][row, -length:])
                answers = task.right[[n]], task.wrong[[n]]
                assert_close(metric(models[m], start.x, *answers), golden[f"b{b}.m{m}.clean_metric"][row : row + 1])
                at_end = metric(models[m], start.x + start.displacement(end, 0).x, *answers)
                assert_close(at_end, golden[f"b{b}.m{m}.metric_alpha"][-1:, row])


@pytest.mark.parametrize("variant", VARIANTS)
def test_effects_at_single_tokens(crosscoder, models, prompts, variant):
    order, path = VARIANTS[variant]
    golden, task = tensors(f"attribution_tokens_{variant}_fp32"), prompts[order]
    mask = tensors(f"attribution_states_{order}_fp32")
    end_of = BASELINES["bias"].path_ends([crosscoder], models, task, None)
    for b, batch in enumerate(padded_batches(task)):
        padding = mask[f"b{b}.attention_mask"] == 0
        found = {key: torch.zeros_like(golden[key]) for key in golden if key.startswith(f"b{b}.")}
        for row, n in enumerate(batch.tolist()):
            tokens = torch.tensor([task.tokens[n]])
            for m, (start, end) in enumerate(paths(crosscoder, models, tokens, end_of, n)):
                moved = start.displacement(end, 0)
                answers = task.right[[n]], task.wrong[[n]]
                clean = metric_gradient(models[m], start.x, *answers)
                gradient = path.mean_gradient(models[m], clean, start.x, moved.x, *answers)
                for name, value in measured(gradient, moved, crosscoder.raw_decoder(m)).items():
                    found[f"b{b}.m{m}.{name}"][row, -tokens.shape[1] :] = value[0]
        for key, value in found.items():
            assert_close(value[~padding], golden[key][~padding])
            if key.endswith("effect"):
                assert not golden[key][padding].any()


def paths(crosscoder, models, tokens, end_of, n):
    """At each checkpoint, where the path of prompt n begins and where it ends."""
    (end,) = end_of(torch.tensor([n]))
    return zip(states(crosscoder, residuals(crosscoder, models, tokens)), end, strict=True)


def measured(gradient, moved, decoder):
    effect = feature_effects(gradient, moved.f, decoder)
    error_effect = error_effects(gradient, moved.x, moved.f, decoder)
    return {
        "mean_grad_resid": gradient,
        "mean_grad_f": gradient @ decoder.T,
        "effect": effect,
        "error_effect": error_effect,
    }


@pytest.fixture(scope="module")
def narrowfix(crosscoder, models, prompts):
    """Effects by batch and checkpoint [B, S, ...] with padding that is attended at all points but the first."""
    stored, task, found = tensors("attribution_states_file_fp32"), prompts["file"], {}
    for b, batch in enumerate(padded_batches(task)):
        mask = stored[f"b{b}.attention_mask"]
        for m, model in enumerate(models):
            x = stored[f"b{b}.m{m}.resid"]
            start = ResidualState(x, stored[f"b{b}.f"])
            end = ResidualState(crosscoder.raw_bias()[m].detach(), torch.zeros(FEATURES))
            moved = start.displacement(end, 0)
            gradient = torch.zeros_like(x)
            for alpha in range(STEPS):
                z = x + alpha / STEPS * moved.x
                seen = mask if alpha == 0 else torch.ones_like(mask)
                gradient += slope(model, z, seen, task.right[batch], task.wrong[batch]) / STEPS
            found[b, m] = measured(gradient, moved, crosscoder.raw_decoder(m))
    return found


@torch.enable_grad()
def slope(model, z, mask, right, wrong):
    """Gradient of the metric at one point, for rows with padding."""
    z, rows = z.requires_grad_(), torch.arange(len(z))
    logits = model.upper(z, mask)[:, -1]
    (gradient,) = torch.autograd.grad((logits[rows, wrong] - logits[rows, right]).sum(), z)
    return gradient


def test_effects_with_attended_padding(narrowfix):
    golden = tensors("attribution_tokens_narrowfix_fp32")
    for (b, m), values in narrowfix.items():
        for name, value in values.items():
            assert_close(value, golden[f"b{b}.m{m}.{name}"])


@pytest.mark.parametrize("threshold", ["None", "0.1", "0.001"])
def test_aggregated_effects_with_attended_padding(narrowfix, threshold):
    limit = 0.0 if threshold == "None" else float(threshold)
    ie = torch.zeros(len(NAMES), FEATURES)
    for (_, m), values in narrowfix.items():
        effect = values["effect"]
        ie[m] += COLUMNS / 24 * (effect * (effect.abs() > limit)).mean((0, 1))
    assert_close(ie, tensors("attribution_ie_fp32")[f"narrowfix.thr_{threshold}"])


AGGREGATED = [
    (variant, threshold)
    for variant in ("released", "ig", "sorted_released", "sorted_ig")
    for threshold in ("None", "0.1", "0.001")
]
AGGREGATED += [(variant, "None") for variant in ("released_maskfix", "released_bs5", "ig_bs5")]


@pytest.mark.parametrize(("variant", "threshold"), AGGREGATED)
def test_aggregated_effects(crosscoder, models, prompts, variant, threshold):
    golden = tensors("attribution_ie_fp32")[f"{variant}.thr_{threshold}"]
    found = attribute(
        crosscoder,
        models,
        prompts["sorted" if variant.startswith("sorted") else "file"],
        AttributionConfig(
            method=METHOD_OF[variant.removeprefix("sorted_").removesuffix("_bs5")],
            threshold=0.0 if threshold == "None" else float(threshold),
            reference_batch=5 if variant.endswith("bs5") else BATCH,
            n_columns=COLUMNS,
            bootstrap=0,
        ),
    )
    assert_close(found.ie, golden)
    assert ((found.ie != 0).sum(1) == (golden.numpy() != 0).sum(1)).all()


class InTraining(Crosscoder):
    """One whose codes always depend on the batch, as in the public code, which never leaves the training mode."""

    def encode(self, x, mode="training"):
        return super().encode(x, mode)


@pytest.mark.parametrize("variant", ["released", "ig"])
def test_aggregated_effects_of_a_code_that_depends_on_the_batch(models, prompts, variant):
    """Sorted by length, and a multiple of four of each: our batches are those of the public code.

    It weighs codes by the norms of its folded decoder; a crosscoder that was never scaled does the same.
    """
    folded = golden_numbers.part(tensors("encode_decode"), "folded_param.")
    crosscoder = golden_numbers.crosscoder(folded, BatchTopK(k=8))
    crosscoder.__class__ = InTraining
    found = attribute(
        crosscoder,
        models,
        prompts["sorted"],
        AttributionConfig(method=METHOD_OF[variant], threshold=0.0, n_columns=COLUMNS, batch_size=BATCH, bootstrap=0),
    )
    assert_close(found.ie, tensors("attribution_ie_fp32")[f"sorted_{variant}.batchtopk_k8_trainmode.thr_None"])


@pytest.mark.parametrize("variant", ["released", "ig"])
@pytest.mark.parametrize("threshold", ["None", "0.1"])
def test_relative_effects(crosscoder, models, prompts, variant, threshold):
    golden = tensors("attribution_rel_ie_fp32")
    found = attribute(
        crosscoder,
        models,
        prompts["file"],
        AttributionConfig(
            method=METHOD_OF[variant],
            threshold=0.0 if threshold == "None" else float(threshold),
            n_columns=COLUMNS,
            no_effect="shared",
            bootstrap=0,
        ),
    )
    name = f"{variant}.thr_{threshold}"
    assert_close(found.rel_ie, golden[f"{name}.one_vs_all"])
    pairs = pairwise(found.ie, "shared")
    ours = np.stack([pairs[0, 1], pairs[1, 2], pairs[0, 2]])
    np.testing.assert_allclose(ours, golden[f"{name}.pairwise"], rtol=TOLERANCE, atol=TOLERANCE)
