"""AP of a module through the host's own validation: its letterbox, its NMS, its class order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from yolo_prune.accuracy.coco import CocoResult, coco_ap_by_image
from yolo_prune.accuracy.looks import Look, looks_of
from yolo_prune.adapters.ultralytics.anatomy import STRIDE, stride_of
from yolo_prune.adapters.ultralytics.data import (
    DetectionData,
    check_channels,
    check_classes,
    resolve_data,
)
from yolo_prune.adapters.ultralytics.exported import ExportedModel
from yolo_prune.adapters.ultralytics.scoring import (
    SHAPE_KEYS,
    EvalResult,
    detections_of,
    host_metric,
    notes_on,
    own_score,
)
from yolo_prune.errors import DataError
from yolo_prune.imgsz import ImageSize, is_square, rounded_up
from yolo_prune.progress import track

_RULES = {"rect": True, "iou": 0.7, "max_det": 300}  # the defaults of the host's own ``val``


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

    Segmentation models are scored by COCO's mask AP, masks compared at the size of the original image, pose models by
    COCO's AP of key points (OKS), models of oriented boxes by the host's own mAP of those; and all of them by their
    boxes, too, oriented ones by the upright boxes around theirs.
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
        AP and the host's own mAP of the same detections.

    Raises:
        DataError: The data is missing or broken, has other classes or lacks what the task is about, or the model finds
            no boxes.
    """
    from yolo_prune.adapters.ultralytics.validator import collecting_validator, task_of, validate

    resolved = resolve_data(data, split, task=task_of(module))
    names = class_names(module, names)
    check_classes(names, resolved)
    options: dict[str, Any] = {"task": task_of(module), "batch": batch}
    options["data"] = os.fspath(resolved.file)
    options |= {"device": str(device), "split": split, "workers": workers, **_RULES, "rect": rect}
    notes = notes_on(resolved, options["task"])
    if isinstance(module, ExportedModel):
        module.check_input(imgsz, int(resolved.yaml.get("channels", 3)))
        notes += module.notes
    else:
        check_channels(module, resolved.yaml)
    size = rounded_up(imgsz, STRIDE)
    validator = validate(
        collecting_validator(module), module, size, names=names, options=options, exported=exported
    )
    detections = detections_of(validator, resolved)
    coco, sample = coco_ap_by_image(resolved.ground_truth, detections)
    own, own_sample = own_score(validator, resolved, options["task"], detections)
    host = host_metric(validator, options["task"])
    return EvalResult(
        coco=coco,
        host_map=float(host.map),
        host_map50=float(host.map50),
        images=len(validator.files),
        source=resolved.source,
        task=options["task"],
        notes=notes,
        own=own,
        sample=own_sample or sample,
        box_sample=sample,
    )


def class_names(module: nn.Module | ExportedModel, names: Mapping[int, str] | None) -> dict[int, str]:
    """Return the class names given, else the module's own."""
    known: Any = names if names is not None else getattr(module, "names", None)
    if not known:
        raise DataError("the model does not say which classes it finds: pass names={0: ...}.")
    return dict(known) if isinstance(known, Mapping) else dict(enumerate(known))


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
    """AP of many modules on the same images, which are loaded and resized only once.

    It gives the AP of ``evaluate_detector`` (same images, shapes and NMS) without reading them again; the host's own
    mAP is computed of oriented boxes alone. Memory: 3 bytes a pixel, 0.3 MB an image at 320 pixels, 1.2 MB at 640.

    Example:
        >>> evaluate = Evaluator("data.yaml", imgsz=320, max_images=64)  # doctest: +SKIP
        >>> [evaluate(module).ap for module in candidates]  # doctest: +SKIP
    """

    def __init__(
        self,
        data: str | Path | DetectionData,
        *,
        imgsz: ImageSize,
        split: str | None = None,
        max_images: int | None = None,
        batch: int = 16,
        device: str = "cpu",
        by_size: bool = True,
        task: str = "detect",
    ) -> None:
        """Choose the images; they are loaded at the first call.

        Args:
            data: A data yaml, or what ``resolve_data`` returned.
            imgsz: Longest side of the input, or its height and width, in pixels; rounded up to multiples of 32.
            split: ``train``, ``val`` or ``test``; None: that of a resolved split, of all else ``val``.
            max_images: At most so many images, spread evenly over the sorted list; None takes all.
            batch: Images per batch.
            device: The host's ``device``.
            by_size: Score small, medium and large boxes for themselves too, which takes longer.
            task: The host's name for what the modules do; a resolved split has its own.

        Raises:
            DataError: The data is missing or broken, or the chosen images hold no box.
        """
        if split is None:
            split = data.split if isinstance(data, DetectionData) else "val"
        self.data = _slice(resolve_data(data, split, task=task), max_images)
        self._imgsz = rounded_up(imgsz, STRIDE)
        self._batch = batch
        self._device = str(device)
        self._by_size = by_size
        self._loaded: dict[tuple[int, bool], _Loaded] = {}

    def __call__(self, module: nn.Module, names: Mapping[int, str] | None = None) -> CocoResult:
        """Return COCO AP of one module's boxes; it is not changed.

        Args:
            module: A model of the host.
            names: Class index -> name, where the module has none or others.

        Raises:
            DataError: The number of classes differs, an image is unreadable, or the model finds no boxes.
        """
        found = detections_of(self._validated(module, names), self.data)
        return coco_ap_by_image(self.data.ground_truth, found, by_size=self._by_size)[0]

    def accuracy(self, module: nn.Module, names: Mapping[int, str] | None = None) -> float:
        """Return AP of what one module's task is about, in [0, 1]: of masks, key points, oriented boxes, else boxes.

        Args:
            module: A model of the host.
            names: Class index -> name, where the module has none or others.

        Raises:
            DataError: As for a call.
        """
        validator = self._validated(module, names)
        found, task = detections_of(validator, self.data), str(validator.args.task)
        own, _ = own_score(validator, self.data, task, found)
        return own.ap if own else coco_ap_by_image(self.data.ground_truth, found, by_size=False)[0].ap

    def look(self, module: nn.Module, names: Mapping[int, str] | None = None) -> list[Look]:
        """Return what one module finds in each image, beside what is there: the corners of oriented boxes, too."""
        validator = self._validated(module, names, corners=True)
        files = {number: Path(path) for path, number in self.data.image_ids.items()}
        found = detections_of(validator, self.data)
        return looks_of(files, self.data.ground_truth, found, SHAPE_KEYS.get(str(validator.args.task)))

    def _validated(self, module: nn.Module, names: Mapping[int, str] | None, *, corners: bool = False) -> Any:
        """Run the host's validation on the loaded images."""
        from yolo_prune.adapters.ultralytics.validator import (
            collecting_validator,
            is_stretched,
            task_of,
            validate,
        )

        names = class_names(module, names)
        check_classes(names, self.data)
        check_channels(module, self.data.yaml)
        options: dict[str, Any] = {"task": task_of(module), "data": os.fspath(self.data.file)}
        scored = {"host_score": options["task"] == "obb", "corners": corners}
        validator_class = type("FastValidator", (collecting_validator(module),), scored)
        options |= {
            **_RULES,
            "batch": self._batch,
            "device": self._device,
            "split": self.data.split,
            "workers": 0,
        }
        loader = self._load(stride_of(module), is_stretched(module), options["task"])
        return validate(validator_class, module, self._imgsz, names=names, options=options, loader=loader)

    def _load(self, stride: int, stretched: bool, task: str) -> _Loaded:
        """Return the images for a stride, loading them when it is the first module that needs them."""
        from yolo_prune.adapters.ultralytics.images import listed, oriented_labels

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
            labels = oriented_labels(self.data.label_files, len(self.data.names)) if task == "obb" else None
            images = listed(
                files,
                self._imgsz,
                self.data.yaml,
                sizes=sizes,
                stretched=stretched,
                labels=labels,
                **rules,
            )
            self._loaded[key] = _Loaded(images, self._batch)
        return self._loaded[key]


def _slice(data: DetectionData, max_images: int | None) -> DetectionData:
    """Keep ``max_images`` images, spread evenly over the list, and their ground truth."""
    count = len(data.image_files)
    if max_images is None or max_images >= count:
        return data
    part = _taken(data, np.linspace(0, count - 1, max_images).round().astype(int).tolist())
    if not part.ground_truth["annotations"]:
        raise DataError(f"the {max_images} images chosen from {data.file} hold no boxes: take more images.")
    return part


def chosen_images(data: DetectionData, places: Sequence[int]) -> DetectionData:
    """Keep the images at some places among the sorted ids."""
    numbers = [data.image_ids[os.fspath(path)] for path in data.image_files]
    by_id = sorted(range(len(numbers)), key=numbers.__getitem__)
    return _taken(data, [by_id[place] for place in places])


def _taken(data: DetectionData, chosen: Sequence[int]) -> DetectionData:
    files = tuple(data.image_files[index] for index in chosen)
    image_ids = {os.fspath(path): data.image_ids[os.fspath(path)] for path in files}
    ids = set(image_ids.values())
    truth = {
        "images": [each for each in data.ground_truth["images"] if each["id"] in ids],
        "annotations": [each for each in data.ground_truth["annotations"] if each["image_id"] in ids],
        "categories": data.ground_truth["categories"],
    }
    return replace(
        data,
        image_files=files,
        label_files=tuple(data.label_files[index] for index in chosen),
        ground_truth=truth,
        image_ids=image_ids,
    )
