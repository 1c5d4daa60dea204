"""What a detector finds on a canvas, as COCO results in pixels of the image: boxes, and masks or key points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from yolo_prune.accuracy.annotations import without_shape
from yolo_prune.accuracy.box_data import BoxData
from yolo_prune.accuracy.masks import pixels_between, run_lengths
from yolo_prune.accuracy.shapes import BOXES, MASKS, OBJECT_OF_BOX, Compared, Keypoints
from yolo_prune.errors import DataError
from yolo_prune.runtimes.framing import Frame

METRICS = {"detect": "ap", "segment": "mask_ap", "pose": "keypoint_ap"}
"""What detectors are judged by, as a row of the report calls it, by what they find."""


def shape_found(module: nn.Module) -> str:
    """Return what a detector finds beside boxes: ``segment`` masks, ``pose`` key points, ``detect`` nothing."""
    heads: Any = getattr(module, "roi_heads", None)
    if heads is not None and getattr(heads, "mask_predictor", None) is not None:
        return "segment"
    if heads is not None and getattr(heads, "keypoint_predictor", None) is not None:
        return "pose"
    return "detect"


def compared_by(module: nn.Module, data: BoxData) -> tuple[Compared, str, tuple[str, ...]]:
    """Return what objects are compared by.

    Args:
        module: The detector.
        data: The split, read for what it finds.

    Raises:
        DataError: The data has another number of key points.

    Returns:
        Masks or key points where the data has them, else boxes; how, for the report; and what AP leaves out.
    """
    shape = shape_found(module)
    if shape == "detect":
        return BOXES, "", ()
    lacking = without_shape([one for each in data.objects for one in each], shape)
    if lacking:
        return BOXES, "", (f"AP is that of the boxes: {lacking}.",)
    if shape == "segment":
        return MASKS, "masks at the size of the original image", ()
    predictor: Any = module.roi_heads
    points = int(predictor.keypoint_predictor.kps_score_lowres.out_channels)
    other = {len(one["keypoints"]) // 3 for each in data.objects for one in each} - {points}
    if other:
        raise DataError(
            f"the model finds {points} key points, and objects of {data.file} have {other.pop()}."
        )
    keypoints = Keypoints(_sigmas(points), 1.0 if data.source.startswith("COCO") else OBJECT_OF_BOX)
    return keypoints, keypoints.terms, ()


def _sigmas(points: int) -> tuple[float, ...]:
    """Return how exactly key points can be told: COCO's own for its 17, else the same for all."""
    from pycocotools.cocoeval import Params

    known = tuple(float(sigma) for sigma in Params("keypoints").kpt_oks_sigmas)
    return known if points == len(known) else (1 / points,) * points


def as_coco(
    found: Mapping[str, Tensor],
    frame: Frame,
    image_id: int,
    category: Mapping[int, int],
    compared: Compared = BOXES,
) -> list[dict[str, Any]]:
    """Return what was found in one image; labels that no class has are background to it.

    Args:
        found: ``boxes``, ``scores`` and ``labels``, with ``masks`` (N, 1, H, W) or ``keypoints`` (N, K, 3).
        frame: Where the image lies in the canvas that this is on.
        image_id: Of the ground truth.
        category: Label -> category of the ground truth.
        compared: What is compared.
    """
    boxes = frame.back(found["boxes"].float().cpu().numpy())
    scores, labels = found["scores"].float().cpu().tolist(), found["labels"].cpu().tolist()
    results = []
    for at, ((x1, y1, x2, y2), score, label) in enumerate(zip(boxes.tolist(), scores, labels, strict=True)):
        if label not in category:
            continue
        one = {"image_id": image_id, "category_id": category[label], "score": score}
        one["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        if compared is MASKS:
            one[MASKS.key] = _mask(found["masks"][at, 0].float().cpu(), (x1, y1, x2, y2), frame)
        elif isinstance(compared, Keypoints):
            one[compared.key] = _points(found["keypoints"][at].float().cpu(), frame)
        results.append(one)
    return results


def _mask(likely: Tensor, box: tuple[float, float, float, float], frame: Frame) -> dict[str, Any]:
    """Return where a mask (H, W) of the canvas is more likely than not, at the centres of the image's own pixels."""
    (width, height), (tall, wide) = frame.size, likely.shape
    left, right = pixels_between(box[0], box[2], width)
    top, bottom = pixels_between(box[1], box[3], height)
    x = (torch.arange(left, right) + 0.5) * frame.scale[0] + frame.corner[0]
    y = (torch.arange(top, bottom) + 0.5) * frame.scale[1] + frame.corner[1]
    rows, columns = torch.meshgrid(2 * y / tall - 1, 2 * x / wide - 1, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1)[None]
    part = grid_sample(likely[None, None], grid, padding_mode="border", align_corners=False)[0, 0] > 0.5
    return run_lengths(part.numpy(), left, top, (height, width))


def _points(points: Tensor, frame: Frame) -> list[float]:
    """Return x, y and 1 of every key point in pixels of the image."""
    moved = (points[:, :2].numpy() - np.array(frame.corner)) / np.array(frame.scale)
    return [float(value) for x, y in moved for value in (x, y, 1.0)]
