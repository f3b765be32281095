"""The commands of docs/formats.md do what it says."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crosstime import cli
from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.crosscoder.formats.importing import FORMATS

DOC = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.replace("\\\n", " "))
    for block in re.findall(r"```bash\n(.*?)```", DOC, flags=re.DOTALL)
    for line in re.findall(r"(?:.*\\\n)*.+", block)
]
D, F = 4, 6


def _randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _paper(folder, name, m):
    weights = {"W_enc": _randn(m, D, F), "b_enc": _randn(F), "W_dec": _randn(F, m, D), "b_dec": _randn(m, D)}
    folder.mkdir(parents=True)
    torch.save(weights, folder / name)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Everything that the document imports, under the names that it has there. (A folder stands in for the hub.)"""
    monkeypatch.chdir(tmp_path)
    paper = tmp_path / "checkpoints" / "version_446"
    _paper(paper, "20.pt", 3)
    revisions = {"model_name": "EleutherAI/pythia-1b", "revision_list": "step512-step2000-main"}
    config = {"hook_point": "blocks.9.hook_resid_pre", "estimated_act_norm_list": [2.0, 1.2, 0.8], **revisions}
    (paper / "20_cfg.json").write_text(json.dumps(config))
    gemma = tmp_path / "ckkissane" / "crosscoder-gemma-2-2b-model-diff:blocks.14.hook_resid_pre"
    _paper(gemma, "cc_weights.pt", 2)
    (gemma / "cfg.json").write_text(json.dumps({"hook_point": "blocks.14.hook_resid_pre"}))
    state = {
        "encoder.weight": _randn(2, D, F),
        "encoder.bias": _randn(F),
        "decoder.weight": _randn(2, F, D),
        "decoder.bias": _randn(2, D),
    }
    hub = tmp_path / "Butanium" / "gemma-2-2b-crosscoder-l13-mu4.1e-02-lr1e-04"
    hub.mkdir(parents=True)
    save_file(state, hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps({"activation_dim": D, "dict_size": F, "num_layers": 2}))
    (tmp_path / "trained").mkdir()
    torch.save(state, tmp_path / "trained" / "ae.pt")
    heads = tmp_path / "results" / "L6R-32heads"
    heads.mkdir(parents=True)
    tensors = {"W_E": _randn(2, D, F), "b_E": _randn(2, F), "W_D": _randn(2, F, D), "b_D": _randn(2, D)}
    save_file(tensors, heads / "sae_weights.safetensors")
    config = {"sae_type": "crosscoder", "hook_points": ["step1", "step2"], "act_fn": "relu"}
    (heads / "config.json").write_text(json.dumps({**config, "norm_activation": "inference"}))
    return tmp_path


def test_the_commands(theirs):
    for program, *arguments in COMMANDS:
        assert program == "crosstime"
        assert cli.main(arguments) == 0, arguments
    imported = {path.name: Crosscoder.from_pretrained(path) for path in (theirs / "crosscoders").iterdir()}
    assert sorted(imported) == ["evolution", "gemma", "l13", "old", "pythia"]
    assert imported["gemma"].scale.tolist() == pytest.approx([0.2758961493232058, 0.24422852496546169])
    assert {name: made.config.layer for name, made in imported.items()} == {
        "evolution": 6, "gemma": 13, "l13": 13, "old": 13, "pythia": 8,
    }  # fmt: skip
    assert sorted(path.name for path in (theirs / "columns").iterdir()) == ["main", "step2000", "step512"]


def test_every_format_has_a_command_in_it():
    assert len(COMMANDS) == len(FORMATS.names) + 1  # one imports a lone file, one exports; ours needs none
