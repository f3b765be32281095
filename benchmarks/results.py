"""Runs all benchmarks and writes what they print into RESULTS.md: a section a device, replaced when it is run again."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PAPER = "--width 2048 --features 16384"
WIDE = "--checkpoints 8 --features 65536"
PYTHIA_1B = "--width 2048 --blocks 16 --layer 8 --context 1024 --model-batch-blocks 32"
PAPERS_RUN = f"{PYTHIA_1B} --features 16384 --buffer-tokens 524288"
SIZES = {
    "cpu": [
        "train_step.py --repeats 5",
        "train_step.py --width 128 --features 4096 --batch 1024 --repeats 9",
        "train_step.py --checkpoints 1 --rule l1 topk batchtopk --repeats 5",
        f"train_step.py {PAPER} --repeats 2 --alone",
        f"train_step.py {WIDE} --batch 1024 --rule l1 --repeats 3 --alone",
        "collect.py --repeats 9",
        "train_run.py",
        "several.py",
        "effects.py",
        "effects.py --width 128 --heads 4 --vocabulary 4096 --prompts 512 --peer-prompts 32",
        "exact_effects.py",
        "memory.py --rule l1",
        "memory.py --rule batchtopk",
    ],
    "cuda": [
        f"train_step.py {PAPER} --k 200 --repeats 20",
        f"train_step.py {PAPER} --checkpoints 1 --rule l1 topk batchtopk --repeats 20",
        f"train_step.py {WIDE} --repeats 20 --alone",
        "train_step.py --repeats 20",
        f"collect.py {PYTHIA_1B}",
        f"train_run.py {PAPERS_RUN} --steps 200 --project-tokens 400000000",
        f"several.py {PAPERS_RUN} --steps 16 --repeats 9",
        "effects.py --prompts 1024",
        "exact_effects.py",
        f"memory.py {PAPER} --rule l1",
        f"memory.py {PAPER} --rule batchtopk",
    ],
}
"""What suits each kind of device, minutes in all: the standing size, the demo's, a single checkpoint's, the paper's, a
wide one. Where peers would not fit beside ours, they are left out."""
PEERS = {"train_step.py": ("--reference", "--dictionary-learning"), "effects.py": ("--reference",)}
"""The flags for the code of others, by benchmark."""


def run(command: str, device: str, folders: dict[str, str]) -> list[dict[str, Any]]:
    """The lines that one benchmark prints; `folders` are those of its peers, by their flag."""
    script, *flags = command.split()
    more = ["--device", device]
    for flag in PEERS.get(script, ()):
        more += [flag, folders[flag]] if flag in folders else []
    done = subprocess.run([sys.executable, HERE / script, *flags, *more], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def section(commands: list[str], lines: list[list[dict[str, Any]]]) -> str:
    """The text of one device."""
    first = lines[0][0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    load = f"; load {os.getloadavg()[1]:.1f}, the mean of the last 5 minutes" if hasattr(os, "getloadavg") else ""
    parts = [f"## {first['device']}", f"{datetime.now(UTC):%Y-%m-%d}; {versions}{load}."]
    for command, printed in zip(commands, lines, strict=True):
        parts.append(f"`{command}`")
        rows = [_row(line) for line in printed]
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in table))
    return "\n\n".join(parts) + "\n"


def _row(line: dict[str, Any]) -> dict[str, str]:
    """One line, without what stands above its table, as the cells of one."""
    plain = {key: value for key, value in line.items() if key not in ("case", "device", "versions", "unit", "peers")}
    ratios = plain.pop("times_peer", {})
    unit = line["unit"]
    case = line["case"]
    cells = {"": case.get("rule", case.get("method", case["benchmark"]))}
    for key, value in plain.items():
        cells[f"{key} ({unit})" if key in ("ours", "roofline", "must") else key.replace("_", " ")] = f"{value:.4g}"
    return cells | {f"times {peer}": f"{ratio:.3g}" for peer, ratio in ratios.items()}


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", help="as for train_step.py")
    parser.add_argument("--dictionary-learning", help="as for train_step.py")
    flags = parser.parse_args()
    given = {"--reference": flags.reference, "--dictionary-learning": flags.dictionary_learning}
    folders = {flag: folder for flag, folder in given.items() if folder}
    commands = SIZES[flags.device.split(":")[0]]
    text = section(commands, [run(command, flags.device, folders) for command in commands])
    title = text.splitlines()[0]
    before, *sections = RESULTS.read_text(encoding="utf-8").split("\n## ")
    others = [f"## {other.rstrip()}\n" for other in sections if f"## {other}".splitlines()[0] != title]
    RESULTS.write_text("\n".join([before.rstrip() + "\n", *others, text]), encoding="utf-8")


if __name__ == "__main__":
    main()
