#!/usr/bin/env python
"""How long planning takes and how it grows: trace, groups, plan and cut, beside Torch-Pruning's dependency graph.

    python scripts/bench_planning.py yolo11{n,s,m,l,x} yolov8{n,s,m,l,x} rtdetr-{l,x} --plot docs/planning.png

Each architecture gets random weights and a process of its own, so that the peak memory is its own (Linux counts it).
Seconds are wall time on this machine, imports left out; the proof (zeroed == cut) is timed apart because no other
tool runs one. Torch-Pruning (optional: ``pip install torch-pruning``) builds its graph and prunes once, on the same
small image; it gets the rewrite that its users make by hand, every block that chunks its input (C2f and kin) with two
convolutions instead, and a model that does not run afterwards is said to be broken. Growth is the slope of a line
through the logarithms of channels and seconds of one family: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IMGSZ, KEEP = 640, 0.5
SIZES = 3  # fewer sizes of a family are drawn, but no line is fitted


def peak_mb(*, reset: bool = False) -> float:
    """Return the largest resident memory of this process since the last reset, 1e6 bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6


def ours(module: Any) -> dict[str, Any]:
    """Trace, group, plan, cut and prove one model; return seconds a stage and the peak memory."""
    import copy

    from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
    from yolo_prune.cut.budget import Budget
    from yolo_prune.cut.plan import choose_channels, make_plan
    from yolo_prune.cut.proof import prove_equivalence
    from yolo_prune.cut.surgery import cut_

    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    before = peak_mb(reset=True)
    marks = [time.perf_counter()]
    anatomy = anatomy_of(module, IMGSZ)
    cost = anatomy.cost_of(module)
    marks.append(time.perf_counter())
    keep = choose_channels(
        cost, np.random.default_rng(0).random(cost.graph.channel_count), Budget("keep_macs", KEEP)
    )
    plan = make_plan(cost, keep)
    marks.append(time.perf_counter())
    peak = peak_mb()
    parent = copy.deepcopy(module)
    marks.append(time.perf_counter())
    cut_(module, plan, rules=anatomy.rules)
    marks.append(time.perf_counter())
    proof = prove_equivalence(
        parent, module, cost.graph, keep, anatomy.trace_input, select_outputs=anatomy.select_outputs
    )
    marks.append(time.perf_counter())
    return {
        "trace": marks[1] - marks[0],
        "plan": marks[2] - marks[1],
        "cut": marks[4] - marks[3],
        "seconds": marks[2] - marks[0] + marks[4] - marks[3],
        "proof": marks[5] - marks[4],
        "exact": proof.exact,
        "channels": cost.graph.channel_count - 1,
        "model_mb": size / 1e6,
        "peak_extra_mb": max(peak - before, 1.0),
    }


def without_chunks_(module: Any) -> None:
    """Replace every block that chunks its input by one with two convolutions; their weights are random anyway."""
    import torch
    from ultralytics.nn.modules import C2PSA, C2f, Conv

    class TwoConvs(torch.nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            width = block.cv1.conv.in_channels
            self.first, self.second = Conv(width, block.c), Conv(width, block.c)
            self.m, self.cv2 = block.m, block.cv2
            self.f, self.i = getattr(block, "f", -1), getattr(block, "i", -1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = [self.first(x), self.second(x)]
            if isinstance(self.m, torch.nn.Sequential):  # C2PSA: the last part alone is read
                parts[-1] = self.m(parts[-1])
            else:
                for part in self.m:
                    parts.append(part(parts[-1]))
            return self.cv2(torch.cat(parts, 1))

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (C2f, C2PSA)):
                setattr(parent, name, TwoConvs(child).eval())


def theirs(module: Any) -> dict[str, Any]:
    """Build Torch-Pruning's pruner and prune once; return the seconds and the peak memory."""
    import torch
    import torch_pruning

    from yolo_prune.adapters.ultralytics.anatomy import anatomy_of

    image = torch.rand_like(anatomy_of(module, IMGSZ).trace_input)
    without_chunks_(module)
    module.requires_grad_(True)
    ignored = [
        layer
        for layer in module.model[-1].modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None
    ]
    before, begin = peak_mb(reset=True), time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        module,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.3,
        ignored_layers=ignored,
    )
    pruner.step()
    found = {"seconds": time.perf_counter() - begin, "peak_extra_mb": peak_mb() - before}
    module(image)
    return found


def _answer(pipe: Any, function: Callable[[Any], dict[str, Any]], architecture: str) -> None:
    try:
        from yolo_prune.adapters.checkpoint import load_detector

        module = load_detector(f"{architecture}.yaml").module
        pipe.send({})
        pipe.send(function(module))
    except Exception as error:  # noqa: BLE001  whatever it raises is the result that is reported
        pipe.send({"error": f"{type(error).__name__}: {str(error)[:60]}"})


def in_time(function: Callable[[Any], dict[str, Any]], architecture: str, limit: float) -> dict[str, Any]:
    """Run a function on a model in a process of its own, for at most ``limit`` seconds once the model is built."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_answer, args=(sender, function, architecture)
    )
    process.start()
    sender.close()  # the other end is the process's alone: when it dies, receiving ends
    try:
        found: dict[str, Any] = receiver.recv()
        if "error" not in found:
            found = receiver.recv() if receiver.poll(limit) else {"error": f"no answer in {limit:.0f} s"}
    except EOFError:
        found = {"error": "its process died"}
    process.kill()
    process.join()
    return found


def families(rows: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the measured rows of each family, by channels: yolo11n and yolo11x are two sizes of yolo11."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        if "error" not in row["ours"]:
            found.setdefault(re.sub(r"(?<=\d)[a-z]\b|-[lx]$", "", name), []).append(row)
    return {name: sorted(sizes, key=lambda row: row["ours"]["channels"]) for name, sizes in found.items()}


def growth(sizes: list[dict[str, Any]], value: str) -> float:
    """Return the exponent of a least-squares fit of ``value`` by a power of the number of channels."""
    points = [(row["ours"]["channels"], row["ours"][value]) for row in sizes]
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def draw(rows: dict[str, Any], path: Path, limit: float) -> None:
    """Draw seconds and memory by channels, with a line of slope 1; crosses are Torch-Pruning's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from yolo_prune.files import replacing

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = zip(figure.subplots(1, 2), ("seconds", "peak_extra_mb"), strict=True)
    for axes, value in panels:
        for index, (name, sizes) in enumerate(families(rows).items()):
            color = f"C{index}"
            channels = np.array([row["ours"]["channels"] for row in sizes])
            values = np.array([row["ours"][value] for row in sizes])
            label = f"{name}: channels^{growth(sizes, value):.2f}" if len(sizes) >= SIZES else name
            axes.plot(channels, values, "o-", color=color, label=label)
            axes.plot(channels, values[0] * channels / channels[0], ":", color=color, linewidth=1)
            for row in sizes:
                other, x = row["theirs"], row["ours"]["channels"]
                if value in other:
                    axes.plot(x, other[value], "x", color=color)
                elif value == "seconds" and other["error"].startswith("no answer"):
                    axes.plot(x, limit, "^", color=color, fillstyle="none")
        axes.set(xscale="log", yscale="log", xlabel="channels")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    axes_s, axes_mb = figure.axes
    axes_s.set_ylabel("trace + groups + plan + cut, s")
    axes_mb.set_ylabel("peak memory beside the model, MB")
    figure.supxlabel(
        f"dotted: linear    x: Torch-Pruning    triangle: Torch-Pruning had no answer in {limit:.0f} s",
        fontsize=8,
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def line(name: str, row: dict[str, Any]) -> str:
    """Return one row of the table."""
    own, other = row["ours"], row["theirs"]
    if "error" in own:
        return f"| {name} | {own['error']} |"
    peer = other.get("error") or f"{other['seconds']:.1f} ({other['peak_extra_mb']:.0f} MB)"
    return (
        f"| {name} | {own['channels']:,} | {own['trace']:.2f} | {own['plan']:.2f} | {own['cut']:.2f} | "
        f"**{own['seconds']:.2f}** | {own['proof']:.2f} | {own['peak_extra_mb']:.0f} (model {own['model_mb']:.0f}) | "
        f"{peer} |"
    )


def main() -> None:
    """Print the table and the growth of every family; draw them if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", default=[f"yolo11{size}" for size in "nsmlx"])
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds for Torch-Pruning; 0 leaves it out"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG of seconds and memory by channels")
    options = parser.parse_args()
    print(
        "| model | channels | trace + groups s | plan s | cut s | sum s | proof s | peak extra MB | Torch-Pruning s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    rows = {}
    for name in options.architectures:
        other = in_time(theirs, name, options.limit) if options.limit else {"error": "left out"}
        rows[name] = {"ours": in_time(ours, name, 600.0), "theirs": other}
        print(line(name, rows[name]), flush=True)
    for name, sizes in families(rows).items():
        if len(sizes) < SIZES:
            continue
        exponents = ", ".join(
            f"{value} {growth(sizes, value):.2f}" for value in ("trace", "plan", "seconds", "peak_extra_mb")
        )
        print(f"{name}, exponent of the number of channels over {len(sizes)} sizes: {exponents}")
    if options.json:
        from yolo_prune.files import write_text

        write_text(options.json, json.dumps(rows, indent=1))
    if options.plot:
        draw(rows, options.plot, options.limit)


if __name__ == "__main__":
    sys.exit(main())
