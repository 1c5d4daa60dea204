"""How to run a network of this host: what it is traced on, and at which size its MACs count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.torchvision.described import CLASSIFY, described
from yolo_prune.adapters.torchvision.detector import is_stretched, is_two_stage
from yolo_prune.adapters.torchvision.framing import load_framed
from yolo_prune.cut.proven import Anatomy
from yolo_prune.graph.decisions import Positions
from yolo_prune.imgsz import ImageSize, height_width

STRIDE = 32
_TRACED = 96  # pixels; some classifiers need as many


def anatomy_of(module: nn.Module, imgsz: ImageSize, keep_layers: tuple[str, ...] = ()) -> Anatomy:
    """Return how to run a network.

    A classifier is traced on a small image. A detector is traced on an image of its data at full size: what its second
    stage does depends on what the first proposes, and its MACs are counted at those proposals.
    """
    if described(module).task == CLASSIFY:
        small = min(_TRACED, *height_width(imgsz))
        side = height_width(imgsz) if _has_fixed_input(module) else (small, small)
        return Anatomy(_noise(side), torch.zeros(1, 3, *height_width(imgsz)), keep_layers=keep_layers)
    return Anatomy(example_of(module, imgsz), keep_layers=keep_layers, positions=Positions())


def example_of(module: nn.Module, imgsz: ImageSize) -> Tensor:
    """Return one image (1, 3, H, W) in [0, 1]: the one that stands for a detector's data, else noise."""
    file = described(module).example
    if file is not None and Path(file).is_file():
        return load_framed([Path(file)], imgsz, is_stretched(module))[0]
    return _noise(height_width(imgsz))


def _noise(size: tuple[int, int]) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def _has_fixed_input(module: nn.Module) -> bool:
    """Tell whether a classifier has positions of its own: a transformer."""
    return any(hasattr(module, name) for name in ("pos_embed", "patch_embed", "conv_proj"))


def stride_of(module: nn.Module) -> int:
    """Return what the sides of images are multiples of.

    SSD on VGG has layers without padding that end at one pixel: it runs at its own size and multiples of it.
    """
    transform: Any = getattr(module, "transform", None)
    if transform is not None and is_stretched(module) and not is_two_stage(module):
        own = int(max(transform.fixed_size))
        return STRIDE if own % STRIDE == 0 else own
    return STRIDE
