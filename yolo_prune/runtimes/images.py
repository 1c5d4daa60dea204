"""The images that a network is fed with, the same for every runtime: read or drawn, resized, scaled.

NumPy alone, with OpenCV or Pillow where they are installed, so that a model exported for an edge device can be timed
where torch is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import DataError, MissingRuntimeError
from yolo_prune.imgsz import ImageSize, height_width, is_square
from yolo_prune.runtimes.detections import CONFIDENCE, IOU
from yolo_prune.runtimes.resampling import has_cv2, resize_linear, resize_smoothly

PADDING = 114
SYNTHETIC_SHAPE = (480, 640)
MAX_IMAGES = 32
IMAGE_ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".mpo", ".png", ".tif", ".tiff", ".webp"})
"""What OpenCV decodes, among the endings that data sets of images have."""

Image = NDArray[np.uint8]


def import_cv2() -> Any:
    """Return the cv2 module.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingRuntimeError("this needs OpenCV: pip install opencv-python-headless.") from error
    return cv2


def use_threads(count: int) -> None:
    """Let OpenCV use so many threads, where it is installed."""
    if has_cv2():
        import_cv2().setNumThreads(count)


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
    image = _decoded_by_cv2(path, channels) if has_cv2() else _decoded_by_pillow(path, channels)
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


def check_reader() -> None:
    """Refuse to read images where nothing is installed that decodes them.

    Raises:
        MissingRuntimeError: There is neither OpenCV nor Pillow.
    """
    if has_cv2():
        return
    try:
        importlib.import_module("PIL")
    except ImportError as error:
        raise MissingRuntimeError(
            'reading images needs OpenCV or Pillow: pip install "yolo-prune[accuracy]".'
        ) from error


def _decoded_by_cv2(path: Path, channels: int) -> NDArray[Any] | None:
    """Return the pixels as OpenCV decodes them; None where it cannot."""
    cv2 = import_cv2()
    flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    image: NDArray[Any] | None = None
    if flag == cv2.IMREAD_UNCHANGED and path.suffix.lower() in (".tif", ".tiff"):
        _, pages = cv2.imreadmulti(str(path), flags=flag)
        whole = pages and (pages[0].ndim == 3 or len({page.shape for page in pages}) == 1)
        image = (pages[0] if pages[0].ndim == 3 else np.dstack(pages)) if whole else None
    return cv2.imread(str(path), flag) if image is None else image


def _decoded_by_pillow(path: Path, channels: int) -> NDArray[Any] | None:
    """Return the pixels as Pillow decodes them, colours in BGR order; None where it cannot.

    Raises:
        MissingRuntimeError: Pillow is not installed either, or there are more channels than it knows.
    """
    if channels not in (1, 3):
        raise MissingRuntimeError(
            f"reading images of {channels} channels needs OpenCV: pip install opencv-python-headless."
        )
    check_reader()
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError):
        return None
    return pixels if channels == 1 else pixels[..., ::-1]


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
    (new_height, new_width), (top, left) = placed(image.shape[:2], imgsz)
    if (new_height, new_width) != image.shape[:2]:
        image = resize_linear(image, (new_height, new_width))
    canvas = np.full((*height_width(imgsz), image.shape[2]), PADDING, dtype=np.uint8)
    canvas[top : top + new_height, left : left + new_width] = image
    return canvas


def placed(shape: tuple[int, ...], imgsz: ImageSize) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where :func:`letterbox` puts an image: its height and width there, and its upper left corner (y, x)."""
    height, width = shape
    tall, wide = height_width(imgsz)
    scale = min(tall / height, wide / width)
    new_height, new_width = max(round(height * scale), 1), max(round(width * scale), 1)
    return (new_height, new_width), (
        round((tall - new_height) / 2 - 0.1),
        round((wide - new_width) / 2 - 0.1),
    )


def stretch(image: Image, imgsz: ImageSize) -> Image:
    """Resize to the size of the network's input, whatever becomes of the aspect ratio."""
    return resize_linear(image, height_width(imgsz))


def centre_crop(image: Image, imgsz: ImageSize) -> Image:
    """Resize the shorter side to ``imgsz`` and cut the longer one, as the host does for its classifiers.

    To a shape that is no square the host stretches.

    Args:
        image: uint8 [height, width, channels].
        imgsz: Size of the input, in pixels.

    Returns:
        uint8 [*imgsz, channels], pixel for pixel what the host's transforms give where Pillow is installed.
    """
    height, width = image.shape[:2]
    tall, wide = height_width(imgsz)
    if is_square(imgsz):
        short = min(height, width)
        width, height = int(tall * width / short), int(tall * height / short)
    else:
        height, width = tall, wide
    if (height, width) != image.shape[:2]:
        image = resize_smoothly(image, (height, width))
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
