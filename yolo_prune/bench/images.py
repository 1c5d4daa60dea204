"""Everything around the network, the same for every runtime: resizing before it, suppression after it.

numpy and cv2 only, so that a model exported for an edge device can be timed where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import DataError, MissingRuntimeError

CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300
MAX_CANDIDATES = 30_000
PADDING = 114
SYNTHETIC_SHAPE = (480, 640)
MAX_IMAGES = 32

Image = NDArray[np.uint8]
Detections = NDArray[np.float32]


def import_cv2() -> Any:
    """Return the cv2 module.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingRuntimeError(
            "reading and resizing images needs OpenCV: pip install opencv-python-headless."
        ) from error
    return cv2


def load_images(paths: Sequence[Path] | None) -> list[Image]:
    """Read images to measure with, or draw some.

    Args:
        paths: Image files, of which the first 32 are read; None draws four images with texture and edges.

    Returns:
        Images as uint8 [height, width, 3] in BGR order, as a camera or decoder hands them over.

    Raises:
        DataError: There is no image, or one cannot be read.
    """
    if paths is None:
        return [draw_image(seed) for seed in range(4)]
    if not paths:
        raise DataError("no images to measure with: the list is empty. Leave it out to use drawn images.")
    cv2 = import_cv2()
    images: list[Image] = []
    for path in paths[:MAX_IMAGES]:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"cannot read the image '{path}'.")
        images.append(image)
    return images


def draw_image(seed: int) -> Image:
    """Return a deterministic uint8 [480, 640, 3] image: smooth background, noise and bright rectangles."""
    generator = np.random.default_rng(seed)
    height, width = SYNTHETIC_SHAPE
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    image = ramp + generator.normal(0, 12, (height, width, 3))
    for _ in range(12):
        top, left = generator.integers(0, height - 40), generator.integers(0, width - 40)
        tall, wide = generator.integers(10, 120, 2)
        image[top : top + tall, left : left + wide] = generator.integers(0, 256, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def letterbox(image: Image, imgsz: int) -> Image:
    """Resize to fit a square and pad the rest with grey, keeping the aspect ratio.

    Args:
        image: uint8 [height, width, 3].
        imgsz: Side of the square, in pixels.

    Returns:
        uint8 [imgsz, imgsz, 3], the image centred.
    """
    cv2 = import_cv2()
    height, width = image.shape[:2]
    scale = min(imgsz / height, imgsz / width)
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    if (new_height, new_width) != (height, width):
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    top, left = round((imgsz - new_height) / 2 - 0.1), round((imgsz - new_width) / 2 - 0.1)
    canvas = np.full((imgsz, imgsz, 3), PADDING, dtype=np.uint8)
    canvas[top : top + new_height, left : left + new_width] = image
    return canvas


def centre_crop(image: Image, imgsz: int) -> Image:
    """Resize the shorter side to ``imgsz`` and cut the longer one, as the host does for its classifiers.

    Args:
        image: uint8 [height, width, 3].
        imgsz: Side of the square, in pixels.

    Returns:
        uint8 [imgsz, imgsz, 3], pixel for pixel what the host's transforms give.

    Raises:
        MissingRuntimeError: Pillow, which the host resizes with, is not installed.
    """
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingRuntimeError("resizing for a classifier needs Pillow: pip install pillow.") from error
    height, width = image.shape[:2]
    short = min(height, width)
    width, height = int(imgsz * width / short), int(imgsz * height / short)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR))
    top, left = round((height - imgsz) / 2), round((width - imgsz) / 2)
    return image[top : top + imgsz, left : left + imgsz]


@dataclass(frozen=True)
class Surroundings:
    """What runs around the network of one task.

    Attributes:
        resize: Turns an image into a square of a given side.
        phases: Everything that is timed, in words.
    """

    resize: Callable[[Image, int], Image]
    phases: str


DETECTOR = Surroundings(
    letterbox,
    f"letterbox + BGR to RGB + scaling, network, non-maximum suppression (score {CONFIDENCE}, IoU {IOU})",
)
CLASSIFIER = Surroundings(centre_crop, "centre crop + BGR to RGB + scaling, network, best five classes")


def to_input(
    images: Sequence[Image], imgsz: int, resize: Callable[[Image, int], Image] = letterbox
) -> NDArray[np.float32]:
    """Resize, BGR to RGB, scale to [0, 1].

    Args:
        images: uint8 [height, width, 3] each, in BGR order.
        imgsz: Side of the network input, in pixels.
        resize: Turns an image into a square of that side.

    Returns:
        float32 [len(images), 3, imgsz, imgsz], contiguous.
    """
    stacked = np.stack([resize(image, imgsz) for image in images])
    planes = np.ascontiguousarray(stacked[..., ::-1].transpose(0, 3, 1, 2))
    scaled: NDArray[np.float32] = np.multiply(planes, np.float32(1 / 255), dtype=np.float32)
    return scaled


def detect(output: NDArray[np.float32], classes: int | None = None) -> list[Detections]:
    """Turn the raw output of a detector (or classifier) into its results.

    The layout is read from the shape: [B, 4 + C (+ extra), anchors] needs suppression; [B, N, 6] is end to
    end and needs a threshold only; [B, N, 4 + C] are the queries of a transformer; [B, C] are class scores.

    Args:
        output: The network's first output.
        classes: C; taken from the shape when None.

    Returns:
        Per image float32 [n, 6]: x1, y1, x2, y2, score, class, in input pixels, best first; for a classifier
        [5, 2]: score, class.
    """
    if output.ndim == 2:
        return [top_classes(scores) for scores in output]
    if output.shape[2] == 6 and classes != 2:
        return [rows[rows[:, 4] > CONFIDENCE][:MAX_DETECTIONS] for rows in output]
    if classes is not None and output.shape[1] < 4 + classes:
        raise DataError(f"the output {output.shape} is too small for {classes} classes.")
    if classes is not None and holds_queries(output.shape, classes):
        return [best_classes(rows) for rows in output]
    count = output.shape[1] - 4 if classes is None else classes
    return [suppress(best_classes(planes[: 4 + count].T)) for planes in output]


def holds_queries(shape: Sequence[int], classes: int) -> bool:
    """Tell [B, N, 4 + C] from [B, 4 + C, anchors]: small inputs have as few anchors as there are channels."""
    return shape[2] == 4 + classes and shape[1] > shape[2]


def top_classes(scores: NDArray[np.float32], count: int = 5) -> Detections:
    """Return the best classes of one image as float32 [count, 2]: score, class."""
    best = np.argsort(-scores)[:count]
    return np.stack([scores[best], best], axis=1).astype(np.float32)


def best_classes(rows: NDArray[np.float32]) -> Detections:
    """Keep the boxes whose best class passes the threshold.

    Args:
        rows: float32 [n, 4 + C]: centre x, centre y, width, height, class scores.

    Returns:
        float32 [m, 6]: x1, y1, x2, y2, score, class, best first.
    """
    rows = rows[rows[:, 4:].max(axis=1) > CONFIDENCE]
    label = rows[:, 4:].argmax(axis=1)
    score = np.take_along_axis(rows[:, 4:], label[:, None], axis=1)[:, 0]
    order = np.argsort(-score, kind="stable")[:MAX_CANDIDATES]
    centre, half = rows[order, :2], rows[order, 2:4] / 2
    columns = (centre - half, centre + half, score[order, None], label[order, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def suppress(boxes: Detections, iou: float = IOU) -> Detections:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: float32 [n, 6]: x1, y1, x2, y2, score, class, best first.
        iou: A box that overlaps a better one of its class by more than this is dropped.

    Returns:
        float32 [m, 6], best first, at most 300.
    """
    low, high, label = boxes[:, :2], boxes[:, 2:4], boxes[:, 5]
    area = (high - low).prod(axis=1)
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < MAX_DETECTIONS:
        best, left = left[0], left[1:]
        kept.append(int(best))
        side = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        shared = side.clip(0).prod(axis=1)
        overlap = shared / (area[best] + area[left] - shared + 1e-9)
        left = left[(overlap <= iou) | (label[left] != label[best])]
    return boxes[kept]
