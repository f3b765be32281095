"""Tokens per second of a whole optimisation step, against its matrix products alone and against other trainers.

The step is everything between a batch and the next: loss, gradients, clipping, Adam, and what is logged. Other people's
crosscoders join in where a checkout is given, and with one checkpoint their autoencoders where these are installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import peers
import sae_peers
import torch
from measure import report, seconds

from crosstime.crosscoder.crosscoder import Crosscoder, CrosscoderConfig
from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, Sparsity, TopK
from crosstime.training.config import TrainConfig
from crosstime.training.state import TrainState

STEPS = 10_000

RULES: dict[str, Callable[[int], Sparsity]] = {
    "l1": lambda _: L1(),
    "topk": TopK,
    "batchtopk": lambda k: BatchTopK(k, k_start=k),
}
"""The rules by name, of k."""


def train_state(
    checkpoints: int, width: int, features: int, batch: int, rule: Sparsity, device: torch.device
) -> TrainState:
    """Ours, at its start values, with the schedules behind it."""
    names = tuple(f"step{i}" for i in range(checkpoints))
    crosscoder = Crosscoder(CrosscoderConfig(names, 0, width, features, sparsity=rule))
    crosscoder.initialise(
        torch.zeros(checkpoints, width),
        torch.ones(checkpoints),
        decoder_norm=rule.initial_decoder_norm,
        tied=True,
        generator=torch.Generator().manual_seed(0),
    )
    made = TrainState(crosscoder.to(device), TrainConfig(tokens=batch * STEPS, batch_size=batch, buffer_tokens=batch))
    made.step = STEPS // 2  # so that BatchTopK measures its threshold, as it does in all but the first steps
    return made


def products(x: torch.Tensor, features: int) -> Callable[[], object]:
    """The five matrix products of a step, in bfloat16, into memory that is there: new memory has a price of its own."""
    a, codes = x.bfloat16(), torch.rand(len(x), features, device=x.device).bfloat16()
    encoder = torch.randn(a.shape[1], features, device=x.device).bfloat16()
    decoder = torch.randn(features, a.shape[1], device=x.device).bfloat16()
    pairs = [(a, encoder), (codes, decoder), (a, decoder.T), (a.T, codes), (codes.T, a)]
    results = [torch.empty(len(one), other.shape[1], dtype=one.dtype, device=x.device) for one, other in pairs]

    def run() -> None:
        for (one, other), result in zip(pairs, results, strict=True):
            torch.mm(one, other, out=result)

    return run


def _peers(sizes: argparse.Namespace, rule: str, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The steps of all peers that are there and comparable, by name."""
    found = peers.steps(sizes.reference, sizes.dictionary_learning, rule, x, sizes.features, sizes.k)
    if sizes.checkpoints == 1:
        found |= sae_peers.steps(rule, x[:, 0], sizes.features, sizes.k)
    return found


def main() -> None:
    """Measure each rule at one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rule", nargs="+", choices=RULES, default=["l1", "batchtopk"])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--reference", type=Path, help="checkout of the code of arXiv 2509.05291")
    parser.add_argument("--dictionary-learning", type=Path, help="checkout of science-of-finetuning's trainers")
    parser.add_argument("--alone", action="store_true", help="without peers, where memory does not hold them too")
    sizes = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(sizes.batch, sizes.checkpoints, sizes.width, device=sizes.device)
    cases = {"roofline": products(x.flatten(1), sizes.features)}
    for name in sizes.rule:
        rule = RULES[name](sizes.k)
        ours = train_state(sizes.checkpoints, sizes.width, sizes.features, sizes.batch, rule, sizes.device)
        cases[f"{name} ours"] = lambda ours=ours: ours.train_step(x.flatten(1))
        if not sizes.alone:
            cases |= {f"{name} {peer}": step for peer, step in _peers(sizes, name, x).items()}
    taken = seconds(cases, repeats=sizes.repeats, device=sizes.device)
    for name in sizes.rule:
        of_rule = {key.removeprefix(f"{name} "): value for key, value in taken.items() if key.startswith(f"{name} ")}
        case = {"benchmark": "train_step", "rule": name}
        case |= {key: getattr(sizes, key) for key in ("checkpoints", "width", "features", "batch")}
        if name != "l1":
            case["k"] = sizes.k
        also = {"times_l1": round(taken["l1 ours"] / of_rule["ours"], 3)} if name != "l1" and "l1 ours" in taken else {}
        report(case, "tokens", sizes.batch, {**of_rule, "roofline": taken["roofline"]}, sizes.device, **also)


if __name__ == "__main__":
    main()
