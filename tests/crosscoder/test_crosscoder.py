"""The crosscoder's algebra and its files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.text.positions import Positions

M, D, F = 3, 5, 7


@pytest.fixture
def config():
    return CrosscoderConfig(("step1", "step2", "step3"), layer=2, width=D, features=F, tokens=(10, None, 30))


@pytest.fixture
def crosscoder(config):
    generator = torch.Generator().manual_seed(0)
    made = Crosscoder(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        made.scale.copy_(torch.tensor([2.0, 1.2, 0.8]))
    return made


@pytest.fixture
def x():
    return torch.randn(4, 2, M, D, generator=torch.Generator().manual_seed(1))


def test_encode_and_decode_are_the_equations(crosscoder, x):
    scaled = x * crosscoder.scale[:, None]
    f = torch.relu(torch.einsum("bsmd,mdf->bsf", scaled, crosscoder.W_enc) + crosscoder.b_enc)
    x_hat = (torch.einsum("bsf,fmd->bsmd", f, crosscoder.W_dec) + crosscoder.b_dec) / crosscoder.scale[:, None]
    torch.testing.assert_close(crosscoder.encode(x), f)
    torch.testing.assert_close(crosscoder.decode(f), x_hat)
    torch.testing.assert_close(crosscoder(x), x_hat)


def test_over_one_checkpoint_it_is_a_sparse_autoencoder(crosscoder, x, tmp_path):
    alone = Crosscoder(CrosscoderConfig(("step2",), layer=2, width=D, features=F))
    with torch.no_grad():
        alone.W_enc.copy_(crosscoder.W_enc[1:2])
        alone.W_dec.copy_(crosscoder.W_dec[:, 1:2])
        alone.b_dec.copy_(crosscoder.b_dec[1:2])
    f = torch.relu(x[..., 1, :] @ alone.W_enc[0])
    torch.testing.assert_close(alone(x[..., 1:2, :])[..., 0, :], f @ alone.W_dec[:, 0] + alone.b_dec[0])
    alone.save_pretrained(tmp_path)
    assert torch.equal(Crosscoder.from_pretrained(tmp_path)(x[..., 1:2, :]), alone(x[..., 1:2, :]))
    assert "# Crosscoder over 1 checkpoint\n" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_decoding_is_bias_plus_features_times_raw_decoder(crosscoder, x):
    f = crosscoder.encode(x)
    for m in range(M):
        torch.testing.assert_close(
            crosscoder.decode(f)[..., m, :], f @ crosscoder.raw_decoder(m) + crosscoder.raw_bias()[m]
        )


def test_a_checkpoint_in_other_units_changes_its_scale_factor_and_nothing_else(crosscoder, x):
    f, x_hat = crosscoder.encode(x), crosscoder(x)
    units = torch.tensor([1.0, 10.0, 1.0])[:, None]
    crosscoder.scale /= units[:, 0]
    torch.testing.assert_close(crosscoder.encode(x * units), f)
    torch.testing.assert_close(crosscoder(x * units), x_hat * units)


def test_rescaling_a_feature_leaves_reconstruction_and_penalty_alone(crosscoder, x):
    x_hat, penalty = crosscoder(x), crosscoder.encode(x) @ crosscoder.decoder_norms().sum(0)
    with torch.no_grad():
        crosscoder.W_enc[:, :, 3] *= 4
        crosscoder.b_enc[3] *= 4
        crosscoder.W_dec[3] /= 4
    torch.testing.assert_close(crosscoder(x), x_hat)
    torch.testing.assert_close(crosscoder.encode(x) @ crosscoder.decoder_norms().sum(0), penalty)


@pytest.mark.parametrize("tied", [True, False])
def test_initialisation(config, tied):
    made = Crosscoder(config)
    mean, scale = torch.randn(M, D), torch.tensor([2.0, 1.0, 0.5])
    made.initialise(mean, scale, decoder_norm=0.08, tied=tied, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.decoder_norms(), torch.full((M, F), 0.08))
    torch.testing.assert_close(made.W_enc, made.W_dec.permute(1, 2, 0))
    torch.testing.assert_close(made.raw_bias(), mean)
    assert torch.equal(made.W_dec[:, 0], made.W_dec[:, 2]) == tied


def test_saved_and_read_again_it_is_the_same(crosscoder, x, tmp_path):
    crosscoder.save_pretrained(tmp_path / "cc")
    again = Crosscoder.from_pretrained(tmp_path / "cc")
    assert again.config == crosscoder.config
    assert torch.equal(again(x), crosscoder(x))
    described = json.loads((tmp_path / "cc" / "config.json").read_text())
    assert described["scale_factors"] == pytest.approx([2.0, 1.2, 0.8])
    card = (tmp_path / "cc" / "README.md").read_text()
    assert "library_name: crosstime" in card
    assert "| step3 | 30 |" in card


def test_a_policy_for_position_0_survives_saving(tmp_path):
    config = CrosscoderConfig(("a", "b"), 0, D, F, positions=Positions(bos=False, encode_first=True))
    Crosscoder(config).save_pretrained(tmp_path)
    assert Crosscoder.from_pretrained(tmp_path).config.positions == config.positions


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _cut_off_a_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip_a_byte, _cut_off_a_byte])
def test_damaged_weights_are_found(crosscoder, tmp_path, damage):
    crosscoder.save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors was truncated or altered"):
        Crosscoder.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused(crosscoder, tmp_path):
    crosscoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"features": 7', '"features": 8'))
    with pytest.raises(ValueError, match="don't fit"):
        Crosscoder.from_pretrained(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        Crosscoder.from_pretrained(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    with pytest.raises(ValueError, match="doesn't describe a crosscoder"):
        Crosscoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: config.pop("weights_sha256"),
        lambda config: config.pop("layer"),
        lambda config: config.update(activation="jumprelu"),
        lambda config: config["positions"].update(last=True),
        lambda config: config.update(tokens=None),
    ],
)
def test_the_config_of_another_version_is_named(crosscoder, tmp_path, edit):
    crosscoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"config\.json is damaged or of another version of crosstime \(.*update"
    ) as error:
        Crosscoder.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_config_with_a_rule_that_is_not_there_is_named(crosscoder, tmp_path):
    crosscoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"rule": "l1"', '"rule": "mine"'))
    with pytest.raises(ValueError, match=r"config\.json: unknown sparsity rule 'mine'.*import the module"):
        Crosscoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("files_that_fit", [0, 1, 2])
def test_a_failed_save_leaves_the_old_crosscoder_whole(crosscoder, x, tmp_path, monkeypatch, files_that_fit):
    crosscoder.save_pretrained(tmp_path)
    before = crosscoder(x)
    with torch.no_grad():
        crosscoder.b_dec.add_(1)
    room = iter(range(files_that_fit))

    def sync(_descriptor):
        if next(room, None) is None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(OSError, match="No space left"):
        crosscoder.save_pretrained(tmp_path)
    assert torch.equal(Crosscoder.from_pretrained(tmp_path)(x), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_what_describes_no_crosscoder_is_refused():
    with pytest.raises(ValueError, match="must name at least one checkpoint"):
        CrosscoderConfig((), 0, D, F)
    with pytest.raises(ValueError, match="different names"):
        CrosscoderConfig(("a", "a"), 0, D, F)
    with pytest.raises(ValueError, match="must be positive"):
        CrosscoderConfig(("a", "b"), 0, D, 0)
