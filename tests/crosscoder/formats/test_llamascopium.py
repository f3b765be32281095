"""The format of OpenMOSS/Language-Model-SAEs (Llamascopium)."""

import json

import foreign
import pytest
import torch
from safetensors.torch import save_file

from crosstime.crosscoder.formats.importing import import_crosscoder
from crosstime.crosscoder.sparsity.rules import L1, JumpReLU

CONFIG = {
    "sae_type": "crosscoder",
    "d_model": foreign.D,
    "expansion_factor": foreign.F / foreign.D,
    "hook_points": list(foreign.HEADS),
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "jumprelu_threshold_window": 3.0,
}


def _write(folder, state, config=CONFIG, name="sae_weights.safetensors"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".pt":
        torch.save({"sae": state, "version": "2.0"}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sae_weights.pt", "checkpoints/final.safetensors"])
def test_jumprelu_gates_every_checkpoint_by_itself(tmp_path, computes, name):
    state = foreign.llama_weights()
    ours = import_crosscoder(_write(tmp_path, state, name=name), layer=6)
    computes(ours, lambda x: foreign.llama_forward(state, x))
    assert ours.config.sparsity == JumpReLU(window=3.0)
    assert ours.config.checkpoints == foreign.HEADS
    codes, _ = foreign.llama_forward(state, foreign.activations())
    assert ((codes[:, 0] > 0) & (codes[:, 2] == 0)).any()  # where its decoder is small a feature stays silent


def test_relu(tmp_path, computes):
    state = foreign.llama_weights("relu")
    ours = import_crosscoder(_write(tmp_path, state, CONFIG | {"act_fn": "relu"}), layer=6)
    computes(ours, lambda x: foreign.llama_forward(state, x))
    assert ours.config.sparsity == L1(weight=0.0)


def test_factors_that_were_worked_in_already(tmp_path, computes):
    state = foreign.llama_weights()
    ours = import_crosscoder(_write(tmp_path, state, CONFIG | {"norm_activation": "inference"}), layer=6)
    computes(ours, lambda x: foreign.llama_forward(state, x, normalised=False))
    assert ours.scale.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' scales each token or batch by itself"),
        ({"act_fn": "topk"}, "act_fn 'topk' selects features for each checkpoint separately"),
        ({"act_fn": "batchtopk"}, "act_fn 'batchtopk' selects"),
        ({"sparsity_include_decoder_norm": False}, "sparsity_include_decoder_norm is false"),
        ({"hook_points": None}, "`hook_points` is missing"),
    ],
)
def test_parts_without_a_counterpart_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        import_crosscoder(_write(tmp_path, foreign.llama_weights(), CONFIG | change), layer=6)


def test_heads_that_are_places_in_one_model_name_no_checkpoints(tmp_path):
    heads = [f"blocks.{n}.hook_resid_post" for n in (3, 4, 5)]
    state = {name: tensor for name, tensor in foreign.llama_weights().items() if "norm." not in name}
    where = _write(tmp_path, state, CONFIG | {"hook_points": heads, "norm_activation": "inference"})
    with pytest.raises(ValueError, match="the files lack `checkpoints`"):
        import_crosscoder(where)


def test_no_weights_that_we_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "sae_weights.dcp").mkdir()
    with pytest.raises(ValueError, match=r"holds no weights that crosstime reads: sae_weights.safetensors"):
        import_crosscoder(tmp_path, layer=6)
