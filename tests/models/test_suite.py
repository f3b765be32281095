"""Suites from folders: what fits together is loaded, and what does not is refused with a reason."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

import tiny
from crosstime.models import weights
from crosstime.models.suite import Suite, SuiteConfig

TOKENS = torch.tensor([[0, 5, 7, 9, 11]])


@pytest.fixture
def folder(tiny_suite, tmp_path):
    """A copy of the tiny suite, to break."""
    return shutil.copytree(tiny_suite, tmp_path / "suite")


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def test_checkpoints_of_a_folder_in_natural_order(tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    assert suite.names == ["step0", "step10", "step100"]
    assert suite.tokens == [None, None, None]
    assert (len(suite), suite.width, suite.n_layers) == (3, 32, 4)
    assert suite.vocab_size == len(suite.tokenizer)
    assert [c.source for c in suite] == [str(tiny_suite / name) for name in suite.names]
    assert len({c.sha256 for c in suite}) == 3


def test_loaded_model_is_the_folders(tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    split = suite.load("step10", layer=2)
    model = AutoModelForCausalLM.from_pretrained(tiny_suite / "step10")
    assert (split.name, split.layer, split.dtype) == ("step10", 2, torch.float32)
    torch.testing.assert_close(split.logits(TOKENS), model(TOKENS).logits.detach())
    assert torch.equal(split.logits(TOKENS), suite.load(1, layer=2).logits(TOKENS))
    assert suite.load(0, layer=2, dtype=torch.bfloat16).lower(TOKENS).dtype == torch.bfloat16


def test_loading_writes_nothing_to_stdout(tiny_suite, capsys):
    Suite.from_folder(tiny_suite).load(0, layer=0)
    assert capsys.readouterr().out == ""


def test_names_choose_and_tokens_order(tiny_suite):
    suite = Suite.from_folder(tiny_suite, ["step100", "step0"], tokens={"step0": 3, "step100": 7})
    assert suite.names == ["step0", "step100"]
    assert suite.tokens == [3, 7]
    assert Suite.from_folder(tiny_suite, ["step100", "step0"], tokens=[1, 2]).names == ["step100", "step0"]


def test_order_is_as_given_where_tokens_are_unknown(tiny_suite):
    assert Suite.from_folder(tiny_suite, ["step100", "step0"]).names == ["step100", "step0"]


def test_tokens_from_the_log_beside_the_folders(folder):
    log = [{"step": 10, "tokens": 80, "loss": 1.0}, {"step": 100, "tokens": 800, "loss": 0.5}]
    (folder / "log.json").write_text(json.dumps(log))
    assert Suite.from_folder(folder).tokens == [0, 80, 800]
    assert Suite.from_folder(folder, tokens={"step10": 90}).tokens == [0, 90, 800]
    (folder / "log.json").write_text('{"another": "log"}')
    assert Suite.from_folder(folder).tokens == [None, None, None]


def test_folders_with_names(tiny_suite):
    suite = Suite.from_folders([tiny_suite / "step0", str(tiny_suite / "step100")], names=["early", "late"])
    assert suite.names == ["early", "late"]
    assert suite.load("late", layer=0).name == "late"


def test_a_configuration_describes_the_same_suites(tiny_suite):
    root, name = tiny_suite.parent, tiny_suite.name
    whole = SuiteConfig(folder=name, tokens=(1, 2, 3))
    assert Suite.from_config(whole, root).checkpoints == Suite.from_folder(tiny_suite, tokens=[1, 2, 3]).checkpoints
    some = SuiteConfig(folders=(f"{name}/step0", f"{name}/step10"), names=("early", "late"), tokenizer=f"{name}/step0")
    suite = Suite.from_config(some, root)
    assert suite.names == ["early", "late"]
    assert suite.tokenizer_folder == tiny_suite / "step0"
    assert Suite.from_config(SuiteConfig(folder=str(tiny_suite), names=("step10",))).names == ["step10"]


def test_select(tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    part = suite.select(["step100", "step0"])
    assert part.names == ["step0", "step100"]
    assert torch.equal(part.load(1, layer=0).logits(TOKENS), suite.load("step100", layer=0).logits(TOKENS))
    with pytest.raises(ValueError, match="the suite has no checkpoint 'stp10'; the nearest is 'step10'"):
        suite.select(["stp10"])
    with pytest.raises(ValueError, match="no checkpoints are selected"):
        suite.select([])


def test_another_architecture_without_changes(tmp_path):
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    suite = Suite.from_folder(tiny.write_suite(tmp_path, steps=(1, 2), config=config))
    assert (suite.width, suite.n_layers, suite.vocab_size) == (32, 3, 400)
    assert suite.load(0, layer=1).lower(TOKENS).shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["step0", "step11"]}, "has no checkpoint 'step11'; the nearest is 'step10'"),
        ({"names": []}, "a suite needs at least one checkpoint"),
        ({"names": ["step0", "step0"]}, "two checkpoints are called 'step0'"),
        ({"tokens": [1, 2]}, "tokens are given for 2 checkpoints, but there are 3"),
        ({"tokens": {"step1": 5}}, "tokens are given for 'step1', which is not a checkpoint; the nearest is 'step10'"),
        ({"tokens": {"step0": -5}}, "tokens of 'step0' are negative"),
    ],
)
def test_bad_arguments(tiny_suite, arguments, message):
    with pytest.raises(ValueError, match=message):
        Suite.from_folder(tiny_suite, **arguments)


def test_bad_folders(tiny_suite, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        Suite.from_folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has none"):
        Suite.from_folder(tmp_path)
    with pytest.raises(ValueError, match="is itself a checkpoint: use from_folders"):
        Suite.from_folder(tiny_suite / "step0")
    with pytest.raises(ValueError, match=r"is not a checkpoint: it holds no config\.json"):
        Suite.from_folders([tmp_path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 64}, "width 32 and 64"),
        ({"layers": 5}, "layers 4 and 5"),
        ({"vocab_size": 500}, "vocabulary .* and 500"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_weights_are_read(folder, change, message):
    size = {"vocab_size": Suite.from_folder(folder).vocab_size} | change
    tiny.write_suite(folder, steps=(200,), config=tiny.neox_config(**size))
    (folder / "step0" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"step0 and step200 do not fit together: {message}"):
        Suite.from_folder(folder)


def edit_tokenizer(folder, edit):
    path = folder / "step100" / "tokenizer.json"
    definition = json.loads(path.read_text())
    edit(definition)
    path.write_text(json.dumps(definition))


def swap_merges(definition):
    merges = definition["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def swap_tokens(definition):
    vocabulary = definition["model"]["vocab"]
    a, b = list(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def drop_merge(definition):
    definition["model"]["merges"].pop()


def lower_case(definition):
    definition["normalizer"] = {"type": "Lowercase"}


def add_token(definition):
    token = definition["added_tokens"][0] | {"id": 1000, "content": "<new>"}
    definition["added_tokens"].append(token)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap_merges, "merge 0 is"),
        (drop_merge, "they have .* merges"),
        (swap_tokens, "token .* has id"),
        (lower_case, "their definitions differ in normalizer"),
        (add_token, "the vocabularies have"),
    ],
)
def test_tokenizers_that_differ(folder, edit, message):
    edit_tokenizer(folder, edit)
    with pytest.raises(ValueError, match=f"the tokenizers of step0 and step100 differ: {message}"):
        Suite.from_folder(folder)


def test_special_tokens_that_differ(folder):
    path = folder / "step100" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "!"}))
    with pytest.raises(ValueError, match=r"the tokenizers of step0 and step100 differ: bos_token is '<\|endoftext\|>'"):
        Suite.from_folder(folder)


def test_no_tokenizer(folder):
    for file in folder.glob("step10/tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="step10 has no tokenizer"):
        Suite.from_folder(folder)
    (folder / "step10" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="step10 has no usable tokenizer"):
        Suite.from_folder(folder)


def test_tokenizer_larger_than_the_model(tmp_path):
    tiny.write_suite(tmp_path, steps=(1,), config=tiny.neox_config(vocab_size=100))
    with pytest.raises(ValueError, match=r"the tokenizer has .* tokens, but the models only 100"):
        Suite.from_folder(tmp_path)


def test_duplicate_weights_are_refused_unless_allowed(folder):
    """Found although the second file is saved anew, with other metadata."""
    state = load_file(folder / "step10" / "model.safetensors")
    save_file(state, folder / "step100" / "model.safetensors", metadata={"format": "pt", "note": "another"})
    with pytest.raises(ValueError, match="step10 and step100 have the same weights"):
        Suite.from_folder(folder)
    assert Suite.from_folder(folder, allow_duplicates=True).names == ["step0", "step10", "step100"]


def test_weights_that_change_after_the_suite_was_made(folder):
    suite = Suite.from_folder(folder)
    flip_byte(folder / "step10" / "model.safetensors")
    suite.load("step0", layer=0)
    with pytest.raises(ValueError, match=r"the weights of step10 in .* have changed since the suite was made"):
        suite.load("step10", layer=0)


def test_weights_that_change_behind_their_date(folder):
    path = folder / "step10" / "model.safetensors"
    suite, then = Suite.from_folder(folder), path.stat()
    flip_byte(path)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    with pytest.raises(ValueError, match="the weights of step10"):
        suite.load("step10", layer=0)


def test_a_process_reads_weights_for_their_hash_once(folder, monkeypatch):
    read = []

    def spy(files, hash_tensors=weights._hash_tensors):
        read.append(files[0].parent.name)
        return hash_tensors(files)

    monkeypatch.setattr(weights, "_hash_tensors", spy)
    suite = Suite.from_folder(folder)
    suite.load("step10", layer=0)
    assert Suite.from_folder(folder).checkpoints == suite.checkpoints
    assert read == ["step0", "step10", "step100"]


@pytest.mark.parametrize("kept", [0, 4, 5000, -1])
def test_truncated_weights(folder, kept):
    path = folder / "step10" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"step10/model\.safetensors is damaged or truncated"):
        Suite.from_folder(folder)


def test_no_weights(folder):
    (folder / "step10" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="step10 holds no weights"):
        Suite.from_folder(folder)


def test_missing_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "step10" / "model.safetensors").rename(folder / "step10" / "model-00001-of-00002.safetensors")
    (folder / "step10" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"weights that are missing: model-00002-of-00002\.safetensors"):
        Suite.from_folder(folder)
    (folder / "step10" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="is not an index of weights"):
        Suite.from_folder(folder)


class _Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_malicious_pickle_is_refused_and_not_run(folder, tmp_path, save):
    marker = tmp_path / "it_ran"
    (folder / "step10" / "model.safetensors").unlink()
    save({"weight": torch.ones(2), "more": _Malicious(marker)}, folder / "step10" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"step10/pytorch_model\.bin was refused: .* could run code"):
        Suite.from_folder(folder)
    assert not marker.exists()


def test_truncated_pickle(folder):
    path = folder / "step10" / "pytorch_model.bin"
    torch.save(load_file(folder / "step10" / "model.safetensors"), path)
    (folder / "step10" / "model.safetensors").unlink()
    Suite.from_folder(folder)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"step10/pytorch_model\.bin (is|was refused: it is) damaged"):
        Suite.from_folder(folder)


@pytest.mark.parametrize("safe", [True, False])
def test_weights_that_do_not_fill_the_model(folder, safe):
    path = folder / "step10" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "layers.2.mlp" in name)
    del state[name]
    path.unlink()
    if safe:
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"step10 do not fit its config\.json: missing .*layers\.2\.mlp"):
        Suite.from_folder(folder).load("step10", layer=0)


def test_weights_of_another_shape(folder):
    path = folder / "step10" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "layers.2.mlp" in name)
    save_file(state | {name: state[name][:-1].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights in .*step10 (cannot be loaded|do not fit)"):
        Suite.from_folder(folder).load("step10", layer=0)


def test_malformed_config(folder):
    (folder / "step10" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"step10/config\.json cannot be used"):
        Suite.from_folder(folder)
    (folder / "step10" / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ValueError, match=r"step10/config\.json cannot be used"):
        Suite.from_folder(folder)


@pytest.mark.parametrize("layer", [-1, 4])
def test_layer_out_of_range(tiny_suite, layer):
    with pytest.raises(ValueError, match=f"layer {layer} is out of range: the checkpoints have blocks 0 to 3"):
        Suite.from_folder(tiny_suite).load(0, layer=layer)


def test_checkpoint_index_out_of_range(tiny_suite):
    with pytest.raises(ValueError, match="checkpoint 3"):
        Suite.from_folder(tiny_suite).load(3, layer=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device exists here")
def test_missing_device(tiny_suite):
    suite = Suite.from_folder(tiny_suite)
    with pytest.raises(ValueError, match="device cuda is not available"):
        suite.load(0, layer=0, device="cuda")
    with pytest.raises(ValueError, match="no device called 'gpu'"):
        suite.load(0, layer=0, device="gpu")
