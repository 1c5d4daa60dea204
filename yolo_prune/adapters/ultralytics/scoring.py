"""AP of what a validation found: of boxes by COCO's rules, and of masks, key points or oriented boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo_prune.accuracy.bootstrap import ImageSample
from yolo_prune.accuracy.coco import CocoResult, coco_ap_by_image
from yolo_prune.accuracy.number import Accuracy, accuracy_of_boxes, of_boxes_alone
from yolo_prune.accuracy.shapes import BOXES, MASKS, OBJECT_OF_BOX, POSES, Compared, Keypoints
from yolo_prune.adapters.ultralytics.data import YOLO_LABELS, DetectionData
from yolo_prune.adapters.ultralytics.oriented import HostMatches
from yolo_prune.errors import DataError

AP_FIELDS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
METRIC_OF_TASK = {"segment": "mask_ap", "pose": "keypoint_ap", "obb": "oriented_ap"}
"""What models are judged by, as a row of the report calls it, where they find more than boxes."""
SHAPE_KEYS = {"segment": MASKS.key, "pose": Keypoints.key, "obb": MASKS.key}
"""How COCO calls what a task finds beside upright boxes; the corners of oriented ones are polygons."""


@dataclass(frozen=True)
class OwnAp:
    """AP of what a task is about: masks, key points or oriented boxes.

    Attributes:
        ap: Averaged over IoU (of key points OKS) 0.50 to 0.95 and over classes, in [0, 1].
        ap50: At IoU or OKS 0.50, in [0, 1].
        per_class: AP of every class that has an object.
        evaluator: What computed it, and how.
    """

    ap: float
    ap50: float
    per_class: dict[str, float]
    evaluator: str


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found: different mean APs, never to be mixed.

    Attributes:
        coco: AP of boxes in the numbers of pycocotools; of oriented ones, of the upright boxes around them.
        host_map: mAP 0.50 to 0.95 of what the task is about as the host defines it, in [0, 1].
        host_map50: The same at 0.50, in [0, 1].
        images: Number of images.
        source: Where the ground truth of ``coco`` came from.
        task: The host's name for what the model does.
        notes: Things to know, in sentences.
        own: AP of masks, key points or oriented boxes, None of a model that finds boxes alone.
        sample: What was found in each image, of what the task is about.
        box_sample: The same of boxes.
    """

    coco: CocoResult
    host_map: float
    host_map50: float
    images: int
    source: str
    task: str = "detect"
    notes: tuple[str, ...] = ()
    own: OwnAp | None = None
    sample: ImageSample | None = field(default=None, repr=False, compare=False)
    box_sample: ImageSample | None = field(default=None, repr=False, compare=False)

    @property
    def scores(self) -> dict[str, float | None]:
        """AP by the names that a row of the report has for it."""
        metric = METRIC_OF_TASK.get(self.task, "")
        own = {metric: self.own.ap, f"{metric}50": self.own.ap50} if self.own else {}
        return {**own, **{name: getattr(self.coco, name) for name in AP_FIELDS}}

    @property
    def host_scores(self) -> dict[str, float]:
        """The host's own numbers, by name; nothing where the accuracy is the host's already."""
        return {} if self.task == "obb" else {"map": self.host_map, "map50": self.host_map50}

    @property
    def per_class(self) -> dict[str, float]:
        """AP of every class that has an object, of what the task is about."""
        return self.own.per_class if self.own else self.coco.per_class

    @property
    def boxes(self) -> int:
        """Number of ground-truth boxes."""
        return self.coco.boxes

    @property
    def of_files(self) -> Accuracy:
        """AP of its boxes alone."""
        notes = of_boxes_alone(self.ap_of, METRIC_OF_TASK[self.task]) if self.own else self.notes
        return accuracy_of_boxes(self.coco, self.source, self.box_sample, notes)

    @property
    def ap_of(self) -> str:
        """Which boxes ``ap`` is of."""
        return "upright boxes" if self.task == "obb" else "boxes"

    @property
    def evaluator(self) -> str:
        """What computed AP, from which ground truth."""
        own = self.own.evaluator if self.own else self.coco.evaluator
        upright = f"; upright boxes: {self.coco.evaluator}" if self.task == "obb" else ""
        return f"{own}{upright}, {self.source}"


def detections_of(validator: Any, data: DetectionData) -> list[dict[str, Any]]:
    """Return what a validator collected; an image that the host left out is an error, not a lower AP."""
    seen = set(validator.files)
    missing = [path for path in data.image_ids if path not in seen]
    if missing:
        raise DataError(
            f"the host skipped {len(missing)} of {len(data.image_ids)} images as corrupt, "
            f"for example {missing[0]}."
        )
    return [
        {
            "image_id": data.image_ids[each.path],
            "category_id": data.category_ids[each.kind],
            "bbox": each.box,
            "score": each.score,
            **({} if each.shape is None else {SHAPE_KEYS[validator.args.task]: each.shape}),
        }
        for each in validator.found
    ]


def notes_on(data: DetectionData, task: str) -> tuple[str, ...]:
    """Say what COCO's rules leave out of a ground truth."""
    if task != "pose":
        return ()
    counts = Counter((each["image_id"], each["category_id"]) for each in data.ground_truth["annotations"])
    images = {image for (image, _), count in counts.items() if count > POSES}
    return (
        (
            f"{len(images)} images have more than {POSES} objects of a class, of which COCO's AP of key points "
            f"can find {POSES}.",
        )
        if images
        else ()
    )


def own_score(
    validator: Any, data: DetectionData, task: str, detections: Sequence[Mapping[str, Any]]
) -> tuple[OwnAp | None, ImageSample | None]:
    """Score what a task is about beside its boxes."""
    if task in METRIC_OF_TASK and task != data.task:
        raise DataError(
            f"the data was opened for '{data.task}' and the model's task is '{task}': open it with task='{task}'."
        )
    if task == "obb":
        return _oriented(validator, data)
    compared = _compared(validator, data, task)
    if compared is BOXES:
        return None, None
    seen = [each for each in detections if compared.key in each]
    found, sample = coco_ap_by_image(data.ground_truth, seen, by_size=False, compared=compared)
    how = "masks at the size of the original image"
    if isinstance(compared, Keypoints):
        how = compared.terms
    return OwnAp(found.ap, found.ap50, found.per_class, f"{found.evaluator} ({how})"), sample


def _compared(validator: Any, data: DetectionData, task: str) -> Compared:
    """Return what COCO compares objects of a task by."""
    if task == "pose":
        share = OBJECT_OF_BOX if data.source == YOLO_LABELS else 1.0
        return Keypoints(tuple(float(sigma) for sigma in validator.sigma), share)
    return MASKS if task == "segment" else BOXES


def _oriented(validator: Any, data: DetectionData) -> tuple[OwnAp, ImageSample]:
    """Return the host's own mAP of oriented boxes, and its matches, of the images in the order of their ids."""
    from ultralytics import __version__ as host_version

    box = validator.metrics.box
    kinds = (int(kind) for kind in box.ap_class_index)
    per_class = {str(validator.names[kind]): float(ap) for kind, ap in zip(kinds, box.ap, strict=True)}
    how = f"the validation of Ultralytics {host_version}"
    pairs = zip(validator.files, validator.matched, strict=True)
    matched = [each for _, each in sorted(pairs, key=lambda pair: data.image_ids[pair[0]])]
    return OwnAp(float(box.map), float(box.map50), per_class, how), HostMatches.from_images(matched)


def host_metric(validator: Any, task: str) -> Any:
    """Return the host's own numbers of what a task is about."""
    return getattr(validator.metrics, {"segment": "seg", "pose": "pose"}.get(task, "box"))
