#!/usr/bin/env python
"""How long planning takes: trace, groups, plan and cut, beside Torch-Pruning's dependency graph.

    python scripts/bench_planning.py yolov5n yolo11n yolo11x --limit 60

Each architecture gets random weights and a process of its own, so that the peak memory is its own. Seconds are wall
time on this machine, imports left out; the proof (zeroed == cut) is timed apart because no other tool runs one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

IMGSZ, KEEP = 640, 0.5


def ours(architecture: str) -> dict[str, Any]:
    """Trace, group, plan, cut and prove one architecture; return seconds a stage and the peak memory."""
    import copy

    import numpy as np

    from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
    from yolo_prune.checkpoint import load_detector
    from yolo_prune.plan import Budget, choose_channels, make_plan
    from yolo_prune.surgery import cut_, prove_equivalence

    module = load_detector(f"{architecture}.yaml").module
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks = [time.perf_counter()]
    anatomy = anatomy_of(module, IMGSZ)
    cost = anatomy.cost_of(module)
    marks.append(time.perf_counter())
    keep = choose_channels(
        cost, np.random.default_rng(0).random(cost.graph.channel_count), Budget("keep_macs", KEEP)
    )
    marks.append(time.perf_counter())
    parent = copy.deepcopy(module)
    marks.append(time.perf_counter())
    cut_(module, make_plan(cost, keep), rules=anatomy.rules)
    marks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    proof = prove_equivalence(
        parent, module, cost.graph, keep, anatomy.trace_input, select_outputs=anatomy.select_outputs
    )
    marks.append(time.perf_counter())
    return {
        "trace": marks[1] - marks[0],
        "plan": marks[2] - marks[1],
        "cut": marks[4] - marks[3],
        "proof": marks[5] - marks[4],
        "exact": proof.exact,
        "channels": cost.graph.channel_count - 1,
        "model_mb": size / 1e6,
        "peak_extra_mb": (peak - before) * 1024 / 1e6,
    }


def theirs(architecture: str) -> dict[str, Any]:
    """Build Torch-Pruning's pruner and prune once; return the seconds."""
    import torch
    import torch_pruning

    from yolo_prune.checkpoint import load_detector

    module = load_detector(f"{architecture}.yaml").module
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    head = module.model[-1]
    ignored = [
        layer for layer in head.modules() if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None
    ]
    begin = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        module,
        torch.zeros(1, 3, IMGSZ, IMGSZ),
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.3,
        ignored_layers=ignored,
    )
    pruner.step()
    return {"seconds": time.perf_counter() - begin}


def _answer(pipe: Any, function: Callable[[str], dict[str, Any]], architecture: str) -> None:
    try:
        pipe.send(function(architecture))
    except Exception as error:  # noqa: BLE001  whatever it raises is the result that is reported
        pipe.send({"error": f"{type(error).__name__}: {str(error)[:60]}"})


def in_time(function: Callable[[str], dict[str, Any]], architecture: str, limit: float) -> dict[str, Any]:
    """Run a function in a process of its own for at most ``limit`` seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, architecture))
    process.start()
    found = receiver.recv() if receiver.poll(limit) else {"error": f"no answer in {limit:.0f} s"}
    process.kill()
    process.join()
    return dict(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", default=["yolov5n", "yolov8n", "yolo11n", "yolo11x"])
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds for Torch-Pruning; 0 leaves it out"
    )
    parser.add_argument("--json")
    options = parser.parse_args()
    print(
        "| model | channels | trace + groups s | plan s | cut s | sum s | proof s | peak extra MB | Torch-Pruning s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    rows = {}
    for name in options.architectures:
        row = in_time(ours, name, 600.0)
        other = in_time(theirs, name, options.limit) if options.limit else {"error": "left out"}
        rows[name] = {"ours": row, "theirs": other}
        if "error" in row:
            print(f"| {name} | {row['error']} |", flush=True)
            continue
        spent = row["trace"] + row["plan"] + row["cut"]
        peer = other.get("error") or f"{other['seconds']:.1f}"
        memory = f"{row['peak_extra_mb']:.0f} (model {row['model_mb']:.0f})"
        print(
            f"| {name} | {row['channels']:,} | {row['trace']:.2f} | {row['plan']:.2f} | {row['cut']:.2f} | "
            f"**{spent:.2f}** | {row['proof']:.2f} | {memory} | {peer} |",
            flush=True,
        )
    if options.json:
        from pathlib import Path

        from yolo_prune.files import write_text

        write_text(Path(options.json), json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
