"""The format of the paper's public code, and ckkissane's, from which it descends."""

import json
from pathlib import Path

import foreign
import pytest
import torch

from crosstime.crosscoder.formats.importing import import_crosscoder
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK
from crosstime.text.positions import Positions
from golden_numbers import assert_golden, tensors

GOLDEN = Path(__file__).parents[2] / "golden" / "ref_format" / "version_0"
SCALE = [2.0, 1.2, 0.8]
CONFIG = {
    "dict_size": foreign.F,
    "d_in": foreign.D,
    "n_models": 3,
    "model_name": "EleutherAI/pythia-1b",
    "revision_list": "step512-step2000-main",
    "hook_point": "blocks.9.hook_resid_pre",
    "estimated_act_norm_list": SCALE,
    "l1_coeff": 3,
    "l1_warmup_pct": 0.1,
}
BATCH_TOPK = {
    "batch_topk_final": 6,
    "batch_topk_init": 20,
    "topk_annealing_steps": 50,
    "threshold_start_step": 10,
    "threshold_beta": 0.9,
    "dead_feature_threshold": 1000,
    "auxk_alpha": 0.25,
}


def _write(folder, weights, config, name="20"):
    folder.mkdir(exist_ok=True)
    torch.save(weights, folder / f"{name}.pt")
    (folder / f"{name}_cfg.json").write_text(json.dumps(config))
    return folder


def test_the_golden_file_gives_the_golden_numbers():
    ours = import_crosscoder(GOLDEN)
    rows, golden = tensors("fixed_activations"), tensors("encode_decode")
    f = ours.encode(rows["x_raw"])
    assert_golden(f, golden["folded.f"])
    assert_golden(ours.decode(f), golden["folded.x_hat"])
    assert ours.config.checkpoints == ("step0", "step1", "step2")
    assert (ours.config.layer, ours.config.width, ours.config.features) == (1, 32, 96)
    assert ours.config.positions == Positions(bos=False, encode_first=True, train_first=False)
    assert ours.config.sources[1] == "local/pythia-tiny@step1"


def test_l1(tmp_path, computes):
    weights = foreign.paper_weights()
    ours = import_crosscoder(_write(tmp_path / "version_7", weights, CONFIG))
    computes(ours, lambda x: foreign.paper_forward(weights, SCALE, x))
    assert ours.config.sparsity == L1(weight=3.0, warmup=0.1)
    assert ours.config.layer == 8
    assert ours.config.tokens == (512 * 2_097_152, 2000 * 2_097_152, 143_000 * 2_097_152)


def test_batch_topk_keeps_its_threshold(tmp_path, computes):
    weights = foreign.paper_weights() | {"k": torch.tensor(6, dtype=torch.int), "threshold": torch.tensor(2.5)}
    ours = import_crosscoder(_write(tmp_path / "version_7", weights, CONFIG | BATCH_TOPK) / "20.pt", "paper")
    computes(ours, lambda x: foreign.paper_forward(weights, SCALE, x))
    assert ours.config.sparsity == BatchTopK(
        k=6, k_start=20, k_steps=50, threshold_start=10, threshold_decay=0.9, dead_tokens=1000, aux_weight=0.25
    )


@pytest.mark.parametrize(
    ("model", "joined", "names"),
    [
        ("allenai/OLMo-1B-0724-hf", "step2000-tokens4B_step16000-tokens33B_main",
         ("step2000-tokens4B", "step16000-tokens33B", "main")),
        ("bigscience/bloom-1b1-intermediate", "global_step10000-global_step100000-main",
         ("global_step10000", "global_step100000", "main")),
    ],
)  # fmt: skip
def test_revisions_are_split_as_they_were_joined(tmp_path, model, joined, names):
    config = CONFIG | {"model_name": model, "revision_list": joined}
    ours = import_crosscoder(_write(tmp_path / "version_7", foreign.paper_weights(), config))
    assert ours.config.checkpoints == names
    assert ours.config.tokens[0] == {"allenai": 4 * 10**9, "bigscience": 10_000 * 550_000}[model.split("/")[0]]


def test_what_cannot_be_known_is_asked_for(tmp_path):
    weights = foreign.paper_weights()
    where = _write(tmp_path / "version_7", weights, CONFIG | {"estimated_act_norm_list": None})
    with pytest.raises(ValueError, match=r"the files lack `scale` \(3 values, one per checkpoint\): pass it"):
        import_crosscoder(where)
    assert import_crosscoder(where, scale=SCALE).scale.tolist() == pytest.approx(SCALE)
    with pytest.raises(ValueError, match="has 3 checkpoints, but scale has 2"):
        import_crosscoder(where, scale=SCALE[:2])
    _write(where, weights, CONFIG | {"revision_list": "step1-step2-step3-step4"})
    with pytest.raises(ValueError, match="has 4 names when split at '-', but n_models is 3"):
        import_crosscoder(where)
    assert import_crosscoder(where, checkpoints=["a", "b", "c"]).config.checkpoints == ("a", "b", "c")
    with pytest.raises(ValueError, match="the files have scale factors"):
        import_crosscoder(where, checkpoints=["a", "b", "c"], scale=SCALE)


def test_one_of_many_saves_must_be_named(tmp_path):
    where = _write(tmp_path / "version_7", foreign.paper_weights(), CONFIG)
    _write(where, foreign.paper_weights(), CONFIG, "19")
    with pytest.raises(ValueError, match=r"it has 19\.pt, 20\.pt: name the file itself"):
        import_crosscoder(where)
    import_crosscoder(where / "20.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"W_dec": torch.zeros(foreign.F, 2, foreign.D)},
            r"W_dec has the shape \(24, 2, 5\), not \(24, 3, 5\) as its encoder",
        ),
        ({"b_dec": torch.full((3, foreign.D), torch.nan)}, "b_dec holds NaN"),
        ({"W_enc": torch.zeros(3, foreign.D)}, "W_enc must have 3 dimensions"),
        ({"b_enc": None}, "holds no tensor 'b_enc'; it has W_dec, W_enc"),
    ],
)
def test_weights_that_cannot_be(tmp_path, change, message):
    weights = {k: v for k, v in (foreign.paper_weights() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        import_crosscoder(_write(tmp_path / "version_7", weights, CONFIG))


def test_a_layer_before_the_first_block(tmp_path):
    where = _write(tmp_path / "v", foreign.paper_weights(), CONFIG | {"hook_point": "blocks.0.hook_resid_pre"})
    with pytest.raises(ValueError, match="is the output of the embedding"):
        import_crosscoder(where)


def test_ckkissane(tmp_path, computes):
    weights, scale = foreign.paper_weights(), [0.28, 0.24, 0.5]
    torch.save(weights, tmp_path / "cc_weights.pt")
    config = {"model_name": "gemma-2-2b", "hook_point": "blocks.14.hook_resid_pre", "l1_coeff": 2}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the files lack `checkpoints`"):
        import_crosscoder(tmp_path)
    with pytest.raises(ValueError, match="the files lack `scale`"):
        import_crosscoder(tmp_path, checkpoints=["base", "chat", "other"])
    for path in (tmp_path, tmp_path / "cc_weights.pt"):
        ours = import_crosscoder(path, checkpoints=["base", "chat", "other"], scale=scale)
        computes(ours, lambda x: foreign.paper_forward(weights, scale, x))
    assert ours.config.layer == 13
    assert ours.config.positions == Positions()
