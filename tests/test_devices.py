"""The whole way through the Python API, on each device: the numbers do not depend on where they are computed."""

import numpy as np
import pytest
import torch

import crosstime as ct
import tiny

CONFIG = ct.TrainConfig(
    tokens=2048, batch_size=128, lr=1e-3, buffer_tokens=512, model_batch_blocks=4, calibration_blocks=4,
    matmul_dtype="float32", model_dtype="float32",
)  # fmt: skip


def _whole_way(folder, device):
    suite = ct.Suite.from_folder(folder)
    text = ct.Corpus.from_strings([*tiny.SENTENCES] * 60, suite.tokenizer, context=24)
    training, heldout = text.split(0.1)
    task = ct.Task.from_pairs(
        "the", [ct.Pair(prefix=prefix, right=" the", wrong=" that") for prefix in ("The key on", "A man", "The cat at")]
    )
    surveyed = ct.survey(suite, [task], heldout, layer=1, device=device)
    crosscoder = ct.train(suite, training, layer=1, features=32, sparsity=ct.L1(0.1), config=CONFIG, device=device)
    models = [suite.load(name, layer=1, device=device) for name in suite.names]
    quality = ct.evaluate(crosscoder, models, heldout)
    prompts = task.prompts(suite.tokenizer)
    effects = ct.attribute(crosscoder, models, prompts, ct.AttributionConfig(bootstrap=10))
    ablation = ct.ablate(crosscoder, models, prompts, effects, quality.frequency, ct.AblationConfig(top_k=2))
    features = np.argsort(-quality.frequency)[:2].tolist()
    found = ct.contexts(crosscoder, models, heldout, suite.tokenizer, features, ct.ContextsConfig(per_feature=2))
    table = ct.FeatureTable.from_effects([effects], crosscoder, quality.frequency)
    diagnostics = ct.diagnose(crosscoder, models, heldout)
    return surveyed, quality, effects, ablation, found, table, diagnostics


@pytest.fixture(scope="module")
def on_cpu(tiny_suite):
    return _whole_way(tiny_suite, "cpu")


def test_the_parts_fit_together(on_cpu):
    surveyed, quality, effects, ablation, found, table, diagnostics = on_cpu
    assert surveyed.checkpoints == quality.checkpoints == effects.checkpoints == ["step0", "step10", "step100"]
    assert (quality.ce_zero > 0).all()
    assert effects.ie.shape == (3, 32)
    assert set(ablation.table["group"].to_pylist()) == {"top", "random"}
    assert all(context.contexts for context in found.values())
    assert table.table.num_rows == 3 * 32
    assert sum(diagnostics.counts.values()) == 32


@pytest.mark.gpu
def test_cuda_gives_the_numbers_of_the_cpu(on_cpu, tiny_suite):
    assert torch.cuda.is_available(), "no CUDA device is here: leave these tests out with -m 'not gpu'"
    for here, there in zip(on_cpu[:3], _whole_way(tiny_suite, "cuda")[:3], strict=True):
        for name, value in vars(here).items():
            if isinstance(value, np.ndarray) and name != "sign_consistency":  # rounding decides the sign of zero
                np.testing.assert_allclose(getattr(there, name), value, rtol=2e-2, atol=2e-3, err_msg=name)
