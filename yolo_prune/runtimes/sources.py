"""Where the images of a measurement come from: held in memory, or read one after the other while the clock runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from yolo_prune.errors import DataError
from yolo_prune.runtimes.images import IMAGE_ENDINGS, Image, import_cv2, read_image


class Source(Protocol):
    """Hands out images.

    Attributes:
        timed: Whether getting them is part of what is timed, and is work.
        name: In words, for the conditions of a measurement.
    """

    @property
    def timed(self) -> bool:
        """Whether an image costs time to get."""

    @property
    def name(self) -> str:
        """What it is."""

    def take(self, first: int, count: int) -> list[Image]:
        """Return images number ``first`` and the following ones, from the beginning again after the last."""


@dataclass(frozen=True)
class Held:
    """Images that are in memory."""

    images: Sequence[Image]
    name: str = "images in memory"
    timed: bool = False

    def take(self, first: int, count: int) -> list[Image]:
        """Return them in turn."""
        return [self.images[(first + offset) % len(self.images)] for offset in range(count)]


@dataclass(frozen=True)
class Folder:
    """Image files, each read and decoded when its turn comes."""

    files: Sequence[Path]
    channels: int
    name: str
    timed: bool = True

    def take(self, first: int, count: int) -> list[Image]:
        """Read them in turn."""
        return [read_image(self.files[(first + at) % len(self.files)], self.channels) for at in range(count)]


class Stream:
    """A video file, from its beginning again after its end, or a camera, which gives images at its own rate."""

    timed = True

    def __init__(self, source: str, channels: int) -> None:
        """Open it.

        Raises:
            MissingRuntimeError: OpenCV is not installed.
            DataError: It cannot be opened, or its images have other channels than the network takes.
        """
        self._cv2 = import_cv2()
        self._camera = source.isdecimal()
        self._source: int | str = int(source) if self._camera else source
        self._channels = channels
        self.name = f"camera {source}" if self._camera else f"video {source}"
        if channels not in (1, 3):
            raise DataError(f"the {self.name} has 3 channels, the model takes {channels}.")
        self._capture: Any = self._opened()

    def _opened(self) -> Any:
        capture = self._cv2.VideoCapture(self._source)
        if not capture.isOpened():
            raise DataError(f"the {self.name} cannot be opened.")
        return capture

    def take(self, first: int, count: int) -> list[Image]:
        """Read the next images, whatever their number."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Image:
        there, image = self._capture.read()
        if not there and not self._camera:
            self._capture.release()
            self._capture = self._opened()
            there, image = self._capture.read()
        if not there:
            raise DataError(f"the {self.name} gives no image.")
        if self._channels == 1:
            image = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2GRAY)
        return np.asarray(np.atleast_3d(image), dtype=np.uint8)


def open_source(source: str, channels: int) -> Source:
    """Open what ``source=`` names.

    Args:
        source: A folder of images, a video file, or the number of a camera.
        channels: Of the images that the network takes.

    Raises:
        DataError: It is none of these, or holds no image.
        MissingRuntimeError: What reads it is not installed.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not source.isdecimal() and not folder.is_file():
            raise DataError(f"source='{source}' is no folder, no video and no number of a camera.")
        return Stream(source, channels)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise DataError(f"the folder '{source}' holds no images.")
    return Folder(files, channels, f"folder {source}")
