"""Accuracy of an exported file as it is deployed: on its own runtime, without torch and without its host."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.box_data import BoxData, read_boxes
from yolo_prune.accuracy.classes import ClassificationData, read_class_folders, score_classes
from yolo_prune.accuracy.number import Accuracy, accuracy_of_boxes
from yolo_prune.errors import ConfigError, DataError, MissingRuntimeError
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.progress import track
from yolo_prune.runtimes.detections import QUERIES, SCORED, decode
from yolo_prune.runtimes.framing import framed
from yolo_prune.runtimes.images import check_reader, read_image
from yolo_prune.runtimes.runtime import Runtime

_WITHOUT_BOXES = ("obb",)
_Watch = Callable[[range, str], Iterable[int]]


@dataclass(frozen=True)
class DeployedModel:
    """What an exported file says that its output means.

    Attributes:
        task: ``detect``, ``classify`` or another of the host's names.
        names: Class index -> name.
        labels: What the output calls each of them, in their order.
        layout: Of its output: ``ANCHORS``, ``QUERIES`` or ``RANKED`` of :mod:`yolo_prune.runtimes.detections`.
        imgsz: Size of the input that it was exported at.
        stretched: Whether images are stretched to its input instead of padded.
        suppresses: Whether it drops unlikely boxes by itself, at its own thresholds.
    """

    task: str
    names: dict[int, str] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    layout: str
    imgsz: ImageSize
    stretched: bool = False
    suppresses: bool = False


def file_accuracy(
    runtime: Runtime,
    model: DeployedModel,
    data: str | BoxData | ClassificationData,
    *,
    imgsz: ImageSize,
    batch: int,
    split: str = "val",
    watch: _Watch = track,
) -> Accuracy:
    """Run a file on a split of data and score what it finds: COCO AP of boxes, of a classifier top-1.

    Boxes of a score above 0.001 count, for every class that has one; those of heads that leave it to the caller are
    suppressed at an IoU of 0.7 within their class; at most 300 an image. Every image is letterboxed to the input.

    Args:
        runtime: The file, opened for ``imgsz`` and ``batch``.
        model: What its output means.
        data: What :func:`read_boxes` takes; for a classifier a folder of folders of images; or a split of either.
        imgsz: Size of its input in pixels.
        batch: Images at once.
        split: ``train``, ``val`` or ``test``, of data that is read.
        watch: Shows how far it is: goes through a range under a few words.

    Raises:
        ConfigError: The file finds what has no upright boxes.
        DataError: The data is missing or broken, or has other classes.
        MissingRuntimeError: What reads images is not installed.
    """
    if model.task == "classify":
        folders = data if isinstance(data, ClassificationData) else read_class_folders(str(data), split)
        return _top1(runtime, model, folders, batch, watch)
    if model.task in _WITHOUT_BOXES:
        raise ConfigError(
            f"AP of a file is of upright boxes, and this file is a model of the task '{model.task}'."
        )
    boxes = data if isinstance(data, BoxData) else read_boxes(str(data), split)
    return _box_ap(runtime, model, boxes, imgsz, batch, watch)


def check_installed(task: str) -> None:
    """Refuse a measurement of accuracy whose packages are missing, before anything is measured.

    Raises:
        MissingRuntimeError: pycocotools, or what reads images, is not installed.
    """
    check_reader()
    if task == "classify":
        return
    try:
        importlib.import_module("pycocotools")
    except ImportError as error:
        raise MissingRuntimeError(
            'AP needs pycocotools, which is not installed: pip install "yolo-prune[accuracy]".'
        ) from error


def _box_ap(
    runtime: Runtime, model: DeployedModel, boxes: BoxData, imgsz: ImageSize, batch: int, watch: _Watch
) -> Accuracy:
    from yolo_prune.accuracy.coco import coco_ap_by_image

    notes = _matched(model, boxes.names, str(boxes.file))
    category = {label: boxes.category_ids[index] for index, label in enumerate(model.labels)}
    scale = np.tile(height_width(imgsz)[::-1], 2) if model.layout == QUERIES else np.ones(4)
    found: list[dict[str, Any]] = []
    ids = iter(boxes.image_ids)
    for files in _batches(boxes.image_files, batch, watch):
        pairs = [
            framed(read_image(file, runtime.channels), imgsz, stretched=model.stretched) for file in files
        ]
        output = _run(runtime, [image for image, _ in pairs], batch)
        for (_, frame), rows in zip(
            pairs, decode(output, model.layout, len(model.names), SCORED), strict=False
        ):
            image_id = next(ids)
            corners = frame.back((rows[:, :4] * scale).astype(np.float32))
            found += _as_coco(corners, rows, image_id, category)
    result, sample = coco_ap_by_image(boxes.ground_truth, found, by_size=False)
    if model.suppresses and model.layout != QUERIES:
        notes = (
            *notes,
            "The file suppresses boxes by itself, at its own thresholds: what it dropped is not in this AP.",
        )
    return accuracy_of_boxes(result, boxes.source, sample, notes)


def _as_coco(
    corners: NDArray[np.float32], rows: NDArray[np.float32], image_id: int, category: dict[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield COCO results in pixels of the image; labels that no class has are background."""
    for (left, top, right, bottom), score, label in zip(
        corners.tolist(), rows[:, 4].tolist(), rows[:, 5].astype(int).tolist(), strict=True
    ):
        if label in category:
            box = [left, top, right - left, bottom - top]
            yield {"image_id": image_id, "category_id": category[label], "bbox": box, "score": score}


def _top1(
    runtime: Runtime, model: DeployedModel, folders: ClassificationData, batch: int, watch: _Watch
) -> Accuracy:
    notes = _matched(model, folders.names, str(folders.folder))
    scores = []
    for files in _batches(folders.image_files, batch, watch):
        images = [read_image(file, runtime.channels) for file in files]
        scores.append(_run(runtime, images, batch)[: len(files), list(model.labels)])
    result = score_classes(
        np.concatenate(scores), np.array(folders.labels), folders.names, f"yolo_prune, {folders.root}"
    )
    return replace(result.of_files, notes=notes)


def _batches(files: Sequence[Path], batch: int, watch: _Watch) -> Iterator[Sequence[Path]]:
    for start in watch(range(0, len(files), batch), "Evaluating"):
        yield files[start : start + batch]


def _run(runtime: Runtime, images: list[NDArray[np.uint8]], batch: int) -> NDArray[np.float32]:
    """Run a batch, filled up with its last image where a file of fixed batch needs more."""
    filled = [*images, *images[-1:] * (batch - len(images))]
    return runtime.as_array(runtime.infer(runtime.preprocess(filled))[0])[: len(images)]


def _matched(model: DeployedModel, names: dict[int, str], data: str) -> tuple[str, ...]:
    """Compare classes by their number, and return a sentence where their names differ.

    Raises:
        DataError: There are more or fewer of them.
    """
    if len(model.names) != len(names):
        raise DataError(f"the file has {len(model.names)} classes and {data} has {len(names)}.")
    if list(model.names.values()) == list(names.values()):
        return ()
    return ("The class names of the file and of the data differ: classes were matched by index.",)
