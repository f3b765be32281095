"""Columns for SAELens: its layout, and what its definition of an autoencoder computes from them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.formats.saelens import export_saelens
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, FixedThresholds, JumpReLU, TopK

M, D, F = 2, 6, 20
GENERATOR = torch.Generator()


def _crosscoder(rule, threshold=None, **config):
    GENERATOR.manual_seed(0)
    made = Crosscoder(CrosscoderConfig(("step1", "x/step2"), 3, D, F, sparsity=rule, **config))
    with torch.no_grad():
        for parameter in (made.W_enc, made.b_enc, made.W_dec, made.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=GENERATOR))
        made.scale.copy_(torch.tensor([2.0, 0.5]))
        if threshold is not None:
            made.threshold.copy_(threshold)
    return made


def _encode(column, x):
    """SAELens' standard and JumpReLU autoencoders, with apply_b_dec_to_input false."""
    hidden_pre = x @ column["W_enc"] + column["b_enc"]
    return torch.relu(hidden_pre) * (hidden_pre > column.get("threshold", torch.zeros(())))


@pytest.mark.parametrize(
    ("rule", "threshold", "architecture"),
    [
        (L1(), None, "standard"),
        (BatchTopK(k=4), torch.tensor(4.0), "jumprelu"),
        (BatchTopK(k=4), torch.tensor(-1.0), "standard"),  # never measured
        (JumpReLU(), torch.linspace(0.1, 3, F).log(), "jumprelu"),
        (FixedThresholds(), torch.linspace(0.0, 2, F), "jumprelu"),
    ],
)
def test_a_column_is_the_crosscoder_with_the_other_checkpoints_at_zero(tmp_path, rule, threshold, architecture):
    crosscoder = _crosscoder(rule, threshold)
    folders = export_saelens(crosscoder, tmp_path)
    assert [folder.name for folder in folders] == ["step1", "x_step2"]
    x = torch.randn(64, M, D, generator=GENERATOR)
    for m, folder in enumerate(folders):
        column = load_file(folder / "sae_weights.safetensors")
        shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
        shapes |= {"threshold": (F,)} if architecture == "jumprelu" else {}
        assert {name: tuple(tensor.shape) for name, tensor in column.items()} == shapes
        alone = torch.zeros_like(x)
        alone[:, m] = x[:, m]
        with torch.no_grad():
            f = crosscoder.gate(crosscoder.encode(alone), m)
            torch.testing.assert_close(_encode(column, x[:, m]), f)
            assert 0 < float((f > 0).float().mean()) < 1
            # The decoder is exact: the crosscoder's own code gives the crosscoder's reconstruction.
            f = crosscoder.encode(x)
            x_hat = crosscoder.gate(f, m) @ column["W_dec"] + column["b_dec"]
            torch.testing.assert_close(x_hat, crosscoder.decode(f)[:, m])
        config = json.loads((folder / "cfg.json").read_text())
        assert config["architecture"] == architecture
        assert (config["d_in"], config["d_sae"], config["apply_b_dec_to_input"]) == (D, F, False)


def test_cfg_says_what_a_column_is_and_where_it_reads(tmp_path):
    sources = ("EleutherAI/pythia-1b@abc", "EleutherAI/pythia-1b@def")
    _, second = export_saelens(_crosscoder(L1(), sources=sources), tmp_path)
    metadata = json.loads((second / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert metadata["model_name"] == "EleutherAI/pythia-1b"
    assert metadata["model_from_pretrained_kwargs"] == {"revision": "def"}
    assert metadata["crosscoder_checkpoint"] == "x/step2"
    assert "approximation" in metadata["about"]


def test_a_rule_that_compares_features_has_no_columns(tmp_path):
    with pytest.raises(ValueError, match="rule 'topk' compares the features of a token with one another"):
        export_saelens(_crosscoder(TopK(k=4)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_checkpoints_in_one_folder(tmp_path):
    crosscoder = Crosscoder(CrosscoderConfig(("a/b", "a_b"), 3, D, F))
    with pytest.raises(ValueError, match="would be written to the same folder"):
        export_saelens(crosscoder, tmp_path)
