"""How to run a host model for tracing, and how to name what it was given as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.rules import block_rules, raw_outputs
from yolo_prune.cut.proven import Anatomy
from yolo_prune.imgsz import ImageSize, height_width


def anatomy_of(module: nn.Module, imgsz: ImageSize, freeze: tuple[str, ...] = ()) -> Anatomy:
    """Return how to trace a host model and at which size its MACs count.

    Args:
        module: A model of the host, with its ``stride``.
        imgsz: Size of the input that costs are counted for, pixels.
        freeze: Module names or patterns whose channels stay.
    """
    image = smallest_image(module)
    return Anatomy(
        trace_input=image,
        cost_input=torch.zeros(1, image.shape[1], *height_width(imgsz)),
        rules=block_rules(),
        select_outputs=raw_outputs,
        freeze=freeze,
    )


def smallest_image(module: nn.Module) -> Tensor:
    """Return a black image that is large enough for every part of a model of the host, shape (1, C, side, side)."""
    stride = int(max(float(torch.as_tensor(getattr(module, "stride", 32.0)).max()), 32.0))
    side = stride * max(2, _strides_of_queries(module))
    return torch.zeros(1, input_channels(module), side, side)


def input_channels(module: nn.Module) -> int:
    """Return how many channels the images of a model of the host have.

    The host writes them into the model's description. Where that is silent, the first convolution knows.
    """
    description: Any = getattr(module, "yaml", None) or {}
    stated = description.get("channels", description.get("ch"))
    if stated:
        return int(stated)
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


def _strides_of_queries(module: nn.Module) -> int:
    """Return how many of its largest strides an image's side needs to have a location for every query.

    A decoder chooses among 16 + 4 + 1 locations of each such square; the oldest host wants as many as queries.
    """
    layers: Any = getattr(module, "model", None)
    queries = getattr(layers[-1], "num_queries", 0) if isinstance(layers, nn.Sequential) else 0
    return math.ceil(math.sqrt(queries / 21))


def file_of(model: Any) -> str | Path | None:
    """Return the file that a model given by the user came from: a path itself, or the host object's checkpoint."""
    if isinstance(model, (str, Path)):
        return model
    path = getattr(model, "ckpt_path", None)
    return path if isinstance(path, (str, Path)) and Path(path).is_file() else None
