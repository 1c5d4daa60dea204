"""One validation pass of the host on a copy of a module, keeping the detections that it does not round."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from ultralytics.models.rtdetr.val import RTDETRValidator
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.nn.tasks import RTDETRDetectionModel, guess_model_task
from ultralytics.utils import nms, ops

from yolo_prune.accuracy.shapes import DETECTIONS
from yolo_prune.adapters.ultralytics.anatomy import STRIDE
from yolo_prune.adapters.ultralytics.exported import ExportedModel
from yolo_prune.adapters.ultralytics.masks import original_masks
from yolo_prune.adapters.ultralytics.oriented import Matched
from yolo_prune.adapters.ultralytics.undisturbed import undisturbed
from yolo_prune.errors import DataError, one_line
from yolo_prune.imgsz import ImageSize, is_square, longer_side, plain_size
from yolo_prune.progress import track

_VALIDATORS: dict[str, type[DetectionValidator]] = {
    "detect": DetectionValidator,
    "segment": SegmentationValidator,
    "pose": PoseValidator,
    "obb": OBBValidator,
}
_MATCHES = ("tp", "conf", "pred_cls", "target_cls")
_LOADING_ERRORS = (RuntimeError, ValueError, OSError, KeyError)


class _PatientNms(DetectionValidator):  # type: ignore[misc]
    """The host's validator without its time limit on NMS: past it, images silently lose their detections.

    The limit is no option, and another value for everybody would be seen outside: the method is the host's own, with
    names of its own.
    """

    _host = DetectionValidator.postprocess
    _names: ClassVar = {
        **_host.__globals__,
        "nms": SimpleNamespace(non_max_suppression=partial(nms.non_max_suppression, max_time_img=math.inf)),
    }
    postprocess = FunctionType(_host.__code__, _names, _host.__name__, _host.__defaults__, _host.__closure__)


@contextmanager
def _quiet_torchscript() -> Iterator[None]:
    """Silence what torch says of the format of a file that somebody else has chosen."""
    with warnings.catch_warnings():
        # 2026-11: torch.jit.load is deprecated, and there is nothing else that runs a .torchscript file.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


class _Tracked:
    """A data loader under our own progress bar; everything else is the loader's."""

    def __init__(self, loader: Any, description: str) -> None:
        self._loader = loader
        self._description = description

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return track(self._loader, self._description, total=len(self._loader))


class Found(NamedTuple):
    """One detection.

    ``kind`` is its class, ``box`` x, y, width and height in pixels of the file, ``shape`` its mask or its key points;
    masks that COCO does not look at, because many are better, are not made.
    """

    path: str
    kind: int
    box: list[float]
    score: float
    shape: Any = None


class Collecting:
    """Mixin for the host's detection validators: keep every detection as a COCO result.

    Attributes:
        files: The images that went through, by path.
        found: The detections.
        matched: Of oriented boxes: what the host matched in each image, where its own metrics are computed.
        host_score: Whether the host's own metrics are computed as well.
        corners: Whether the corners of oriented boxes are kept.
    """

    host_score = True
    corners = False
    threads = 1
    stride: int
    metrics: Any
    process: Any
    args: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files: list[str] = []
        self.found: list[Found] = []
        self.matched: list[Matched] = []
        self._prototypes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def get_dataloader(self, dataset_path: Any, batch_size: int) -> _Tracked:
        """Build the host's loader; what is wrong with the data becomes a DataError."""
        host: Any = super()
        self.stride = max(int(self.stride), STRIDE)  # a checkpoint's is never less, an exported file's may be
        try:
            loader = host.get_dataloader(dataset_path, batch_size)
        except _LOADING_ERRORS as error:
            raise DataError(f"the host cannot load {dataset_path}: {one_line(error)}.") from error
        return _Tracked(loader, "Evaluating")

    def init_metrics(self, model: nn.Module) -> None:
        """Prepare the pass, without the host's own COCO evaluation and its choice of threads."""
        host: Any = super()
        host.init_metrics(model)
        self.args.save_json = False
        torch.set_num_threads(self.threads)
        if getattr(self, "process", None) is not None:
            self.process = partial(self._masks, self.process)

    def _masks(
        self, make: Any, prototypes: torch.Tensor, coefficients: torch.Tensor, boxes: torch.Tensor, shape: Any
    ) -> torch.Tensor:
        """Make the small masks that the host compares, and keep what the large ones are made from."""
        self._prototypes[id(boxes)] = (prototypes, coefficients)
        masks: torch.Tensor = make(prototypes, coefficients, boxes, shape=shape) if self.host_score else boxes
        return masks

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device; masks and keypoints are needed for the host's own metrics alone."""
        if not self.host_score:
            return dict(DetectionValidator.preprocess(self, batch))
        host: Any = super()
        return dict(host.preprocess(batch))

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Keep the detections of one batch, then let the host count them."""
        for index, prediction in enumerate(preds):
            self._keep(prediction, batch, index)
        self._prototypes.clear()
        if self.host_score:
            host: Any = super()
            host.update_metrics(preds, batch)
            if self.args.task == "obb":
                stats = [self.metrics.stats[name][-len(preds) :] for name in _MATCHES]
                self.matched += zip(*stats, strict=True)

    def get_stats(self) -> dict[str, Any]:
        """Return the host's metrics where they were computed."""
        host: Any = super()
        return dict(host.get_stats()) if self.host_score else {}

    def print_results(self) -> None:
        """Stay silent: the numbers are returned."""

    def _keep(self, prediction: Mapping[str, torch.Tensor], batch: Mapping[str, Any], index: int) -> None:
        """Keep one image's detections, with boxes in pixels of the image file."""
        boxes = prediction["bboxes"]
        if boxes.shape[-1] == 5:  # rotated: the upright box around it
            corners = ops.xywhr2xyxyxyxy(boxes)
            boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        frame: dict[str, Any] = {"imgsz": batch["img"].shape[2:]}
        frame.update({key: batch[key][index] for key in ("ori_shape", "ratio_pad")})
        scaled = DetectionValidator.scale_preds(self, {"bboxes": boxes}, frame)["bboxes"]
        xywh = torch.cat([scaled[:, :2], scaled[:, 2:4] - scaled[:, :2]], dim=1).tolist()
        path = os.fspath(Path(batch["im_file"][index]))
        classes, scores = prediction["cls"].tolist(), prediction["conf"].tolist()
        shapes = self._shapes(prediction, scaled, frame)
        self.files.append(path)
        self.found += [
            Found(path, int(each), box, score, shape)
            for each, box, score, shape in zip(classes, xywh, scores, shapes, strict=True)
        ]

    def _shapes(
        self, prediction: Mapping[str, torch.Tensor], boxes: torch.Tensor, frame: Mapping[str, Any]
    ) -> list[Any]:
        """Return masks, key points or, where asked for, corners of one image's detections, in pixels of the file."""
        if len(boxes) and self.corners and prediction["bboxes"].shape[-1] == 5:
            corners = ops.xywhr2xyxyxyxy(prediction["bboxes"]).clone().float()
            scaled = ops.scale_coords(
                frame["imgsz"], corners, frame["ori_shape"], ratio_pad=frame["ratio_pad"]
            )
            return [[each] for each in scaled.flatten(1).tolist()]
        if len(boxes) and "masks" in prediction:
            prototypes, coefficients = self._prototypes[id(prediction["bboxes"])]
            scored = _best_of_each(prediction["cls"].tolist(), DETECTIONS)
            made = original_masks(prototypes, coefficients[scored], boxes[scored], frame)
            masks = dict(zip(scored, made, strict=True))
            return [masks.get(index) for index in range(len(boxes))]
        if len(boxes) and "keypoints" in prediction:
            points = prediction["keypoints"].clone().float()
            points = ops.scale_coords(
                frame["imgsz"], points, frame["ori_shape"], ratio_pad=frame["ratio_pad"]
            )
            seen = points[..., 2:] if points.shape[-1] > 2 else torch.ones_like(points[..., :1])
            return list(torch.cat([points[..., :2], seen], dim=-1).flatten(1).tolist())
        return [None] * len(boxes)


def _best_of_each(classes: Sequence[float], most: int) -> list[int]:
    """Return which of the detections of an image, best first, are among the best so many of their class."""
    counts: Counter[float] = Counter()
    found = []
    for index, kind in enumerate(classes):
        counts[kind] += 1
        if counts[kind] <= most:
            found.append(index)
    return found


def task_of(module: nn.Module | ExportedModel) -> str:
    """Return the host's name for what a module does: ``detect``, ``segment``, ``pose``, ``obb``, ..."""
    known = getattr(module, "task", None) or ("detect" if is_stretched(module) else guess_model_task(module))
    return str(known)


def is_stretched(module: nn.Module | ExportedModel) -> bool:
    """Tell whether the module (RT-DETR) takes images stretched to a square instead of padded."""
    return module.stretched if isinstance(module, ExportedModel) else isinstance(module, RTDETRDetectionModel)


def collecting_validator(module: nn.Module | ExportedModel) -> type[Any]:
    """Return the host's validator for a module, mixed with ``Collecting``.

    Raises:
        DataError: The module finds no boxes.
    """
    task = task_of(module)
    if task not in _VALIDATORS:
        raise DataError(f"a '{task}' model finds no boxes: COCO AP is for {', '.join(_VALIDATORS)} models.")
    base = RTDETRValidator if is_stretched(module) else _VALIDATORS[task]
    bases = (_PatientNms,) if base is DetectionValidator else (base, _PatientNms)
    return type("CollectingValidator", (Collecting, *bases), {})


def classification_validator() -> type[Any]:
    """Return the host's validator for classifiers."""
    return type(
        "QuietClassificationValidator", (ClassificationValidator,), {"print_results": lambda self: None}
    )


def fix_shape_(validator: Any, imgsz: ImageSize) -> None:
    """Give every image the shape ``imgsz`` where that is no square: letterboxed, of RT-DETR and classifiers stretched.

    The host does so for files of fixed input. From its options it takes a square, whose images it batches by shape.
    """
    if not is_square(imgsz):
        validator.args.imgsz, validator.args.rect = plain_size(imgsz), False


def validate(
    validator_class: type[Any],
    module: nn.Module | ExportedModel,
    imgsz: ImageSize,
    *,
    names: Mapping[int, str],
    options: Mapping[str, Any],
    loader: Any = None,
    exported: Path | None = None,
) -> Any:
    """Run the host's validation on a copy of ``module`` and return the validator.

    Args:
        validator_class: From ``collecting_validator`` or ``classification_validator``.
        module: The model; it is not changed. Of an exported file, the batch is its own.
        imgsz: Size of the input, in pixels.
        names: Class index -> name.
        options: More keys of the host's configuration.
        loader: Batches to use instead of those the host would load.
        exported: A file made from the module, to run in its place; a fixed input gives every image its shape.
    """
    if isinstance(module, ExportedModel):
        options = options if module.dynamic else {**options, "batch": module.batch}
        model: Any = os.fspath(module.path)
    elif exported:
        model = os.fspath(exported)
    else:
        model = deepcopy(module).float().eval()
        model.names = dict(names)
    with undisturbed(), _quiet_torchscript(), tempfile.TemporaryDirectory() as folder:
        arguments = {"mode": "val", "plots": False, "verbose": False, "imgsz": longer_side(imgsz), **options}
        validator = validator_class(dataloader=loader, save_dir=Path(folder), args=arguments)
        fix_shape_(validator, imgsz)
        validator.threads = torch.get_num_threads()
        validator(model=model)
    return validator
