"""What the presets need of the hub: configurations and tokenizers of every model, without weights; texts; tasks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import tiny
from crosstime import demo
from crosstime.pipeline.preset import PRESETS
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


LANGUAGES = ("en", "zh", "fr", "es", "pt", "ar", "vi", "hi", "id", "bn")

AGREEMENT = "sen\twrong_sen\tphenomenon\n" + "".join(
    f"The {noun} is here.\tThe {noun} are here.\t{phenomenon}\n"
    for phenomenon in ("SV-#", "SV-G", "SV-P")
    for noun in ("man", "house", "book")
)
"""MultiBLiMP of any language: what its words mean does not matter here."""


def serve(folder: Path) -> HubServer:
    """A hub that holds all that the presets name, but weights of no checkpoint."""
    tokenizer = shutil.copytree(
        demo.SUITE / "step64", folder / "tokenizer", ignore=lambda _, names: [n for n in names if "tokenizer" not in n]
    )
    models = [_repository(folder, repo, tokenizer) for repo in CONFIGS]
    models += [HubServer(repo, {"main": tokenizer}) for repo in TOKENIZERS.values()]
    return HubServer(models[0].repo, models[0].revisions, others=(*models[1:], *datasets(folder / "datasets")))


def datasets(folder: Path) -> list[HubServer]:
    """The texts and tasks of the presets."""
    documents = [" ".join(random.Random(n).choices(tiny.SENTENCES, k=40)) for n in range(120)]
    text = "".join(json.dumps({"text": document, "meta": {}}) + "\n" for document in documents)
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.jsonl"}]} for name in LANGUAGES
    ]
    card = f"---\n{json.dumps({'configs': configs})}\n---\n"  # (JSON is YAML)
    files = {
        "monology/pile-uncopyrighted": {"train/00.jsonl": text},
        "emozilla/dolma-v1_7-30B": {"data/train-0.jsonl": text},
        "allenai/c4": {"README.md": card, **{f"{name}/train.jsonl": text for name in LANGUAGES}},
        "jumelet/multiblimp": {f"{name}/data.tsv": AGREEMENT for name in ("eng", "fra", "spa", "por", "arb", "hin")},
    }
    return [_dataset(folder, repo, contents) for repo, contents in files.items()]


def _dataset(folder: Path, repo: str, contents: dict[str, str]) -> HubServer:
    for name, content in contents.items():
        path = folder / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return HubServer(repo, {"main": folder / repo}, kind="datasets")


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
