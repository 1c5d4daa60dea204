"""What a cut of a large model costs on this machine's CPU: seconds and memory of choosing, folding, cutting and the proof.

    python scripts/bench_large_cut.py yolo11x.yaml data.yaml [imgsz=640] [threads=2] [keep_macs=0.5]

Weights of a yaml are random; steps and images are those that ``prune`` takes on a CPU when nobody says how many.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.closeness import calibration_of
from yolo_prune.adapters.ultralytics.data import calibration_batches
from yolo_prune.criteria.heads import measured_at_heads
from yolo_prune.criteria.memory import sized_for_memory
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.options.fields import parse_overrides
from yolo_prune.progress import log_to_console
from yolo_prune.recover.effort import effort_for
from yolo_prune.recover.one_step import Recipe
from yolo_prune.recover.steps import cut_in_steps


def main(model: str, data: str, given: dict[str, Any]) -> None:
    imgsz, keep = int(given.get("imgsz", 640)), float(given.get("keep_macs", 0.5))
    torch.set_num_threads(int(given.get("threads", 2)))
    log_to_console()
    loaded = load_detector(model)
    module = loaded.module
    traced = Traced.of(module, anatomy_of(module, imgsz))
    graph, cost = traced.cost.graph, traced.cost
    effort = effort_for(cost.macs(cost.everything), "cpu")
    batches = calibration_batches(data, imgsz, images=effort.images, seed=0, batch=16)
    images = calibration_of(module, batches, imgsz=imgsz, classes=len(loaded.names), seed=0)
    images = sized_for_memory(measured_at_heads(module, graph, images), module, graph)
    recipe = Recipe(steps=effort.steps, widths=Widths().for_budget(keep))
    wall, cpu = time.monotonic(), time.process_time()
    cut = cut_in_steps(traced, Budget("keep_macs", keep), recipe, images)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{model}: {effort.steps} steps, {effort.images} images of {imgsz} px: {wall:.0f} s ({cpu:.0f} s of CPU), "
        f"{peak:.1f} GiB at most; {cut.plan.kept_macs:.3f} of the MACs, exact: {cut.plan.equivalence['exact']}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:3], parse_overrides(sys.argv[3:]))
