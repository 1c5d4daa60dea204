"""What a pruned detector lost: its AP with the boxes of its parent in place of its own, and with the parent's scores.

    python scripts/what_is_lost.py parent=best.pt model=pruned.pt data=data.yaml imgsz=320

For detectors with one branch (YOLOv3 to YOLO12, without YOLOv10), whose predictions stand at the same locations in both.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.errors import DataError
from yolo_prune.options.fields import parse_overrides

WAYS = {
    "the model": (False, False),
    "with the parent's boxes": (True, False),
    "with the parent's scores": (False, True),
    "the parent": (True, True),
}


def main() -> None:
    given: dict[str, Any] = {"imgsz": 640, "threads": 2, **parse_overrides(sys.argv[1:])}
    torch.set_num_threads(int(given["threads"]))
    loaded = load_detector(given["model"])
    student, parent = loaded.module.eval(), load_detector(given["parent"]).module.eval()
    host, how = find_host(str(given["model"])), {"batch": 16, "device": "cpu", "workers": 0}
    for split in ("val", "test"):
        try:
            task = host.open_task(loaded, given["data"], split=split, **how)
        except DataError:
            continue
        for way, (boxes, scores) in WAYS.items():
            result = task.evaluate(
                mixed(student, parent, len(loaded.names), boxes, scores), int(given["imgsz"])
            )
            print(f"{split:5} {way:25} {float(result.scores[task.metric]):.4f}", flush=True)


def mixed(student: nn.Module, parent: nn.Module, classes: int, boxes: bool, scores: bool) -> nn.Module:
    """Return a copy of the student that predicts the parent's boxes, the parent's scores, or both."""
    made = copy.deepcopy(student)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            ours, theirs = student(x), parent(x)
        for predictions, *_ in (ours, theirs):
            if not isinstance(predictions, Tensor) or predictions.shape[1] != 4 + classes:
                raise SystemExit(
                    "this takes detectors with one branch, whose predictions stand at the same locations."
                )
        box, score = (theirs if chosen else ours for chosen in (boxes, scores))
        return torch.cat([box[0][:, :4], score[0][:, 4:]], 1), ours[1]

    made.forward = forward  # type: ignore[method-assign]
    return made


if __name__ == "__main__":
    main()
