"""Count what one ``prune`` does: how often the model is traced, counted, copied, measured, scored, exported and written.

    python scripts/count_work.py model=best.pt data=data.yaml keep_macs=0.5 [any option of prune]

prints a table of the counts with the seconds that went there (of calls inside each other both), the seconds of each
stage, and a hash of what the plan keeps. A change that is only meant to be faster leaves the hash and the rows as they
are; run it in both checkouts, in turns, and compare.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import pkgutil
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import torch
from torch import nn

import yolo_prune
from yolo_prune.options import PruneConfig
from yolo_prune.runs.configure import make_config

WATCHED = {
    "yolo_prune.graph.groups.trace_groups": "traces",
    "yolo_prune.cost.macs.count_macs_per_operation": "MAC counts",
    "yolo_prune.graph.copies.copy_with": "copies with other tensors",
    "yolo_prune.criteria.moments.collect_moments": "passes for moments",
    "yolo_prune.recover.fold.recalibrate_bn_": "passes for BatchNorm",
    "yolo_prune.cut.proof.prove_equivalence": "proofs",
    "yolo_prune.adapters.ultralytics.validator.validate": "validation passes",
    "yolo_prune.accuracy.coco.coco_ap_by_image": "COCO scorings",
    "yolo_prune.adapters.ultralytics.export.export_onnx": "ONNX exports",
    "yolo_prune.adapters.ultralytics.load.read_checkpoint": "checkpoints read",
}
"""Function -> what a call of it is."""

counts: Counter[str] = Counter()
seconds: Counter[str] = Counter()


def watched(function: Any, label: str) -> Any:
    """Return a function that is counted and timed."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        counts[label] += 1
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - began

    return counted


def watch() -> None:
    """Put watched functions in the place of the package's own, wherever they were imported, and of PyTorch's save."""
    names = [module.name for module in pkgutil.walk_packages(yolo_prune.__path__, "yolo_prune.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    for path, label in WATCHED.items():
        home, _, name = path.rpartition(".")
        original = getattr(importlib.import_module(home), name)
        ours = watched(original, label)
        for module in modules:
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, ours)
    torch.save = watched(torch.save, "torch.save")
    deepcopy = copy.deepcopy
    copies = watched(deepcopy, "deep copies of a model")

    def copied(value: Any, memo: Any = None) -> Any:
        whole = isinstance(value, nn.Module) and memo is None
        return copies(value) if whole else deepcopy(value, memo)

    copy.deepcopy = copied


def main() -> None:
    """Run a prune in a folder of its own and print what it took."""
    watch()
    from yolo_prune.runs.prune import prune_from_config  # after its functions were replaced

    with tempfile.TemporaryDirectory() as folder:
        config = make_config(PruneConfig, ["project=" + folder, "name=counted", *sys.argv[1:]])
        began = time.perf_counter()
        result = prune_from_config(config)
        total = time.perf_counter() - began
    kept = json.dumps(result.plan.keep, sort_keys=True).encode()
    print(f"plan {hashlib.sha256(kept).hexdigest()[:16]}, {result.plan.kept_macs:.4f} of the MACs")
    for row in result.report.rows:
        print(f"  {row.model} at {row.imgsz}: {row.accuracy}, {row.gmacs} GMACs")
    for label, count in sorted(counts.items()):
        print(f"{count:6} {label:28} {seconds[label]:8.1f} s")
    for stage, spent in result.report.timing_s.items():
        print(f"{'':6} stage {stage:22} {spent:8.1f} s")
    print(f"{'':6} {'in all':28} {total:8.1f} s")


if __name__ == "__main__":
    main()
