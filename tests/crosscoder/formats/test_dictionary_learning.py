"""The format of science-of-finetuning/dictionary_learning."""

import json

import foreign
import pytest
import torch
from safetensors.torch import save_file

from crosstime.crosscoder.formats.importing import import_crosscoder
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, FixedThresholds, JumpReLU

CONFIG = {"activation_dim": foreign.D, "dict_size": foreign.F, "num_layers": foreign.M, "latent_processor": None}
STATED = {"checkpoints": ["base", "middle", "chat"], "layer": 13}
CROSSCODER, SAE, MIXED, NONE, DECOUPLED = range(1, 6)


def _write(folder, state, config=CONFIG):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("normalizer", [None, "checkpoint", "all", "neuron"])
def test_relu(tmp_path, computes, normalizer):
    state = foreign.learning_weights(normalizer)
    ours = import_crosscoder(_write(tmp_path, state), **STATED)
    computes(ours, lambda x: foreign.learning_forward(state, x))
    assert ours.config.sparsity == L1(weight=0.0)  # the files do not say what it was trained with
    if normalizer in (None, "checkpoint"):  # one size per checkpoint: decoder norms are those of the file
        torch.testing.assert_close(ours.decoder_norms(), state["decoder.weight"].norm(dim=2))


@pytest.mark.parametrize("normalizer", [None, "checkpoint", "neuron"])
@pytest.mark.parametrize("normalization", [CROSSCODER, SAE, MIXED, NONE])
def test_batch_topk(tmp_path, computes, normalizer, normalization):
    state = foreign.learning_weights(normalizer, threshold=1.5, normalization=normalization)
    config = CONFIG | {"code_normalization_alpha_sae": 0.5, "code_normalization_alpha_cc": 0.3}
    ours = import_crosscoder(_write(tmp_path, state, config), **STATED)
    computes(ours, lambda x: foreign.learning_forward(state, x, alphas=(0.5, 0.3)))
    as_ours = normalization == CROSSCODER and normalizer != "neuron"
    assert ours.config.sparsity == (BatchTopK(k=6) if as_ours else FixedThresholds())


@pytest.mark.parametrize("normalization", [CROSSCODER, NONE, DECOUPLED])
def test_a_threshold_that_was_never_measured_lets_everything_pass(tmp_path, computes, normalization):
    threshold = [-1.0] * 3 if normalization == DECOUPLED else -1.0
    state = foreign.learning_weights(None, threshold=threshold, normalization=normalization)
    ours = import_crosscoder(_write(tmp_path, state), **STATED)
    computes(ours, lambda x: foreign.learning_forward(state, x))


def test_decoupled_with_one_threshold_is_gated_by_checkpoint(tmp_path, computes):
    state = foreign.learning_weights("checkpoint", threshold=[1.5] * 3, normalization=DECOUPLED)
    ours = import_crosscoder(_write(tmp_path, state), **STATED)
    computes(ours, lambda x: foreign.learning_forward(state, x))
    assert ours.config.sparsity == JumpReLU()


def test_decoupled_with_several_thresholds_is_refused_by_name(tmp_path):
    state = foreign.learning_weights(None, threshold=[1.0, 1.0, 2.0], normalization=DECOUPLED)
    with pytest.raises(ValueError, match="DECOUPLED has one threshold per checkpoint"):
        import_crosscoder(_write(tmp_path, state), **STATED)


def test_a_training_folder_with_a_compiled_module(tmp_path, computes):
    state = foreign.learning_weights("checkpoint", threshold=1.5)
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, tmp_path / "model_final.pt")
    config = {"dict_class": "BatchTopKCrossCoder", "layer": 7, "k_target": 5, "code_normalization": "CROSSCODER"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": config}))
    ours = import_crosscoder(tmp_path, checkpoints=STATED["checkpoints"])
    computes(ours, lambda x: foreign.learning_forward(state, x))
    assert ours.config.layer == 7
    assert ours.config.sparsity == BatchTopK(k=5)


def test_a_lone_state_dict_of_an_old_version(tmp_path, computes):
    state = foreign.learning_weights(None)
    old = {name: tensor for name, tensor in state.items() if name.startswith(("encoder", "decoder"))}
    torch.save(old, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="no crosscoder in a known format"):
        import_crosscoder(tmp_path, **STATED)
    ours = import_crosscoder(tmp_path / "ae.pt", "dictionary-learning", **STATED)
    computes(ours, lambda x: foreign.learning_forward(state, x))


def test_an_encoder_that_reads_only_some_checkpoints(tmp_path, computes):
    state = foreign.learning_weights(None)
    whole = state["encoder.weight"].clone()
    whole[1] = 0
    state["encoder.weight"] = state["encoder.weight"][[0, 2]]
    with pytest.raises(ValueError, match="doesn't list the encoder's"):
        import_crosscoder(_write(tmp_path, state), **STATED)
    ours = import_crosscoder(_write(tmp_path, state, CONFIG | {"encoder_layers": [0, 2]}), **STATED)
    computes(ours, lambda x: foreign.learning_forward(state | {"encoder.weight": whole}, x))


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        ({"latent_processor": "f"}, {}, "it has a latent_processor"),
        ({"dict_class": "GatedAutoEncoder"}, {}, "is a GatedAutoEncoder, not a crosscoder"),
        ({}, {"code_normalization_id": torch.tensor(9), "threshold": torch.tensor(1.0)}, "code normalization 9"),
        ({}, {"activation_mean": torch.zeros(1, foreign.D)}, r"activation_mean has the shape \(1, 5\), not \(3, 5\)"),
    ],
)
def test_parts_without_a_counterpart_are_refused_by_name(tmp_path, config, state, message):
    where = _write(tmp_path, foreign.learning_weights(None) | state, CONFIG | config)
    with pytest.raises(ValueError, match=message):
        import_crosscoder(where, "dictionary-learning", **STATED)


def test_checkpoints_and_layer_are_asked_for(tmp_path):
    where = _write(tmp_path, foreign.learning_weights(None))
    with pytest.raises(ValueError, match="the files lack `checkpoints`"):
        import_crosscoder(where)
    with pytest.raises(ValueError, match="the files lack `layer`"):
        import_crosscoder(where, checkpoints=STATED["checkpoints"])
