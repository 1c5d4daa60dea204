"""Measure how long planning takes from n to x, and what it needs in memory, beside Torch-Pruning.

    python scripts/bench_planning.py                       # yolo11 n to x, yolov8 n to x, rtdetr-l and -x
    python scripts/bench_planning.py yolo11n yolo11x --no-torch-pruning

Every row is a process of its own: trace and groups, counting the costs at 640 px, choosing half of the MACs, cutting
and proving. Seconds are of the process's CPU time on up to two threads, so that other work on the machine counts for
nothing; importing and building the model do not count. Memory is the peak of the process over its size before
planning, in units of the model's own weights. Torch-Pruning builds its dependency graph and cuts by group norm to the
same ratio, with the usual rewrite of `chunk` into two convolutions, within a time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MODELS = (
    [f"yolo11{s}" for s in "nsmlx"]
    + [f"yolov8{s}" for s in "nsmlx"]
    + ["yolo12n", "yolo12x", "yolo26n", "yolo26x"]
)
MODELS += ["rtdetr-l", "rtdetr-x"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--limit", type=float, default=120, help="seconds that Torch-Pruning gets per model")
    parser.add_argument("--no-torch-pruning", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(
            json.dumps(
                {"ours": plan_with_us, "torch_pruning": plan_with_torch_pruning}[options.child](
                    options.models[0]
                )
            )
        )
        return
    print(
        "| model | M parameters | channels | trace + groups, s | MACs, s | choose, s | cut + proof, s | all, s | memory | Torch-Pruning |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in options.models:
        ours = child("ours", name, 300)
        other = (
            {"verdict": "not run"}
            if options.no_torch_pruning
            else child("torch_pruning", name, options.limit)
        )
        rows.append(ours)
        print(row_of(name, ours, other), flush=True)
    print(growth([row for row in rows if "channels" in row]))


def child(kind: str, name: str, limit: float) -> dict:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"verdict": f"no answer in {limit:.0f} s"}
    if done.returncode:
        return {"verdict": " ".join(done.stderr.strip().splitlines()[-1:])[:90]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def build(name: str):
    import torch
    from ultralytics import RTDETR, YOLO
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("ERROR")
    torch.set_num_threads(2)
    model = (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml").model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))  # PyTorch's own first-use costs are nobody's
    return model


def plan_with_us(name: str) -> dict:
    from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
    from yolo_prune.cost import cost_model, with_macs_at
    from yolo_prune.cutting import cut_proven_
    from yolo_prune.graph import trace_groups
    from yolo_prune.plan import Budget, choose_channels
    from yolo_prune.score import find_criterion

    model = build(name)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    anatomy = anatomy_of(model, 640)
    before, times = peak(), [time.process_time()]
    graph = trace_groups(
        model, anatomy.trace_input, rules=anatomy.rules, select_outputs=anatomy.select_outputs
    )
    times.append(time.process_time())
    cost = cost_model(with_macs_at(graph, model, anatomy.cost_input), model)
    times.append(time.process_time())
    keep = choose_channels(cost, find_criterion("bn_scale")(model, cost.graph, 0), Budget("keep_macs", 0.5))
    times.append(time.process_time())
    _, proof = cut_proven_(model, cost, keep, anatomy)
    times.append(time.process_time())
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return {
        "channels": graph.channel_count - 1,
        "params": weights / 4e6,
        "steps": steps,
        "memory": (peak() - before) / weights,
        "peak_gib": peak() / 2**30,
        "allowed_gib": 3 * weights / 2**30 + 1,
        "exact": proof.exact,
    }


def peak() -> float:
    """Return the largest resident size that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plan_with_torch_pruning(name: str) -> dict:
    import torch
    import torch_pruning as tp
    from torch import nn
    from ultralytics.nn.modules import C2f, Detect

    model = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    class TwoConvolutions(nn.Module):
        """C2f whose first convolution is two, as every published recipe has it."""

        def __init__(self, block):
            super().__init__()
            c = block.c
            self.left, self.right = (type(block.cv1)(block.cv1.conv.in_channels, c, 1) for _ in range(2))
            for half, rows in ((self.left, slice(0, c)), (self.right, slice(c, 2 * c))):
                half.conv.weight.data = block.cv1.conv.weight.data[rows].clone()
            self.m, self.cv2 = block.m, block.cv2
            self.f, self.i, self.type = block.f, block.i, block.type

        def forward(self, x):
            y = [self.left(x), self.right(x)]
            y.extend(m(y[-1]) for m in self.m)
            return self.cv2(torch.cat(y, 1))

    for index, block in enumerate(model.model):
        if isinstance(block, C2f):
            model.model[index] = TwoConvolutions(block)
    started = time.process_time()
    x = torch.zeros(1, 3, 64, 64)
    pruner = tp.pruner.GroupNormPruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.3,
        round_to=8,
        ignored_layers=[m for m in model.modules() if isinstance(m, Detect)],
    )
    pruner.step()
    seconds = time.process_time() - started
    with torch.no_grad():
        model(x)
    return {"verdict": f"{seconds:.1f} s"}


def row_of(name: str, ours: dict, other: dict) -> str:
    if "steps" not in ours:
        return f"| {name} | {ours['verdict']} |"
    steps = " | ".join(f"{step:.2f}" for step in ours["steps"])
    memory = f"+{ours['memory']:.1f}x, peak {ours['peak_gib']:.2f} of {ours['allowed_gib']:.2f} GiB"
    exact = "" if ours["exact"] else " NOT EXACT"
    return (
        f"| {name} | {ours['params']:.1f} | {ours['channels']} | {steps} | {sum(ours['steps']):.2f}{exact} | {memory} | "
        f"{other['verdict']} |"
    )


def growth(rows: list[dict]) -> str:
    """Return the slope of the seconds against the channels in a double logarithmic plot: 1 is linear."""
    import numpy as np

    if len(rows) < 3:
        return ""
    channels, seconds = np.log([r["channels"] for r in rows]), np.log([sum(r["steps"]) for r in rows])
    return (
        f"\nseconds grow with the number of channels to the power {np.polyfit(channels, seconds, 1)[0]:.2f}."
    )


if __name__ == "__main__":
    main()
