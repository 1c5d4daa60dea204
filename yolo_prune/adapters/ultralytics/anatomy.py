"""How to run a host model for tracing, and what it takes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.rules import block_rules, raw_outputs
from yolo_prune.cut.proven import Anatomy
from yolo_prune.imgsz import ImageSize, height_width

STRIDE = 32
"""What the host rounds the sides of images up to."""


def anatomy_of(module: nn.Module, imgsz: ImageSize, keep_layers: tuple[str, ...] = ()) -> Anatomy:
    """Return how to trace a host model and at which size its MACs count.

    Args:
        module: A model of the host, with its ``stride``.
        imgsz: Size of the input that costs are counted for, pixels.
        keep_layers: Module names or patterns whose channels stay.
    """
    image = smallest_image(module)
    return Anatomy(
        trace_input=image,
        cost_input=torch.zeros(1, image.shape[1], *height_width(imgsz)),
        rules=block_rules(),
        select_outputs=raw_outputs,
        keep_layers=keep_layers,
    )


def smallest_image(module: nn.Module) -> Tensor:
    """Return a black image that is large enough for every part of a model of the host, shape (1, C, side, side)."""
    side = stride_of(module) * max(2, _strides_of_queries(module))
    return torch.zeros(1, input_channels(module), side, side)


def stride_of(module: nn.Module) -> int:
    """Return what the sides of a model's images are multiples of: its largest stride, and no less than the host's."""
    return max(int(torch.as_tensor(getattr(module, "stride", STRIDE)).max()), STRIDE)


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
