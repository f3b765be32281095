"""The model families of the presets as the hub knows them, without weights: configurations and small tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from crosstime import demo
from crosstime.run.preset import PRESETS
from hub_server import HubServer

PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_parallel_residual": True,
    "vocab_size": 50304,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "EleutherAI/pythia-1b": PYTHIA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 8, "num_hidden_layers": 16},
    "EleutherAI/pythia-160m": PYTHIA
    | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    "allenai/OLMo-1B-0724-hf": {
        "architectures": ["OlmoForCausalLM"],
        "model_type": "olmo",
        "clip_qkv": None,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "pad_token_id": 1,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 50304,
    },
    "bigscience/bloom-1b1-intermediate": {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "layer_norm_epsilon": 1e-05,
        "n_embed": 1536,
        "n_layer": 24,
        "num_attention_heads": 16,
        "seq_length": 2048,
        "vocab_size": 250880,
    },
}
"""What config.json holds, by repository."""

TOKENIZERS = {"bigscience/bloom-1b1-intermediate": "bigscience/bloom-1b1"}
"""Repositories whose tokenizer is in another one."""


def serve(folder: Path) -> HubServer:
    """A hub that holds every checkpoint of the presets, and weights of none of them."""
    tokenizer = shutil.copytree(
        demo.SUITE / "step64", folder / "tokenizer", ignore=lambda _, names: [n for n in names if "tokenizer" not in n]
    )
    hubs = [_repository(folder, repo, tokenizer) for repo in CONFIGS]
    hubs += [HubServer(repo, {"main": tokenizer}) for repo in TOKENIZERS.values()]
    return HubServer(hubs[0].repo, hubs[0].revisions, others=tuple(hubs[1:]))


def _repository(folder: Path, repo: str, tokenizer: Path) -> HubServer:
    """All its revisions are alike: they would differ in their weights."""
    files = folder / repo.replace("/", "--")
    if repo in TOKENIZERS:
        files.mkdir()
    else:
        shutil.copytree(tokenizer, files)
    (files / "config.json").write_text(json.dumps(CONFIGS[repo]))
    revisions = {name for preset in PRESETS.values() if preset.repo == repo for name in preset.checkpoints}
    return HubServer(repo, dict.fromkeys(sorted(revisions), files))
