#!/usr/bin/env python
"""AP without any training at the same MACs: this package's stages beside Torch-Pruning's own pruners.

    python scripts/compare_torch_pruning.py best.pt data.yaml --imgsz 320 --keep 0.9,0.8,0.7,0.6,0.5

Every number is COCO AP on the validation split, measured in this run. Torch-Pruning prunes the same checkpoint
iteratively until its own MACs counter (thop-like) reaches the budget, with the head's output layers ignored as its
examples do; both its BNScalePruner and GroupNormPruner run with local and with global ranking, and the better AP
counts. Models that it cannot trace within the time limit are reported as such.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import torch

from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.data import calibration_batches
from yolo_prune.adapters.ultralytics.evaluate import Evaluator
from yolo_prune.adapters.ultralytics.saliency import detection_projection
from yolo_prune.cost import count_macs
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.files import write_text
from yolo_prune.recover import Recipe, cut_in_steps, recalibrate_bn_

TIME_LIMIT_S = 300


def ours(model: Path, data: Path, imgsz: int, keeps: list[float], options: argparse.Namespace) -> list[dict]:
    """AP after the bare cut, after BatchNorm re-estimation and after folding, one row a budget."""
    parent = load_detector(model).module
    batches = calibration_batches(data, imgsz, images=options.images, seed=options.seed)
    score = Evaluator(data, imgsz=imgsz)
    anatomy = anatomy_of(parent, imgsz)
    rows = []
    for keep in keeps:
        begin = time.perf_counter()
        steps = max(1, round(options.steps * (1 - keep) / 0.5))
        recipe = Recipe(steps=steps, widths=Widths(options.round_to, 8), seed=options.seed)
        task = detection_projection(imgsz, options.seed)
        result = cut_in_steps(
            Traced.of(parent, anatomy), Budget("keep_macs", keep), recipe, Calibration(batches, task)
        )
        seconds = time.perf_counter() - begin
        bare = cut_(copy.deepcopy(parent), result.plan, rules=anatomy.rules)
        row = {"keep_macs": keep, "kept": result.plan.kept_macs, "cut": score(bare).ap, "seconds": seconds}
        row["bn"] = score(recalibrate_bn_(copy.deepcopy(bare), Calibration(batches))).ap
        row["fold"] = score(result.module).ap
        row["fold_bn"] = score(recalibrate_bn_(copy.deepcopy(result.module), Calibration(batches))).ap
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def torch_pruning_model(
    module: torch.nn.Module, imgsz: int, keep: float, kind: str, local: bool
) -> torch.nn.Module:
    """Prune a copy with Torch-Pruning until its MACs reach the budget."""
    import torch_pruning as tp

    module = copy.deepcopy(module).eval()
    image = torch.zeros(1, 3, imgsz, imgsz)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    head = module.model[-1]
    ignored = [
        layer for layer in head.modules() if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None
    ]
    ignored += [head.dfl]
    importance = {
        "BNScale": tp.importance.BNScaleImportance(),
        "GroupNorm": tp.importance.GroupMagnitudeImportance(p=2),
    }[kind]
    pruner_class = {"BNScale": tp.pruner.BNScalePruner, "GroupNorm": tp.pruner.GroupNormPruner}[kind]
    steps = 60
    pruner = pruner_class(
        module,
        image,
        importance=importance,
        iterative_steps=steps,
        pruning_ratio=0.9,
        global_pruning=not local,
        ignored_layers=ignored,
        round_to=None,
    )
    full = count_macs(module, image)
    for _ in range(steps):
        pruner.step()
        if count_macs(module, image) <= keep * full:
            break
    return module


def _worker(out: str, model: str, imgsz: int, keep: float, kind: str, local: bool) -> None:
    try:
        torch.save(torch_pruning_model(load_detector(model).module, imgsz, keep, kind, local), out)
    except Exception as error:  # noqa: BLE001  whatever it raises is the result that is reported
        torch.save(f"{type(error).__name__}: {str(error)[:80]}", out)


def in_time(folder: str, *arguments: object) -> torch.nn.Module | str:
    """Run Torch-Pruning in a process of its own; return the model, or in words why there is none."""
    out = Path(folder, "pruned.pt")
    out.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=_worker, args=(str(out), *arguments))
    process.start()
    process.join(TIME_LIMIT_S)
    if process.is_alive():
        process.kill()
        return f"no answer in {TIME_LIMIT_S} s"
    if not out.is_file():
        return f"its process ended with code {process.exitcode}"
    return torch.load(out, weights_only=False)  # our own file of a moment ago


def theirs(model: Path, data: Path, imgsz: int, keeps: list[float]) -> list[dict]:
    """Torch-Pruning's AP at each budget; a failure or a time-out is a row too."""
    score = Evaluator(data, imgsz=imgsz)
    image = torch.zeros(1, 3, imgsz, imgsz)
    full = count_macs(load_detector(model).module, image)
    rows, broken = [], set()
    folder = tempfile.mkdtemp(prefix="compare-")
    for keep in keeps:
        for kind in ("BNScale", "GroupNorm"):
            for local in (True, False):
                name = f"{kind} {'local' if local else 'global'}"
                if kind in broken:
                    continue
                value = in_time(folder, str(model), imgsz, keep, kind, local)
                row: dict = {"keep_macs": keep, "pruner": name}
                if isinstance(value, str):
                    row["error"] = value
                    broken.add(kind)
                else:
                    row |= {"kept": count_macs(value, image) / full, "ap": score(value).ap}
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def table(ours_rows: list[dict], their_rows: list[dict], parent_ap: float) -> str:
    """The Markdown table of the README."""
    lines = [
        f"Parent: COCO AP {parent_ap:.3f}.",
        "",
        "| keep_macs | Torch-Pruning, best of BNScale and GroupNorm, local and global | bare cut | + BatchNorm | fold "
        "(what you get) | of the parent |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in ours_rows:
        same = [other for other in their_rows if other["keep_macs"] == row["keep_macs"]]
        best = max((other["ap"] for other in same if "ap" in other), default=None)
        other = (
            f"{best:.3f}"
            if best is not None
            else "; ".join({o.get("error", "-") for o in same}) or "not measured"
        )
        lines.append(
            f"| {row['keep_macs']} | {other} | {row['cut']:.3f} | {row['bn']:.3f} | **{row['fold']:.3f}** | "
            f"{100 * row['fold'] / parent_ap:.1f} % |"
        )
    return "\n".join(lines)


def stored_parent(model: Path, folder: Path) -> Path:
    """Write the parent as ``prune`` does: its file's half-precision weights are what every row begins with."""
    loaded = load_detector(model)
    return save_detector(
        folder / "parent.pt", loaded.module, task=loaded.task, train_args=loaded.train_args, meta={}
    )


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--keep", default="0.9,0.8,0.7,0.6,0.5")
    parser.add_argument("--steps", type=int, default=12, help="steps for half of the MACs, fewer for less")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-theirs", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keeps = [float(value) for value in options.keep.split(",")]
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        parent = stored_parent(options.model, Path(folder))
        parent_ap = Evaluator(options.data, imgsz=options.imgsz)(load_detector(parent).module).ap
        their_rows = [] if options.skip_theirs else theirs(parent, options.data, options.imgsz, keeps)
        our_rows = ours(parent, options.data, options.imgsz, keeps, options)
    if options.json:
        write_text(
            options.json, json.dumps({"parent": parent_ap, "ours": our_rows, "theirs": their_rows}, indent=1)
        )
    print("\n" + table(our_rows, their_rows, parent_ap))


if __name__ == "__main__":
    sys.exit(main())
