"""Masks of a segmenter at the resolution of the original image, each inside its box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from yolo_prune.accuracy.masks import pixels_between, run_lengths


def original_masks(
    prototypes: Tensor, coefficients: Tensor, boxes: Tensor, frame: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the mask of every detection in COCO's run lengths.

    The logits are interpolated straight at the centres of the original image's pixels and compared with zero there. The
    host's own COCO file takes two steps, the second of which is rounded down: every mask would lose its rim.

    Args:
        prototypes: Of one image, shape (M, h, w), over its whole letterboxed input.
        coefficients: Of its detections, shape (N, M).
        boxes: Left, top, right and bottom in pixels of the original image, shape (N, 4).
        frame: The host's ``imgsz`` (height and width of the input), ``ori_shape`` (of the original image), and
            ``ratio_pad`` (gains of height and width, then padding at the left and at the top).
    """
    (high, wide), (gain_y, gain_x) = frame["imgsz"], frame["ratio_pad"][0]
    pad_x, pad_y = frame["ratio_pad"][1]
    shape = (int(frame["ori_shape"][0]), int(frame["ori_shape"][1]))
    logits = torch.einsum("nm,mhw->nhw", coefficients.float(), prototypes.float()).cpu()
    found = []
    for logit, box in zip(logits, boxes.tolist(), strict=True):
        left, right = pixels_between(box[0], box[2], shape[1])
        top, bottom = pixels_between(box[1], box[3], shape[0])
        x = (torch.arange(left, right) + 0.5) * float(gain_x) + float(pad_x)
        y = (torch.arange(top, bottom) + 0.5) * float(gain_y) + float(pad_y)
        rows, columns = torch.meshgrid(2 * y / int(high) - 1, 2 * x / int(wide) - 1, indexing="ij")
        grid = torch.stack([columns, rows], dim=-1)[None]
        part = grid_sample(logit[None, None], grid, padding_mode="border", align_corners=False)[0, 0] > 0
        found.append(run_lengths(part.numpy(), left, top, shape))
    return found
