"""AP at equal speed: is a plan that saves milliseconds better than one that saves MACs?

    python scripts/bench_equal_latency.py model=best.pt data=data.yaml runtime=onnxruntime state=equal.json [imgsz=320]

From the same parent two ways of cuts lead down, one chosen by accuracy lost per MAC, one by accuracy lost per millisecond as
the layers' times on that runtime have it (fold, no training, no imitation). All models on both ways are timed against the
parent in turns on one thread, and evaluated on val and test. Printed are the models, and AP at equal speed, straight
between the neighbours on each way. A way that is in the state is not cut again, nor is a runtime measured again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import numpy as np
import torch

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.ultralytics.evaluate import evaluate_detector
from yolo_prune.bench import compare
from yolo_prune.criteria.heads import measured_at_heads
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.widths import Lineage
from yolo_prune.files import write_text
from yolo_prune.options import PruneConfig
from yolo_prune.options.fields import parse_overrides
from yolo_prune.progress import log_to_console
from yolo_prune.recover import Recipe
from yolo_prune.recover.aim import Aim, waypoints
from yolo_prune.recover.one_step import Advance, Cut
from yolo_prune.runs.latency import Place, ask_runtime, deployment_of

DEFAULTS: dict[str, Any] = {
    "imgsz": 320,
    "runtime": "onnxruntime",
    "keep_macs": 0.3,
    "target_speedup": 2.6,
    "steps": 12,
    "from_step": 4,
    "images": 96,
    "seconds": 4.0,
}
SPEEDS = (1.5, 1.75, 2.0, 2.25)


def main() -> None:
    given: dict[str, Any] = {**DEFAULTS, **parse_overrides(sys.argv[1:])}
    log_to_console()
    torch.set_num_threads(1)
    path = Path(given["state"])
    state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    key = f"{Path(given['model']).stem} {given['imgsz']} {given['runtime']}"
    if key not in state:
        state[key] = measured(given)
        write_text(path, json.dumps(state, indent=1))
    for name, found in state.items():
        print(table(name, found))


def measured(given: dict[str, Any]) -> dict[str, Any]:
    """Cut, time and evaluate both ways."""
    imgsz, runtime = int(given["imgsz"]), str(given["runtime"])
    host, loaded = find_host(given["model"]), load_detector(given["model"])
    parent = Traced.of(loaded.module, host.anatomy(loaded.module, imgsz))
    task = host.open_task(loaded, given["data"], split="val", batch=16, device="cpu", workers=0)
    config = PruneConfig(
        model=str(given["model"]),
        data=str(given["data"]),
        target_speedup=float(given["target_speedup"]),
        runtime=runtime,
        threads=1,
    )
    place = Place.of(config, 1, trust=False)
    how = deployment_of(host, loaded, imgsz, task.image_files(16), trust=False)
    timed = ask_runtime(place, how, parent, target=True, auto=False)[1]
    batches = task.calibration_batches(imgsz, int(given["images"]), 0)
    calibration = host.calibration(loaded.module, batches, imgsz=imgsz, classes=len(loaded.names), seed=0)
    calibration = measured_at_heads(loaded.module, parent.cost.graph, calibration)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        files = {"parent": Path(given["model"])}
        for way, budget in {
            "macs": Budget("keep_macs", float(given["keep_macs"])),
            "latency": Budget("target_speedup", float(given["target_speedup"])),
        }.items():
            begin = timed if way == "latency" else parent
            for number, cut in enumerate(cuts(begin, budget, calibration, given), 1):
                if number < int(given["from_step"]) or cut.plan is None:
                    continue
                name = f"{way}-{number}"
                files[name] = host.save(
                    Path(folder, f"{name}.pt"),
                    cut.traced.module,
                    task=loaded.task,
                    train_args={**loaded.train_args, "imgsz": imgsz, "task": loaded.task},
                    meta={"imgsz": imgsz},
                    plan=cut.plan,
                )
                scores = {
                    split: evaluate_detector(
                        cut.traced.module, given["data"], imgsz=imgsz, split=split
                    ).coco.ap
                    for split in ("val", "test")
                }
                macs = cut.traced.amount(Budget("keep_macs", 1.0)) / parent.amount(Budget("keep_macs", 1.0))
                found[name] = {"kept_macs": macs, **scores}
                print(f"{name}: {found[name]}", flush=True)
        rounds = compare(
            files,
            runtime=runtime,
            imgsz=imgsz,
            threads=1,
            seconds=float(given["seconds"]),
            images=task.image_files(16),
        )
    for name, ratios in rounds.ratios.items():
        if name in found:
            ratio = ratios["cpu"]
            found[name]["speedup"] = [ratio.value, ratio.low, ratio.high]
    return found


def cuts(parent: Traced, budget: Budget, calibration: Any, given: dict[str, Any]) -> list[Cut]:
    """Return the models on the way to a budget, in even steps."""
    whole, limit = parent.amount(budget), budget.limit(parent.cost)
    recipe = Recipe(steps=int(given["steps"]), allocation="cost")
    recipe = replace(recipe, widths=recipe.widths.for_budget(limit / whole))
    lineage = Lineage.of(parent.cost.graph)
    aim = Aim[Cut](whole, limit, None, lambda cut: cut.traced.amount(budget))
    advance = Advance(budget, recipe, calibration, lineage, aim, torch.device("cpu"))
    way = [Cut(parent, None)]
    for number, share in enumerate(waypoints(limit / whole, recipe.steps), 1):
        way.append(advance(way[-1], share * whole, f"{budget.gradient} {number}/{recipe.steps}"))
    return way[1:]


def table(name: str, found: dict[str, Any]) -> str:
    """Return the models of both ways, and AP at equal speed."""
    lines = [
        f"\n{name}\n",
        "| model | MACs | speed-up (CPU time) | val AP | test AP |",
        "|---|---|---|---|---|",
    ]
    ways: dict[str, list[tuple[float, float, float]]] = {"macs": [], "latency": []}
    for model, row in found.items():
        speed, low, high = row["speedup"]
        ways[model.split("-")[0]].append((speed, row["val"], row["test"]))
        lines.append(
            f"| {model} | {row['kept_macs']:.3f} | {speed:.2f}x [{low:.2f}, {high:.2f}] | {row['val']:.3f} | {row['test']:.3f} |"
        )
    lines += ["", "| at speed | by MACs: val, test | by time: val, test |", "|---|---|---|"]
    for speed in SPEEDS:
        cells = [at(sorted(points), speed) for points in ways.values()]
        lines.append(f"| {speed:.2f}x | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at(points: list[tuple[float, float, float]], speed: float) -> str:
    """Return AP on val and test between the neighbours of a speed; nothing beyond them."""
    speeds = [point[0] for point in points]
    if not speeds or not speeds[0] <= speed <= speeds[-1]:
        return "not reached"
    return ", ".join(
        f"{np.interp(speed, speeds, [point[place] for point in points]):.3f}" for place in (1, 2)
    )


if __name__ == "__main__":
    main()
