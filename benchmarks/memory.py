"""Peak memory of training steps, against the bytes that a step must hold.

Must: the weights, their gradients and Adam's two moments in float32; one batch; and codes and their gradient in the
precision of the products. Printed in GiB; `share` is what must be over what was.
"""

from __future__ import annotations

import argparse
import json

import torch
from measure import GIB, machine, peak
from train_step import RULES, train_state


def main() -> None:
    """Measure one rule at one size; a process measures once, because its peak never falls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rule", choices=RULES, default="l1")
    parser.add_argument("--device", type=torch.device, default="cpu")
    sizes = parser.parse_args()
    rule = RULES[sizes.rule](100)
    before = peak(sizes.device)
    columns = sizes.checkpoints * sizes.width
    ours = train_state(sizes.checkpoints, sizes.width, sizes.features, sizes.batch, rule, sizes.device)
    x = torch.randn(sizes.batch, columns, device=sizes.device)
    for _ in range(3):
        ours.train_step(x)
    taken = peak(sizes.device) - before
    weights = sum(parameter.numel() for parameter in ours.crosscoder.parameters())
    must = 16 * weights + 4 * x.numel() + 2 * 2 * sizes.batch * sizes.features
    case = {"benchmark": "memory", "rule": sizes.rule}
    case |= {key: getattr(sizes, key) for key in ("checkpoints", "width", "features", "batch")}
    line = {"case": case, "unit": "GiB", "ours": round(taken / GIB, 3), "must": round(must / GIB, 3)}
    print(json.dumps({**line, "share": round(must / taken, 3), **machine(sizes.device)}), flush=True)


if __name__ == "__main__":
    main()
