#!/usr/bin/env python3
"""Seconds, memory and last bits of COCO AP: run scripts/bench_evaluation.py [--images 5000] [--classes 80].

Drawn boxes and detections are scored by each evaluator that is installed, each in a process of its own: ours (with its
matches, from which intervals are drawn), pycocotools, hotcoco and faster-coco-eval. Printed: seconds, how far the peak of
the process's memory rose above what the data took, and the largest difference to pycocotools' AP of any class and size.
Of hotcoco, too: the seconds that its matches take, which it hands out as lists.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 640


def drawn(images: int, classes: int, found: int = 100, seed: int = 0) -> tuple[dict, list[dict]]:
    """Draw 7 objects an image, frequent and rare classes, of all sizes; detections near them, twice, and elsewhere."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, classes + 1) ** -0.7
    share /= share.sum()
    annotations: list[dict] = []
    detections: list[dict] = []
    for image in range(1, images + 1):
        count = int(rng.poisson(7))
        sides = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
        boxes = np.concatenate([rng.random((count, 2)) * (SIDE - sides), sides], axis=1)
        kinds = rng.choice(classes, count, p=share) + 1
        crowd = rng.random(count) < 0.01
        for box, kind, region in zip(boxes.tolist(), kinds.tolist(), crowd.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box}
            annotations.append({**entry, "area": 0.7 * box[2] * box[3], "iscrowd": int(region)})
        near = rng.random(found) < (0.3 if count else 0.0)
        of = rng.integers(0, max(count, 1), found)
        places = np.concatenate(
            [rng.random((found, 2)) * 500, np.exp(rng.normal(4, 0.9, (found, 2)))], axis=1
        )
        seen = rng.choice(classes, found, p=share) + 1
        if count:
            moved = boxes[of] + rng.normal(0, 0.1, (found, 4)) * np.tile(boxes[of, 2:], 2)
            places = np.where(near[:, None], moved, places)
            seen = np.where(near & (rng.random(found) < 0.85), kinds[of], seen)
        places[:, 2:] = places[:, 2:].clip(1)
        scores = np.round(rng.random(found) * np.where(near, 1.0, 0.4), 3)
        detections += [
            {"image_id": image, "category_id": kind, "bbox": box, "score": score}
            for kind, box, score in zip(seen.tolist(), places.tolist(), scores.tolist(), strict=True)
        ]
    listed = [{"id": number, "width": SIDE, "height": SIDE} for number in range(1, images + 1)]
    names = [{"id": number, "name": str(number)} for number in range(1, classes + 1)]
    return {"images": listed, "categories": names, "annotations": annotations}, detections


def ours(truth: dict, detections: list[dict]) -> list[Any]:
    """Score with the package."""
    from yolo_prune.accuracy.coco import coco_ap_by_image

    result, _ = coco_ap_by_image(truth, detections)
    kinds = [result.per_class.get(each["name"]) for each in truth["categories"]]
    return [result.ap, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ap_large, *kinds]


def ours_with_interval(truth: dict, detections: list[dict]) -> list[Any]:
    """Score with the package, and draw the images 1,000 times for the interval."""
    from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy
    from yolo_prune.accuracy.coco import coco_ap_by_image

    _, sample = coco_ap_by_image(truth, detections)
    found = interval_of(resampled_accuracy(sample))
    return [found.low, found.high] if found else []


def _means(precision: Any) -> list[Any]:
    precision = np.asarray(precision).reshape(10, 101, -1, 4, 3)[..., -1]
    parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    parts += [precision[..., size] for size in (1, 2, 3)]
    parts += [precision[:, :, kind, 0] for kind in range(precision.shape[2])]
    return [float(np.mean(each[each > -1])) if (each > -1).any() else None for each in parts]


def pycocotools(truth: dict, detections: list[dict]) -> list[Any]:
    """Score as the manual of pycocotools says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    made = COCOeval(coco, coco.loadRes(detections), "bbox")
    made.evaluate()
    made.accumulate()
    return _means(made.eval["precision"])


def hotcoco(truth: dict, detections: list[dict]) -> list[Any]:
    """Score with hotcoco."""
    import hotcoco as library

    coco = library.COCO(truth)
    made = library.COCOeval(coco, coco.loadRes(detections), "bbox")
    made.evaluate()
    made.accumulate()
    return _means(made.eval["precision"])


def hotcoco_matches(truth: dict, detections: list[dict]) -> list[Any]:
    """Score with hotcoco, and ask for the matches of objects of all sizes."""
    import hotcoco as library

    coco = library.COCO(truth)
    made = library.COCOeval(coco, coco.loadRes(detections), "bbox")
    made.params.areaRng, made.params.areaRngLbl = [made.params.areaRng[0]], ["all"]
    made.evaluate()
    return [sum(1 for each in made.eval_imgs if each)]


def faster_coco_eval(truth: dict, detections: list[dict]) -> list[Any]:
    """Score with faster-coco-eval, which hands out no matches."""
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(truth)
    made = COCOeval_faster(coco, coco.loadRes(detections), "bbox", separate_eval=True)
    made.evaluate()
    made.accumulate()
    return _means(made.eval["precision"])


EVALUATORS: dict[str, Callable[[dict, list[dict]], list[Any]]] = {
    each.__name__: each
    for each in (ours, ours_with_interval, pycocotools, hotcoco, hotcoco_matches, faster_coco_eval)
}


def measure(name: str, images: int, classes: int) -> None:
    """Run one evaluator and print what came out as JSON."""
    truth, detections = drawn(images, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        began = time.perf_counter()
        values = EVALUATORS[name](truth, detections)
        seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(json.dumps({"seconds": seconds, "mb": grown, "values": values}))


def main() -> None:
    """Measure every evaluator in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--only", choices=sorted(EVALUATORS), help="measure this one alone, as JSON")
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.images, options.classes)
        return
    found: dict[str, dict[str, Any]] = {}
    print("| evaluator | seconds | MB | largest difference to pycocotools |\n|---|---:|---:|---:|")
    for name in ("pycocotools", *(each for each in EVALUATORS if each != "pycocotools")):
        size = ["--images", str(options.images), "--classes", str(options.classes)]
        done = subprocess.run(
            [sys.executable, __file__, "--only", name, *size], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"| {name} | not measured: {done.stderr.strip().splitlines()[-1]} | | |")
            continue
        one = found[name] = json.loads(done.stdout)
        theirs = found.get("pycocotools", {}).get("values", [])
        pairs = (
            list(zip(one["values"], theirs, strict=False))
            if "_" not in name or name == "faster_coco_eval"
            else []
        )
        apart = [float("inf") if (a is None) != (b is None) else abs((a or 0) - (b or 0)) for a, b in pairs]
        difference = f"{max(apart):.2g}" if apart else ""
        print(f"| {name} | {one['seconds']:.1f} | {one['mb']:.0f} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
