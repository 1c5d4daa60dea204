"""Many images out of few, for a network whose teacher says what is right of any image: none needs a label."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_prune.graph.values import change_tensors

_ZOOM = (0.6, 1.6)
_STRETCH = 0.1  # of the width against the height, to either side
_BRIGHTNESS = 0.3
_TINT = 0.1
_MOSAIC = 0.5  # share of the batches whose images are put together from four
_SPLIT = (0.3, 0.7)  # where the four meet, as shares of height and width


def augmented(batch: Any, generator: torch.Generator) -> Any:
    """Return a batch whose images are mirrored, zoomed, moved, tinted, and half of the time put together from four.

    Args:
        batch: Holds images, floating-point tensors ([B,] 1 or 3, H, W), in whatever it is. Those that lie beside each
            other (a pair of cameras) are all changed alike, and so are the images of a list. Other tensors stay.
        generator: On the CPU; it is advanced by one number.

    Returns:
        The batch, of the same shapes and types.
    """
    seed = int(torch.randint(2**31, (), generator=generator))

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() not in (3, 4) or tensor.shape[-3] not in (1, 3):
            return tensor
        images = tensor if tensor.dim() == 4 else tensor[None]
        changed = _changed(images.float(), torch.Generator().manual_seed(seed))
        return changed.reshape(tensor.shape).to(tensor.dtype)

    return change(batch) if isinstance(batch, Tensor) else change_tensors(batch, change)


def _changed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, shape (B, C, H, W), each changed in its own way."""
    count, channels, height, width = images.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    zoom = draw(math.log(_ZOOM[0]), math.log(_ZOOM[1]), count, 1).exp()
    stretched = zoom * draw(1 - _STRETCH, 1 + _STRETCH, count, 1)
    inverse = 1 / torch.cat([stretched, zoom], 1)  # of x and of y
    # What is smaller stays inside, what is larger fills the image.
    moved = (inverse - 1).abs() * draw(-1, 1, count, 2)
    mirrored = torch.where(draw(0, 1, count) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = inverse[:, 0] * mirrored, inverse[:, 1], moved
    grid = F.affine_grid(theta.to(images.device), [count, channels, height, width], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    light = draw(1 - _BRIGHTNESS, 1 + _BRIGHTNESS, count, 1, 1, 1) * draw(
        1 - _TINT, 1 + _TINT, count, channels, 1, 1
    )
    images = images * light.to(images.device)
    if count < 2 or float(draw(0, 1, 1)) >= _MOSAIC:
        return images
    return _mosaics(images, [round(float(draw(*_SPLIT, 1)) * side) for side in (height, width)], generator)


def _mosaics(images: Tensor, at: list[int], generator: torch.Generator) -> Tensor:
    """Return images each of whose quarters is that of another one."""
    made, (row, column) = images.clone(), at
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            made[:, :, rows, columns] = images[order, :, rows, columns]
    return made
