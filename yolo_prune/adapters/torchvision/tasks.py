"""How models of this host are measured: COCO AP of boxes, top-1 of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.accuracy.bootstrap import ImageMatches
from yolo_prune.accuracy.box_data import BoxData, read_boxes
from yolo_prune.accuracy.classes import read_class_folders
from yolo_prune.accuracy.coco import CocoResult, coco_ap_by_image
from yolo_prune.accuracy.labels import class_sizes
from yolo_prune.accuracy.looks import Look, looks_of
from yolo_prune.accuracy.number import Accuracy, accuracy_of_boxes, of_boxes_alone
from yolo_prune.accuracy.shapes import BOXES, Compared
from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.torchvision import files as stored
from yolo_prune.adapters.torchvision.build import coco_names, may_lack_background
from yolo_prune.adapters.torchvision.classify import ClassTask
from yolo_prune.adapters.torchvision.described import CLASSIFY, Described, described
from yolo_prune.adapters.torchvision.detector import is_stretched
from yolo_prune.adapters.torchvision.exported import ExportedNetwork
from yolo_prune.adapters.torchvision.found import METRICS, as_coco, compared_by, shape_found
from yolo_prune.adapters.torchvision.framing import box_labels, drawn, load_framed
from yolo_prune.criteria.calibration import Labels
from yolo_prune.errors import DataError
from yolo_prune.graph.modes import evaluating
from yolo_prune.imgsz import ImageSize
from yolo_prune.progress import LOGGER, track
from yolo_prune.runtimes.framing import Frame

_Framed = tuple[Tensor, list[Frame], tuple[int, ...]]  # images, where they lie, their ids
_SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class BoxResult:
    """What one evaluation of a detector found.

    Attributes:
        coco: AP of boxes as COCO defines it, in the numbers of pycocotools.
        source: Where the ground truth came from.
        notes: What AP leaves out of what the model finds, in sentences.
        metric: What models are judged by.
        own: AP of masks or key points, None of boxes alone.
        how: How those are compared.
        sample: What was found in each image, of what models are judged by.
        box_sample: The same of boxes.
    """

    coco: CocoResult
    source: str
    notes: tuple[str, ...] = ()
    metric: str = "ap"
    own: CocoResult | None = None
    how: str = ""
    sample: ImageMatches | None = field(default=None, repr=False, compare=False)
    box_sample: ImageMatches | None = field(default=None, repr=False, compare=False)

    @property
    def images(self) -> int:
        """Number of images."""
        return self.coco.images

    @property
    def scores(self) -> dict[str, float | None]:
        """AP by the names that a row of the report has for it."""
        own = {self.metric: self.own.ap, f"{self.metric}50": self.own.ap50} if self.own else {}
        return {**own, **{name: getattr(self.coco, name) for name in _SCORES}}

    @property
    def host_scores(self) -> dict[str, float]:
        """Nothing: the host has no numbers of its own."""
        return {}

    @property
    def per_class(self) -> dict[str, float]:
        """AP of every class that has an object."""
        return (self.own or self.coco).per_class

    @property
    def boxes(self) -> int:
        """Number of ground-truth boxes."""
        return self.coco.boxes

    @property
    def of_files(self) -> Accuracy:
        """AP of its boxes alone."""
        notes = of_boxes_alone(self.ap_of, self.metric) if self.own else self.notes
        return accuracy_of_boxes(self.coco, self.source, self.box_sample, notes)

    @property
    def ap_of(self) -> str:
        """Which boxes AP is of."""
        return "boxes"

    @property
    def evaluator(self) -> str:
        """What computed AP, from which ground truth."""
        how = f" ({self.how})" if self.own else ""
        return f"{self.coco.evaluator}{how}, {self.source}"


@dataclass
class BoxTask:
    """Detectors, scored by COCO AP of boxes, masks or key points at the thresholds that they were built with."""

    split: BoxData
    source: str
    labels: tuple[int, ...]
    notes: tuple[str, ...]
    stretched: bool
    batch: int
    device: str
    shape: str = "detect"
    compared: Compared = BOXES
    how: str = ""
    metric: str = "ap"
    counted: str = "boxes"
    quick_images: int = 128

    def check_training_images(self) -> None:
        """Raise DataError when there are no training images."""
        self._train()

    def evaluate(self, module: nn.Module, imgsz: ImageSize, exported: Path | None = None) -> BoxResult:
        """Return COCO AP."""
        batches = self._loaded(self.split, imgsz)
        found = self._find(module, track(batches, "Evaluating", total=self._steps(self.split)))
        truth, own = self.split.ground_truth, None
        coco, of_boxes = coco_ap_by_image(truth, found)
        sample = of_boxes
        if self.compared is not BOXES:
            own, sample = coco_ap_by_image(truth, found, by_size=False, compared=self.compared)
        return BoxResult(coco, self.split.source, self.notes, self.metric, own, self.how, sample, of_boxes)

    def scorer(self, imgsz: ImageSize) -> Callable[[nn.Module], float]:
        """Return a function that gives COCO AP on some images of ``val``."""
        part = read_boxes(self.source, "val", self.shape).part(self.quick_images)
        return self.scorer_on(part, imgsz)

    def scorer_on(self, part: BoxData, imgsz: ImageSize) -> Callable[[nn.Module], float]:
        """Return a function that gives COCO AP on these images, which are loaded once."""
        held: list[_Framed] = []

        def score(module: nn.Module) -> float:
            if not held:
                loading = self._loaded(part, imgsz)
                held.extend(
                    (_as_bytes(x), frames, ids)
                    for x, frames, ids in track(loading, "Loading images", self._steps(part))
                )
            found = self._find(module, ((x.float() / 255, frames, ids) for x, frames, ids in held))
            return coco_ap_by_image(part.ground_truth, found, by_size=False, compared=self.compared)[0].ap

        return score

    def calibration_batches(self, imgsz: ImageSize, images: int, seed: int) -> list[Tensor]:
        """Load framed training images."""
        files = drawn(self._train().image_files, images, seed)
        loaded = load_framed(files, imgsz, self.stretched)[0]
        return list(torch.split(loaded, self.batch))

    def calibration_labels(self, imgsz: ImageSize, images: int, seed: int) -> list[Labels]:
        """Return the boxes in these images."""
        return box_labels(self._train(), imgsz, images, seed, stretched=self.stretched)

    def image_files(self, count: int) -> list[Path]:
        """Return the first images of the split."""
        return list(self.split.image_files[:count])

    def look(self, module: nn.Module, imgsz: ImageSize, chosen: Sequence[int]) -> list[Look]:
        """Return what a module finds in some images, by their places among the sorted ids."""
        by_id = sorted(range(len(self.split.image_ids)), key=self.split.image_ids.__getitem__)
        part = self.split.chosen([by_id[place] for place in chosen])
        files = dict(zip(part.image_ids, part.image_files, strict=True))
        found = self._find(module, self._loaded(part, imgsz))
        shape = None if self.compared is BOXES else self.compared.key
        return looks_of(files, part.ground_truth, found, shape)

    def class_sizes(self) -> dict[str, int]:
        """Return the number of ground-truth boxes of each class."""
        return class_sizes(self.split.ground_truth)

    def _train(self) -> BoxData:
        return read_boxes(self.source, "train")

    def _steps(self, part: BoxData) -> int:
        return -(-len(part.image_files) // self.batch)

    def _loaded(self, part: BoxData, imgsz: ImageSize) -> Iterator[_Framed]:
        for at in range(0, len(part.image_files), self.batch):
            chosen = slice(at, at + self.batch)
            images, frames = load_framed(part.image_files[chosen], imgsz, self.stretched)
            yield images, frames, part.image_ids[chosen]

    def _find(self, module: nn.Module, batches: Iterable[_Framed]) -> list[dict[str, Any]]:
        """Return what a model finds, as COCO results in pixels of the images."""
        category = {label: self.split.category_ids[index] for index, label in enumerate(self.labels)}
        found: list[dict[str, Any]] = []
        with evaluating(module), torch.inference_mode():
            for images, frames, ids in batches:
                outputs = module(list(images.to(self.device)))
                for one, frame, image_id in zip(outputs, frames, ids, strict=True):
                    found += as_coco(one, frame, image_id, category, self.compared)
        return found


def _as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def open_task(module: nn.Module, source: str | Path, *, split: str, batch: int, device: str) -> Task:
    """Find the data that a model is measured on, and write on the model what its classes are called.

    Raises:
        DataError: The data is missing or broken, or has other classes than the model.
    """
    what = described(module)
    if what.task == CLASSIFY:
        folders = read_class_folders(source, split)
        names = tuple(folders.names.values())
        labels = match_classes(what, names, str(source))
        stored.renamed(module, names, labels, None)
        return ClassTask(folders, batch, device, f"yolo_prune, with {what.architecture}")
    shape = shape_found(module)
    data = read_boxes(source, split, shape)
    names = tuple(data.names.values())
    labels = match_classes(what, names, str(source))
    stored.renamed(module, names, labels, str(_example(data)))
    compared, how, notes = compared_by(module, data)
    metric = METRICS[shape] if compared is not BOXES else METRICS["detect"]
    return BoxTask(
        *(data, str(source), labels, notes, _is_stretched(module), batch, device, shape, compared, how),
        metric=metric,
    )


def _example(data: BoxData) -> Path:
    """Return the image with the most boxes: a second stage has something to run on there."""
    most = max(range(len(data.image_files)), key=lambda at: (len(data.targets[at][0]), -at))
    return data.image_files[most].resolve()


def _is_stretched(module: nn.Module) -> bool:
    return module.stretched if isinstance(module, ExportedNetwork) else is_stretched(module)


def match_classes(what: Described, names: Sequence[str], source: str) -> tuple[int, ...]:
    """Return what a network calls each class of a data set.

    Args:
        what: The network.
        names: Classes of the data, in their order.
        source: The data, for the error.

    Raises:
        DataError: The network has other classes.
    """
    if what.names:
        if len(what.names) != len(names):
            raise DataError(f"the model has {len(what.names)} classes and {source} has {len(names)}.")
        if what.names != tuple(names):
            LOGGER.warning(
                "the class names of the model and of %s differ; classes are matched by index.", source
            )
        return what.labels
    possible = what.every_label
    if len(possible) == len(names):
        return possible
    if what.task != CLASSIFY:
        if may_lack_background(what.architecture) and what.outputs == len(names):
            return tuple(range(what.outputs))
        known = coco_names() if what.outputs == len(coco_names()) else ()
        if known and set(names) <= set(known):
            return tuple(known.index(name) for name in names)
    background = " (and the background)" if what.task != CLASSIFY else ""
    raise DataError(
        f"the weights tell {len(possible)} classes{background} apart, and {source} has {len(names)}: give the data "
        "that they were trained on."
    )
