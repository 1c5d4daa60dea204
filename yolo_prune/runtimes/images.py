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
from yolo_prune.imgsz import ImageSize, height_width, is_square

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


def load_images(paths: Sequence[Path] | None, channels: int = 3) -> list[Image]:
    """Read images to measure with, or draw some.

    Args:
        paths: Image files, of which the first 32 are read; None draws four images with texture and edges.
        channels: How many the network takes: 1 for grey, 3 for colours, more for spectral bands.

    Returns:
        Images as uint8 [height, width, channels], colours in BGR order, as a camera or decoder hands them over.

    Raises:
        DataError: There is no image, or one cannot be read or has other channels.
    """
    if paths is None:
        return [draw_image(seed, channels) for seed in range(4)]
    if not paths:
        raise DataError("no images to measure with: the list is empty. Leave it out to use drawn images.")
    return [read_image(path, channels) for path in paths[:MAX_IMAGES]]


def read_image(path: Path, channels: int) -> Image:
    """Read one image as the host reads it for a model of so many channels.

    Args:
        path: An image file. Spectral bands are the pages of a .tiff or the planes of any other file.
        channels: How many are wanted.

    Returns:
        uint8 [height, width, channels]; of 16 bits a value the upper 8.

    Raises:
        DataError: It cannot be read, or has other channels.
    """
    cv2 = import_cv2()
    flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    image = None
    if flag == cv2.IMREAD_UNCHANGED and path.suffix.lower() in (".tif", ".tiff"):
        _, pages = cv2.imreadmulti(str(path), flags=flag)
        whole = pages and (pages[0].ndim == 3 or len({page.shape for page in pages}) == 1)
        image = (pages[0] if pages[0].ndim == 3 else np.dstack(pages)) if whole else None
    image = cv2.imread(str(path), flag) if image is None else image
    if image is None:
        raise DataError(f"cannot read the image '{path}'.")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    image = np.atleast_3d(image)
    if image.shape[2] != channels or image.dtype != np.uint8:
        raise DataError(
            f"the image '{path}' has {image.shape[2]} channels of {image.dtype}, the model takes {channels} of uint8."
        )
    found: Image = image
    return found


def draw_image(seed: int, channels: int = 3) -> Image:
    """Return a deterministic uint8 [480, 640, channels] image: smooth background, noise and bright rectangles."""
    generator = np.random.default_rng(seed)
    height, width = SYNTHETIC_SHAPE
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    image = ramp + generator.normal(0, 12, (height, width, channels))
    for _ in range(12):
        top, left = generator.integers(0, height - 40), generator.integers(0, width - 40)
        tall, wide = generator.integers(10, 120, 2)
        image[top : top + tall, left : left + wide] = generator.integers(0, 256, channels)
    return np.clip(image, 0, 255).astype(np.uint8)


def letterbox(image: Image, imgsz: ImageSize) -> Image:
    """Resize to fit the network's input and pad the rest with grey, keeping the aspect ratio.

    Args:
        image: uint8 [height, width, channels].
        imgsz: Size of the input, in pixels.

    Returns:
        uint8 [*imgsz, channels], the image centred.
    """
    cv2 = import_cv2()
    height, width, channels = image.shape
    tall, wide = height_width(imgsz)
    scale = min(tall / height, wide / width)
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    if (new_height, new_width) != (height, width):
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    top, left = round((tall - new_height) / 2 - 0.1), round((wide - new_width) / 2 - 0.1)
    canvas = np.full((tall, wide, channels), PADDING, dtype=np.uint8)
    canvas[top : top + new_height, left : left + new_width] = np.atleast_3d(
        image
    )  # OpenCV drops a single channel
    return canvas


def centre_crop(image: Image, imgsz: ImageSize) -> Image:
    """Resize the shorter side to ``imgsz`` and cut the longer one, as the host does for its classifiers.

    To a shape that is no square the host stretches.

    Args:
        image: uint8 [height, width, channels].
        imgsz: Size of the input, in pixels.

    Returns:
        uint8 [*imgsz, channels], pixel for pixel what the host's transforms give.

    Raises:
        MissingRuntimeError: Pillow, which the host resizes with, is not installed.
    """
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingRuntimeError("resizing for a classifier needs Pillow: pip install pillow.") from error
    height, width = image.shape[:2]
    tall, wide = height_width(imgsz)
    if is_square(imgsz):
        short = min(height, width)
        width, height = int(tall * width / short), int(tall * height / short)
    else:
        height, width = tall, wide
    if (height, width) != image.shape[:2]:
        planes = [image] if image.shape[2] == 3 else np.split(image, image.shape[2], axis=2)
        drawn = [Pillow.fromarray(np.squeeze(plane)) for plane in planes]
        image = np.dstack(
            [np.asarray(each.resize((width, height), Pillow.Resampling.BILINEAR)) for each in drawn]
        )
    top, left = round((height - tall) / 2), round((width - wide) / 2)
    return image[top : top + tall, left : left + wide]


@dataclass(frozen=True)
class Surroundings:
    """What runs around the network of one task.

    Attributes:
        resize: Turns an image into one of the size of the network's input.
        phases: Everything that is timed, in words.
    """

    resize: Callable[[Image, ImageSize], Image]
    phases: str


DETECTOR = Surroundings(
    letterbox,
    f"letterbox + BGR to RGB + scaling, network, non-maximum suppression (score {CONFIDENCE}, IoU {IOU})",
)
CLASSIFIER = Surroundings(centre_crop, "centre crop + BGR to RGB + scaling, network, best five classes")


def to_input(
    images: Sequence[Image], imgsz: ImageSize, resize: Callable[[Image, ImageSize], Image] = letterbox
) -> NDArray[np.float32]:
    """Resize, BGR to RGB where there are three channels, scale to [0, 1].

    Args:
        images: uint8 [height, width, channels] each, colours in BGR order.
        imgsz: Size of the network input, in pixels.
        resize: Turns an image into one of that size.

    Returns:
        float32 [len(images), channels, *imgsz], contiguous.
    """
    stacked = np.stack([resize(image, imgsz) for image in images])
    ordered = stacked[..., ::-1] if stacked.shape[3] == 3 else stacked
    planes = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2))
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
