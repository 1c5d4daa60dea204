"""COCO AP of a module through the host's own validation: its letterbox, its NMS, its class order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from yolo_prune.accuracy.bootstrap import ImageMatches
from yolo_prune.accuracy.coco import CocoResult, coco_ap_by_image
from yolo_prune.adapters.ultralytics.anatomy import STRIDE, stride_of
from yolo_prune.adapters.ultralytics.data import (
    DetectionData,
    check_channels,
    check_classes,
    resolve_data,
)
from yolo_prune.adapters.ultralytics.exported import ExportedModel
from yolo_prune.errors import DataError
from yolo_prune.imgsz import ImageSize, is_square, rounded_up
from yolo_prune.progress import track

AP_FIELDS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_NOT_SCORED = {
    "segment": "AP is that of the boxes: masks were not scored.",
    "pose": "AP is that of the boxes: key points were not scored.",
    "obb": "AP is that of upright boxes: each oriented box, found or labelled, counts as the upright box around it.",
}
_RULES = {"rect": True, "iou": 0.7, "max_det": 300}  # the defaults of the host's own ``val``


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found: two different mean APs, never to be mixed.

    Attributes:
        coco: AP as COCO defines it, by pycocotools.
        host_map: mAP 0.50 to 0.95 as the host defines it, in [0, 1].
        host_map50: mAP at IoU 0.50 as the host defines it, in [0, 1].
        images: Number of images.
        source: Where the ground truth of ``coco`` came from.
        task: The host's name for what the model does.
        notes: What AP leaves out of what the model finds, and other things to know, in sentences.
        sample: What was found in each image.
    """

    coco: CocoResult
    host_map: float
    host_map50: float
    images: int
    source: str
    task: str = "detect"
    notes: tuple[str, ...] = ()
    sample: ImageMatches | None = field(default=None, repr=False, compare=False)

    @property
    def scores(self) -> dict[str, float | None]:
        """AP by the names that a row of the report has for it."""
        return {name: getattr(self.coco, name) for name in AP_FIELDS}

    @property
    def host_scores(self) -> dict[str, float]:
        """The host's own numbers, by name."""
        return {"map": self.host_map, "map50": self.host_map50}

    @property
    def per_class(self) -> dict[str, float]:
        """AP of every class that has a box."""
        return self.coco.per_class

    @property
    def boxes(self) -> int:
        """Number of ground-truth boxes."""
        return self.coco.boxes

    @property
    def ap_of(self) -> str:
        """Which boxes AP is of."""
        return "upright boxes" if self.task == "obb" else "boxes"

    @property
    def evaluator(self) -> str:
        """What computed AP, from which ground truth."""
        return f"{self.coco.evaluator}, {self.source}"


def evaluate_detector(
    module: nn.Module | ExportedModel,
    data: str | Path | DetectionData,
    *,
    imgsz: ImageSize,
    batch: int = 16,
    device: str = "cpu",
    split: str = "val",
    workers: int = 0,
    names: Mapping[int, str] | None = None,
    exported: Path | None = None,
    rect: bool = True,
) -> EvalResult:
    """Evaluate a detector in one pass of the host's validator (confidence 0.001, IoU 0.7, at most 300 boxes).

    Segmentation and pose models are scored by their boxes, oriented ones by the upright boxes around theirs.
    Like the host's ``val``, images are batched by shape and padded to rectangles; where ``imgsz`` is no square, every
    image is padded to that shape, as a deployed model of fixed input sees it.

    Args:
        module: A model of the host, of which a copy is fused and run, or a file that it exported.
        data: A data yaml, or what ``resolve_data`` returned.
        imgsz: Longest side of the input, or its height and width, in pixels; rounded up to multiples of 32.
        batch: Images per batch.
        device: The host's ``device``: ``cpu``, ``0``, ``cuda:0``, ``mps``.
        split: ``train``, ``val`` or ``test``.
        workers: Loader processes (the host uses none on a CPU).
        names: Class index -> name, where the module has none or others.
        exported: An .onnx file made from the module, to evaluate in its place; on squares, where its input is fixed.
        rect: Pad images to rectangles as the host's ``val`` does; else to squares, as a file of fixed input needs them.

    Returns:
        COCO AP and the host's own mAP of the same detections.

    Raises:
        DataError: The data is missing or broken or has other classes, or the model finds no boxes.
    """
    from yolo_prune.adapters.ultralytics.validator import collecting_validator, task_of, validate

    resolved = resolve_data(data, split, task=task_of(module))
    names = class_names(module, names)
    check_classes(names, resolved)
    options: dict[str, Any] = {"task": task_of(module), "batch": batch}
    options["data"] = os.fspath(resolved.file)
    options |= {"device": str(device), "split": split, "workers": workers, **_RULES, "rect": rect}
    notes = tuple(note for task, note in _NOT_SCORED.items() if task == options["task"])
    if isinstance(module, ExportedModel):
        module.check_input(imgsz, int(resolved.yaml.get("channels", 3)))
        notes += module.notes
    else:
        check_channels(module, resolved.yaml)
    size = rounded_up(imgsz, STRIDE)
    validator = validate(
        collecting_validator(module), module, size, names=names, options=options, exported=exported
    )
    coco, sample = _score(validator, resolved)
    return EvalResult(
        coco=coco,
        host_map=float(validator.metrics.box.map),
        host_map50=float(validator.metrics.box.map50),
        images=len(validator.files),
        source=resolved.source,
        task=options["task"],
        notes=notes,
        sample=sample,
    )


def class_names(module: nn.Module | ExportedModel, names: Mapping[int, str] | None) -> dict[int, str]:
    """Return the class names given, else the module's own."""
    known: Any = names if names is not None else getattr(module, "names", None)
    if not known:
        raise DataError("the model does not say which classes it finds: pass names={0: ...}.")
    return dict(known) if isinstance(known, Mapping) else dict(enumerate(known))


def _score(validator: Any, data: DetectionData, by_size: bool = True) -> tuple[CocoResult, ImageMatches]:
    """Score what a validator collected; an image that the host left out is an error, not a lower AP."""
    seen = set(validator.files)
    missing = [path for path in data.image_ids if path not in seen]
    if missing:
        raise DataError(
            f"the host skipped {len(missing)} of {len(data.image_ids)} images as corrupt, "
            f"for example {missing[0]}."
        )
    detections = [
        {
            "image_id": data.image_ids[path],
            "category_id": data.category_ids[index],
            "bbox": box,
            "score": score,
        }
        for path, index, box, score in validator.found
    ]
    return coco_ap_by_image(data.ground_truth, detections, by_size=by_size)


class _Loaded:
    """Batches in memory, in the form that the host's validator takes a data loader."""

    def __init__(self, dataset: Any, batch: int) -> None:
        self.dataset = dataset
        self.batch_size = batch
        starts = track(range(0, len(dataset), batch), "Loading images")
        self._batches = [
            dataset.collate_fn([dataset[index] for index in range(start, min(start + batch, len(dataset)))])
            for start in starts
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(batch) for batch in self._batches)  # the validator replaces entries


class Evaluator:
    """COCO AP of many modules on the same images, which are loaded and resized only once.

    It gives the AP of ``evaluate_detector`` (same images, shapes and NMS) without reading them again; the
    host's own mAP is not computed. Memory: 3 bytes a pixel, 0.3 MB an image at 320 pixels, 1.2 MB at 640.

    Example:
        >>> evaluate = Evaluator("data.yaml", imgsz=320, max_images=64)  # doctest: +SKIP
        >>> [evaluate(module).ap for module in candidates]  # doctest: +SKIP
    """

    def __init__(
        self,
        data: str | Path | DetectionData,
        *,
        imgsz: ImageSize,
        split: str = "val",
        max_images: int | None = None,
        batch: int = 16,
        device: str = "cpu",
        by_size: bool = True,
    ) -> None:
        """Choose the images; they are loaded at the first call.

        Args:
            data: A data yaml, or what ``resolve_data`` returned.
            imgsz: Longest side of the input, or its height and width, in pixels; rounded up to multiples of 32.
            split: ``train``, ``val`` or ``test``.
            max_images: At most so many images, spread evenly over the sorted list; None takes all.
            batch: Images per batch.
            device: The host's ``device``.
            by_size: Score small, medium and large boxes for themselves too, which takes longer.

        Raises:
            DataError: The data is missing or broken, or the chosen images hold no box.
        """
        self.data = _slice(resolve_data(data, split), max_images)
        self._imgsz = rounded_up(imgsz, STRIDE)
        self._batch = batch
        self._device = str(device)
        self._by_size = by_size
        self._loaded: dict[tuple[int, bool], _Loaded] = {}

    def __call__(self, module: nn.Module, names: Mapping[int, str] | None = None) -> CocoResult:
        """Evaluate one module; it is not changed.

        Args:
            module: A model of the host.
            names: Class index -> name, where the module has none or others.

        Raises:
            DataError: The number of classes differs, an image is unreadable, or the model finds no boxes.
        """
        from yolo_prune.adapters.ultralytics.validator import (
            collecting_validator,
            is_stretched,
            task_of,
            validate,
        )

        names = class_names(module, names)
        check_classes(names, self.data)
        check_channels(module, self.data.yaml)
        validator_class = type("FastValidator", (collecting_validator(module),), {"host_score": False})
        options: dict[str, Any] = {"task": task_of(module), "data": os.fspath(self.data.file)}
        options |= {
            **_RULES,
            "batch": self._batch,
            "device": self._device,
            "split": self.data.split,
            "workers": 0,
        }
        loader = self._load(stride_of(module), is_stretched(module))
        validator = validate(
            validator_class, module, self._imgsz, names=names, options=options, loader=loader
        )
        return _score(validator, self.data, self._by_size)[0]

    def _load(self, stride: int, stretched: bool) -> _Loaded:
        """Return the images for a stride, loading them when it is the first module that needs them."""
        from yolo_prune.adapters.ultralytics.images import listed

        key = (stride, stretched)
        if key not in self._loaded:
            files = self.data.image_files
            entries = {entry["id"]: entry for entry in self.data.ground_truth["images"]}
            found = (entries[number] for number in self.data.image_ids.values())
            sizes = [(entry["height"], entry["width"]) for entry in found]
            rules: dict[str, Any] = {
                "rect": is_square(self._imgsz) and not stretched,
                "batch_size": self._batch,
                "stride": stride,
                "pad": 0.5,
            }
            images = listed(files, self._imgsz, self.data.yaml, sizes=sizes, stretched=stretched, **rules)
            self._loaded[key] = _Loaded(images, self._batch)
        return self._loaded[key]


def _slice(data: DetectionData, max_images: int | None) -> DetectionData:
    """Keep ``max_images`` images, spread evenly over the list, and their ground truth."""
    count = len(data.image_files)
    if max_images is None or max_images >= count:
        return data
    chosen = np.linspace(0, count - 1, max_images).round().astype(int).tolist()
    files = tuple(data.image_files[index] for index in chosen)
    image_ids = {os.fspath(path): data.image_ids[os.fspath(path)] for path in files}
    ids = set(image_ids.values())
    truth = {
        "images": [each for each in data.ground_truth["images"] if each["id"] in ids],
        "annotations": [each for each in data.ground_truth["annotations"] if each["image_id"] in ids],
        "categories": data.ground_truth["categories"],
    }
    if not truth["annotations"]:
        raise DataError(f"the {max_images} images chosen from {data.file} hold no boxes: take more images.")
    return replace(
        data,
        image_files=files,
        label_files=tuple(data.label_files[index] for index in chosen),
        ground_truth=truth,
        image_ids=image_ids,
    )
