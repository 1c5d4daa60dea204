"""What a training with pruning ends with: the accuracy of its best model, as ``eval`` and the reports measure it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_prune.adapters.ultralytics.load import load_detector
from yolo_prune.adapters.ultralytics.tasks import open_task
from yolo_prune.device import resolve_device
from yolo_prune.errors import YoloPruneError
from yolo_prune.imgsz import size_text


def accuracy_line(best: Path, options: Mapping[str, Any], *, trust: bool) -> str:
    """Evaluate a model on the validation split of the data it was trained on, and say it in words.

    Args:
        best: The checkpoint.
        options: The host's options as they were given; its ``data`` and ``device`` are those of the checkpoint's
            training where they were not.
        trust: Load a checkpoint that may run code of its own.

    Returns:
        What models of the task are judged by, and the second number; of an evaluation that failed, why: hours of
        training are not lost for it.
    """
    from yolo_prune.report import METRICS

    try:
        loaded = load_detector(best, trust=trust)
        given = {**loaded.train_args, **options}
        device = _first_device(given.get("device"))
        batch = int(given.get("batch") or 0)  # the host takes -1 and shares of the memory, too
        task = open_task(
            loaded,
            given["data"],
            split=str(given.get("split") or "val"),
            batch=batch if batch > 0 else 16,
            device=device,
            workers=int(given.get("workers") or 0),
        )
        result = task.evaluate(loaded.module.to(device), loaded.imgsz)
    except (YoloPruneError, RuntimeError, OSError) as error:
        return f"accuracy: not measured: {error}"
    sentence = METRICS[task.metric].sentence(result.scores)
    return f"accuracy: {sentence} ({result.images} images, {size_text(loaded.imgsz)} px; {result.evaluator})"


def _first_device(device: object) -> str:
    """Return the first of the devices that the host was to train on; -1 and nothing are any GPU that is there."""
    first = str("" if device is None else device).strip("[]() ").split(",")[0].strip(" '\"")
    return resolve_device(None if first in ("", "-1") else first)
