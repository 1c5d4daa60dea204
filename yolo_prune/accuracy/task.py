"""What a run wants to know of a task: its data, how a model is scored on it, and images to measure on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from yolo_prune.accuracy.bootstrap import ImageSample
from yolo_prune.accuracy.box_data import BoxData
from yolo_prune.accuracy.classes import ClassificationData
from yolo_prune.accuracy.looks import Look
from yolo_prune.accuracy.number import Accuracy
from yolo_prune.criteria.calibration import Labels
from yolo_prune.imgsz import ImageSize


class Result(Protocol):
    """What a report wants to know of one evaluation."""

    @property
    def images(self) -> int:
        """Number of images."""

    @property
    def scores(self) -> Mapping[str, float | None]:
        """Accuracy in [0, 1] by the names that a row of the report has for it."""

    @property
    def host_scores(self) -> Mapping[str, float]:
        """The host's own numbers by name, where it defines them otherwise."""

    @property
    def per_class(self) -> Mapping[str, float]:
        """Accuracy of every class that the data has."""

    @property
    def boxes(self) -> int | None:
        """Number of ground-truth boxes, None where there are none to find."""

    @property
    def ap_of(self) -> str | None:
        """Which boxes AP is of, None for other accuracies."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of the accuracy has to know."""

    @property
    def sample(self) -> ImageSample | None:
        """What was found in each image."""

    @property
    def of_files(self) -> Accuracy:
        """What exported files of such a model are judged by: AP of boxes whatever the task, of a classifier top-1."""

    @property
    def evaluator(self) -> str:
        """What computed the accuracy."""


class Split(Protocol):
    """Images of one split, with what is on them."""

    def part(self, count: int) -> BoxData | ClassificationData:
        """Return at most so many images, spread over the split, to judge deployed files by.

        Raises:
            DataError: They hold nothing to find.
        """


class Task(Protocol):
    """A split of data, and how models of one task are measured on it.

    Attributes:
        metric: Field of a report's row that models are compared by.
        counted: What a class has a number of: boxes or images.
        device: Where modules are.
    """

    metric: str
    counted: str
    device: str

    @property
    def split(self) -> Split:
        """The images of the split, with what is on them."""

    def check_training_images(self) -> None:
        """Raise DataError when there are no training images, which recovery needs."""

    def evaluate(self, module: nn.Module | Any, imgsz: ImageSize, exported: Path | None = None) -> Result:
        """Evaluate a module, a file made from it, or a file alone, on the split at an input size in pixels."""

    def scorer(self, imgsz: ImageSize) -> Callable[[nn.Module], float]:
        """Return a quick score in [0, 1] on some validation images, which are loaded once."""

    def calibration_batches(self, imgsz: ImageSize, images: int, seed: int) -> list[Tensor]:
        """Load training images as validation sees them: float32 (batch, channels, height, width) in [0, 1]."""

    def calibration_labels(self, imgsz: ImageSize, images: int, seed: int) -> list[Labels]:
        """Return what is in each of these images, where it lies in the input."""

    def image_files(self, count: int) -> list[Path]:
        """Return images of the split to measure speed on."""

    def look(self, module: nn.Module, imgsz: ImageSize, chosen: Sequence[int]) -> list[Look]:
        """Return what a module finds in some images of the split, by their places in the sample of its results.

        Raises:
            DataError: An image cannot be read.
        """

    def class_sizes(self) -> Mapping[str, int]:
        """Return how many boxes or images of each class the split has."""
