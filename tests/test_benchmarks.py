"""The benchmarks run, at sizes at which nothing is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODELS = "--width 32 --features 64 --blocks 3 --layer 1 --heads 2 --vocabulary 99 --context 17 --batch 64"
RUN = f"{MODELS} --steps 2 --buffer-tokens 128 --model-batch-blocks 4"
EFFECTS = "--width 32 --features 64 --blocks 3 --layer 1 --heads 2 --vocabulary 99 --active 8 --prompts 9 --repeats 1"
STEP = "--checkpoints 1 --width 16 --features 64 --batch 32 --k 4 --repeats 1"


@pytest.mark.parametrize(
    ("command", "names", "keys"),
    [
        (f"train_step.py {STEP} --rule l1 topk batchtopk", ["l1", "topk", "batchtopk"], {"roofline"}),
        (f"train_run.py {RUN} --project-tokens 1000000", ["train_run"], {"projected_hours", "unexplained_share"}),
        (f"several.py {RUN} --repeats 1", ["several"], {"cost_over_parts", "times_peer"}),
        (f"effects.py {EFFECTS}", ["released", "paper", "gradient"], {"unit"}),
        ("exact_effects.py --pairs 12 --features 64 --active 8 --top 1 --repeats 1", ["exact_effects"], {"times_peer"}),
        (f"collect.py {MODELS.partition(' --batch')[0]} --repeats 1", ["collect"], {"share_of_roofline"}),
    ],
    ids=lambda value: value.split(".")[0] if isinstance(value, str) else "",
)
def test_a_benchmark_prints_a_line_a_case(command, names, keys):
    script, *flags = command.split()
    done = subprocess.run([sys.executable, BENCHMARKS / script, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    cases = [line["case"] for line in lines]
    assert [case.get("rule", case.get("method", case["benchmark"])) for case in cases] == names
    for line in lines:
        assert keys | {"ours", "unit", "device", "versions"} <= line.keys()
        assert line["ours"] > 0
