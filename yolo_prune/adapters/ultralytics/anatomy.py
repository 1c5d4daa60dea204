"""How to run a host model for tracing, and how to name what it was given as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.ultralytics.rules import block_rules, raw_outputs
from yolo_prune.cutting import Anatomy


def anatomy_of(module: nn.Module, imgsz: int, freeze: tuple[str, ...] = ()) -> Anatomy:
    """Return how to trace a host model and at which size its MACs count.

    Args:
        module: A model of the host, with its ``stride``.
        imgsz: Side of the square input that costs are counted for, pixels.
        freeze: Module names or patterns whose channels stay.
    """
    stride = int(max(float(torch.as_tensor(getattr(module, "stride", 32.0)).max()), 32.0))
    description: Any = getattr(module, "yaml", None) or {}
    channels = int(description.get("channels", description.get("ch", 3)) or 3)
    return Anatomy(
        trace_input=torch.zeros(1, channels, 2 * stride, 2 * stride),
        cost_input=torch.zeros(1, channels, imgsz, imgsz),
        rules=block_rules(),
        select_outputs=raw_outputs,
        freeze=freeze,
    )


def file_of(model: Any) -> str | Path | None:
    """Return the file that a model given by the user came from: a path itself, or the host object's checkpoint."""
    if isinstance(model, (str, Path)):
        return model
    path = getattr(model, "ckpt_path", None)
    return path if isinstance(path, (str, Path)) and Path(path).is_file() else None
