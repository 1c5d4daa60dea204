"""What differs between finding boxes and telling classes apart: data, evaluation and images, one value a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from yolo_prune.accuracy.classes import ClassificationData, ClassifierResult
from yolo_prune.accuracy.labels import class_sizes
from yolo_prune.accuracy.looks import Look
from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.host import ExportedFile
from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.adapters.ultralytics import classify, data, evaluate, scoring
from yolo_prune.adapters.ultralytics.exported import ExportedModel
from yolo_prune.adapters.ultralytics.labels import calibration_labels
from yolo_prune.criteria.calibration import Labels
from yolo_prune.imgsz import ImageSize


@dataclass
class BoxTask:
    """Models that find boxes, scored by COCO AP, or by AP of the masks, key points or oriented boxes they find, too."""

    split: data.DetectionData
    names: Mapping[int, str]
    batch: int
    device: str
    workers: int
    metric: str = "ap"
    counted: str = "boxes"
    quick_images: int = 128
    rect: bool = True

    def check_training_images(self) -> None:
        """Raise DataError when the yaml has no training images that can be used; one warning lists broken ones."""
        data.images_in_use(self.split.yaml, "train", self.split.task)

    def evaluate(
        self, module: nn.Module | ExportedModel, imgsz: ImageSize, exported: Path | None = None
    ) -> scoring.EvalResult:
        """Return AP and the host's own mAP."""
        return evaluate.evaluate_detector(
            module,
            self.split,
            imgsz=imgsz,
            batch=self.batch,
            device=self.device,
            split=self.split.split,
            workers=self.workers,
            names=self.names,
            exported=exported,
            rect=self.rect,
        )

    def scorer(self, imgsz: ImageSize) -> Callable[[nn.Module], float]:
        """Return a function that gives AP of what the task is about on some images of ``val``."""
        quick = evaluate.Evaluator(
            self.split,
            imgsz=imgsz,
            split="val",  # also where the model is judged on test
            max_images=self.quick_images,
            batch=self.batch,
            device=self.device,
            by_size=False,
        )
        return lambda module: quick.accuracy(module, self.names)

    def calibration_batches(self, imgsz: ImageSize, images: int, seed: int) -> list[Tensor]:
        """Load letterboxed training images."""
        return data.calibration_batches(self.split, imgsz, images=images, batch=self.batch, seed=seed)

    def calibration_labels(self, imgsz: ImageSize, images: int, seed: int) -> list[Labels]:
        """Read the boxes in these images."""
        return calibration_labels(self.split.yaml, imgsz, images=images, seed=seed, task=self.split.task)

    def image_files(self, count: int) -> list[Path]:
        """Return the first images of the split."""
        return list(self.split.image_files[:count])

    def look(self, module: nn.Module, imgsz: ImageSize, chosen: Sequence[int]) -> list[Look]:
        """Return what a module finds in some images, by their places among the sorted ids."""
        part = evaluate.chosen_images(self.split, chosen)
        quick = evaluate.Evaluator(part, imgsz=imgsz, batch=self.batch, device=self.device)
        return quick.look(module, self.names)

    def class_sizes(self) -> dict[str, int]:
        """Return the number of ground-truth boxes of each class."""
        return class_sizes(self.split.ground_truth)


@dataclass
class ClassTask:
    """Models that tell the class of an image, scored by top-1 accuracy."""

    split: ClassificationData
    names: Mapping[int, str]
    batch: int
    device: str
    workers: int
    metric: str = "top1"
    counted: str = "images"
    quick_images: int = 512

    def check_training_images(self) -> None:
        """Raise DataError when there are no training images that can be used; one warning lists broken ones."""
        classify.resolve_classes(self.split.folder, "train")

    def evaluate(
        self, module: nn.Module | ExportedModel, imgsz: ImageSize, exported: Path | None = None
    ) -> ClassifierResult:
        """Return top-1 and top-5 accuracy."""
        return classify.evaluate_classifier(
            module,
            self.split,
            imgsz=imgsz,
            batch=self.batch,
            device=self.device,
            workers=self.workers,
            names=self.names,
            exported=exported,
        )

    def scorer(self, imgsz: ImageSize) -> Callable[[nn.Module], float]:
        """Return a function that gives top-1 accuracy on some images of ``val``."""
        return classify.quick_top1(
            classify.resolve_classes(self.split.folder, "val"),
            self.names,
            imgsz=imgsz,
            max_images=self.quick_images,
            batch=self.batch,
            device=self.device,
        )

    def calibration_batches(self, imgsz: ImageSize, images: int, seed: int) -> list[Tensor]:
        """Load training images, cropped at the centre."""
        return classify.class_calibration_batches(
            self.split, imgsz, images=images, batch=self.batch, seed=seed
        )

    def calibration_labels(self, imgsz: ImageSize, images: int, seed: int) -> list[Labels]:
        """Return the class of each of these images."""
        return calibration_labels(self.split, imgsz, images=images, seed=seed)

    def image_files(self, count: int) -> list[Path]:
        """Return images spread over the classes of the split."""
        return self.split.spread(count)

    def look(self, module: nn.Module, imgsz: ImageSize, chosen: Sequence[int]) -> list[Look]:
        """Return the best class of some images, by their places in the host's order."""
        return classify.look(module, self.split, self.names, imgsz=imgsz, chosen=chosen, device=self.device)

    def class_sizes(self) -> dict[str, int]:
        """Return the number of images in each class's folder."""
        return self.split.class_sizes()


def open_task(
    loaded: LoadedModel | ExportedFile,
    source: str | Path,
    *,
    split: str,
    batch: int,
    device: str,
    workers: int,
    rect: bool = True,
) -> Task:
    """Find the data that a model is measured on.

    Args:
        loaded: The model, or a file that the host exported.
        source: A data yaml, or a folder of folders of images for a classifier.
        split: ``train``, ``val`` or ``test``.
        batch: Images per batch.
        device: The host's ``device``.
        workers: Loader processes.
        rect: Evaluate detectors on rectangles, as the host does; else on squares.

    Returns:
        How models like this one are measured on the split.

    Raises:
        DataError: The data is missing or broken, or has other classes than the model.
    """
    if loaded.task == "classify":
        folders = classify.resolve_classes(source, split)
        classify.check_class_count(loaded.names, folders)
        if isinstance(loaded, LoadedModel):
            classify.check_colour(loaded.module)
        return ClassTask(folders, loaded.names, batch, device, workers)
    boxes = data.resolve_data(source, split, task=loaded.task)
    data.check_classes(loaded.names, boxes)
    if isinstance(loaded, LoadedModel):
        data.check_channels(loaded.module, boxes.yaml)
    metric = scoring.METRIC_OF_TASK.get(loaded.task, "ap")
    return BoxTask(boxes, loaded.names, batch, device, workers, metric, rect=rect)
