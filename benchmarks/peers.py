"""One optimisation step of other people's trainers, out of a checkout that the user supplies.

What such a checkout imports and a step does not use is replaced by stand-ins, so it need not be installed; `einops`,
which they compute with, must be.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import stand_ins
import torch
from torch import Tensor


def steps(
    reference: Path | None, dictionary: Path | None, rule: str, x: Tensor, features: int, k: int
) -> dict[str, Callable[[], object]]:
    """The steps on rows x [B, M, D] that are comparable under a rule of ours, by the peer's name.

    Args:
        reference: checkout of the code of arXiv 2509.05291.
        dictionary: checkout of science-of-finetuning/dictionary_learning.
        rule: "l1" or "batchtopk"; they have no other.
        x: the rows.
        features: F.
        k: of BatchTopK.
    """
    if rule == "topk":
        return {}
    made = {}
    for name, folder, make in (("paper", reference, paper), ("dictionary_learning", dictionary, dictionary_learning)):
        step = make(folder, x, features, None if rule == "l1" else k) if folder else None
        if step is not None:
            made[name] = step
    return made


def paper(folder: Path, x: Tensor, features: int, k: int | None) -> Callable[[], object] | None:
    """The trainer's `train_step` of the code of arXiv 2509.05291, on rows x [B, M, D]; L1 without k, else BatchTopK."""
    trainer = _import(folder, "trainer")
    if trainer is None:
        return None
    cfg = {
        "dict_size": features,
        "d_in": x.shape[2],
        "n_models": x.shape[1],
        "enc_dtype": "fp32",
        "seed": 0,
        "dec_init_norm": 0.08 if k is None else 1.0,
        "device": str(x.device),
        "l1_coeff": 2.0,
        "l1_warmup_pct": 0.0,
        "batch_topk_init": k,
        "batch_topk_final": k,
        "topk_annealing_steps": 0,
        "threshold_start_step": 0,
        "threshold_beta": 0.999,
        "dead_feature_threshold": 10_000_000,
        "auxk_alpha": 1 / 32,
    }
    kind = trainer.TrainerNNSight if k is None else trainer.BatchTopKTrainerNNSight
    # Its constructor starts a logger and a buffer on a GPU, and reads models; the step needs only these.
    one = kind.__new__(kind)
    one.cfg = cfg
    one.crosscoder = trainer.CrossCoder(cfg) if k is None else trainer.BatchTopKCrossCoder(cfg)
    one.optimizer = torch.optim.Adam(one.crosscoder.parameters(), lr=5e-5, betas=(0.9, 0.999))
    one.scheduler = torch.optim.lr_scheduler.LambdaLR(one.optimizer, lambda _: 1.0)
    one.train_buffer = SimpleNamespace(next=lambda: x)
    one.total_steps, one.step_counter, one.top_k_aux = 100_000, 1, x.shape[2] // 2
    one.num_tokens_since_fired_train = torch.zeros(features, dtype=torch.long, device=x.device)
    one.running_deads_train = -1
    return one.train_step


def dictionary_learning(folder: Path, x: Tensor, features: int, k: int | None) -> Callable[[], object] | None:
    """The crosscoder trainer's `update` of science-of-finetuning/dictionary_learning, on rows x [B, M, D]."""
    module = _import(folder, "dictionary_learning.trainers.crosscoder")
    if module is None:
        return None
    shape = {"num_layers": x.shape[1], "activation_dim": x.shape[2], "dict_size": features}
    common = {**shape, "layer": 0, "lm_name": "none", "device": str(x.device), "seed": 0}
    if k is None:
        one = module.CrossCoderTrainer(**common)
    else:
        one = module.BatchTopKCrossCoderTrainer(steps=100_000, k=k, **common)
    rows = x.clone()  # it may overwrite them
    return lambda: one.update(1, rows)


def _import(folder: Path, name: str) -> ModuleType | None:
    """A module of a checkout; None where something that it does need is not installed."""
    stand_ins.install()
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{folder} is left out: {error}", file=sys.stderr)
        return None
    finally:
        sys.path.pop(0)
