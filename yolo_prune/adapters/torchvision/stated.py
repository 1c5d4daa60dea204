"""What this host's exported files say of themselves, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from yolo_prune.accuracy.deployed import DeployedModel
from yolo_prune.imgsz import read_size
from yolo_prune.runtimes.detections import CLASSES, RANKED


def read_export(metadata: Mapping[str, Any]) -> DeployedModel | None:
    """Return what the metadata of an exported file says; None where it is not of this host."""
    try:
        labels = tuple(json.loads(metadata["labels"]))
        names = tuple(json.loads(metadata["classes"]))
        return DeployedModel(
            task=metadata["task"],
            names=dict(enumerate(names or (f"class {label}" for label in labels))),
            labels=labels,
            layout=CLASSES if metadata["task"] == "classify" else RANKED,
            imgsz=read_size(json.loads(metadata["imgsz"])),
            stretched=bool(json.loads(metadata["stretched"])),
            suppresses=metadata["task"] != "classify",
        )
    except (KeyError, ValueError):
        return None
