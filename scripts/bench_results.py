#!/usr/bin/env python
"""Put the models of a run beside Torch-Pruning's and beside lower resolutions: the numbers of the README's picture.

    python scripts/bench_results.py runs/prune/picture data.yaml --out docs/results.json

The run is one of ``yolo-prune prune ... epochs=N split=test``. Torch-Pruning cuts the same parent to the same share of
the MACs by its own pruners, and what it cut is retrained exactly as the run was: same trainer, epochs, rate and teacher.
Every AP is on the split of the run. All models are timed in turns in one process (ONNX Runtime, one thread), and
again on PyTorch. What was trained already lies in the run folder and is not trained again. ``plot_results.py`` draws.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch_pruning_models import GLOBAL, LOCAL, open_checkpoint, pruned_in_time

from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.ultralytics.evaluate import Evaluator
from yolo_prune.bench import compare
from yolo_prune.cost import count_macs
from yolo_prune.files import write_text
from yolo_prune.progress import log_to_console

NAMES = {
    "parent": "parent",
    "pruned": "pruned, no training",
    "best": "pruned, retrained",
    "best_int8": "the same in INT8",
}
SAID = ("imgsz", "keep_macs", "steps", "epochs", "split", "quantize", "threads", "workers", "recover_seconds")


def torch_pruning_cut(parent: Path, folder: Path, kind: str, local: bool, args: dict[str, Any]) -> Path:
    """Cut by one of Torch-Pruning's pruners, in a process of its own, and store what it cut."""
    cut = folder / "weights" / "pruned.pt"
    if not cut.is_file():
        cut.parent.mkdir(parents=True, exist_ok=True)
        opened = partial(open_checkpoint, parent, args["imgsz"])
        module = pruned_in_time(opened, args["keep_macs"], kind, LOCAL if local else GLOBAL)
        if isinstance(module, str):
            sys.exit(f"Torch-Pruning, {kind}: {module}")
        loaded = load_detector(parent)
        save_detector(
            cut, module, task=loaded.task, train_args=loaded.train_args, meta={"cut_by": "torch-pruning"}
        )
    return cut


def retrained(cut: Path, parent: Path, data: str, args: dict[str, Any]) -> Path:
    """Retrain a cut model as the run retrained its own."""
    best = cut.parent / "best.pt"
    if not best.is_file():
        same = {key: args[key] for key in ("epochs", "imgsz", "batch", "seed", "workers", "lr0", "distill")}
        find_host(cut).retrain(
            load_detector(cut).module,
            **same,
            data=data,
            device="cpu",
            run_dir=cut.parents[1],
            teacher=load_detector(parent).module if args["distill"] else None,
            extra=dict(args.get("train_args") or {}),
            resume=False,
            trust=False,
            meta={"role": "retrained"},
            task="detect",
        )
    return best


def points_of(
    run: Path, data: str, pruners: list[str], sides: list[int], args: dict[str, Any], *, train: bool
) -> dict[str, dict[str, Any]]:
    """Name -> file, size of its input and what it is of."""
    weights = run / "weights"
    files = {name: weights / f"{file}{'.onnx' if 'int8' in file else '.pt'}" for file, name in NAMES.items()}
    points = {
        name: {"file": file, "imgsz": args["imgsz"], "group": "parent" if name == "parent" else "yolo_prune"}
        for name, file in files.items()
        if file.is_file()
    }
    for side in sides:
        points[f"parent at {side} px"] = {"file": weights / "parent.pt", "imgsz": side, "group": "resolution"}
    for pruner in pruners:
        kind, _, ranking = pruner.partition("-")
        folder = run / f"torch_pruning_{pruner}"
        cut = torch_pruning_cut(weights / "parent.pt", folder, kind, ranking == "local", args)
        made = {"no training": cut}
        if train:
            made["retrained"] = retrained(cut, weights / "parent.pt", data, args)
        for when, file in made.items():
            name = f"Torch-Pruning {kind}Pruner ({ranking}), {when}"
            points[name] = {"file": file, "imgsz": args["imgsz"], "group": "torch_pruning"}
    return points


def report_of(run: Path) -> dict[str, Any]:
    """Return the report of the run; empty where it has none yet."""
    file = run / "report.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def measured(
    points: dict[str, dict[str, Any]], data: str, run: Path, args: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """One row a model: AP on the split, MACs, size and speed beside the parent."""
    import torch

    rows = report_of(run).get("rows", [])
    int8 = next((row for row in rows if row["precision"] == "int8"), None)
    score = {
        side: Evaluator(data, imgsz=side, split=args["split"])
        for side in {p["imgsz"] for p in points.values()}
    }
    table = {}
    for name, point in points.items():
        row = {"name": name, "group": point["group"], "imgsz": point["imgsz"]}
        if point["file"].suffix == ".onnx":
            table[name] = row | {key: int8[key] for key in ("ap", "ap50", "gmacs", "params_m", "size_mb")}
            continue
        module = load_detector(point["file"]).module
        result = score[point["imgsz"]](module)
        row |= {"ap": result.ap, "ap50": result.ap50}
        row["gmacs"] = count_macs(module, torch.zeros(1, 3, point["imgsz"], point["imgsz"])) / 1e9
        row["params_m"] = sum(p.numel() for p in module.parameters()) / 1e6
        table[name] = row | {"size_mb": point["file"].stat().st_size / 1e6}
        print(json.dumps(table[name]), flush=True)
    for runtime in ("onnxruntime", "torch"):
        timed = {n: p for n, p in points.items() if runtime != "torch" or p["file"].suffix == ".pt"}
        done = compare(
            {name: point["file"] for name, point in timed.items()},
            runtime=runtime,
            imgsz={name: point["imgsz"] for name, point in timed.items()},
            threads=1,
            seconds=seconds,
        )
        for name in timed:
            table[name][f"{runtime}_fps"] = done.timings[name].fps
            ratio = done.ratios.get(name, {}).get("latency")
            table[name][f"{runtime}_speed"] = (
                [1.0, 1.0, 1.0] if ratio is None else [ratio.value, ratio.low, ratio.high]
            )
    return list(table.values())


def main() -> None:
    """Train what is missing, measure all and write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("data", help="data.yaml")
    parser.add_argument("--pruners", default="GroupNorm-local,BNScale-global")
    parser.add_argument("--sides", default="288,256,224,192", help="lower resolutions of the parent")
    parser.add_argument("--skip-training", action="store_true", help="Torch-Pruning's models as they are cut")
    parser.add_argument("--seconds", type=float, default=10.0, help="time of each model's timing")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    log_to_console()
    args = yaml.safe_load((options.run / "args.yaml").read_text("utf-8"))
    pruners, sides = options.pruners.split(","), [int(side) for side in options.sides.split(",")]
    points = points_of(options.run, options.data, pruners, sides, args, train=not options.skip_training)
    rows = measured(points, options.data, options.run, args, options.seconds)
    kept = {key: value for key, value in report_of(options.run).items() if key in ("versions", "conditions")}
    given = {key: value for key, value in args.items() if key in SAID}
    commands = [
        f"yolo-prune prune {' '.join(f'{key}={value}' for key, value in given.items())}",
        f"python scripts/bench_results.py {' '.join(sys.argv[1:])}",
    ]
    write_text(options.out, json.dumps({"commands": commands, "rows": rows, **kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
