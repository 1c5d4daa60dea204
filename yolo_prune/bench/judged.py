"""Accuracy of the very files that are timed, in the process that times them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.errors import CheckpointError, YoloPruneError

if TYPE_CHECKING:
    from yolo_prune.accuracy.box_data import BoxData
    from yolo_prune.accuracy.classes import ClassificationData
    from yolo_prune.accuracy.deployed import DeployedModel
    from yolo_prune.imgsz import ImageSize
    from yolo_prune.runtimes.runtime import Runtime


@dataclass(frozen=True)
class Judged:
    """What timed files are judged by afterwards.

    Attributes:
        data: Images, with what is on them.
        names: The candidates to judge; it takes a step for every image.
    """

    data: BoxData | ClassificationData
    names: Sequence[str]

    def save(self, file: Path) -> dict[str, Any]:
        """Write the data for the process that measures, and return the request."""
        file.write_bytes(pickle.dumps(self.data))
        return {"data": str(file), "names": list(self.names)}


@dataclass(frozen=True)
class FileAccuracy:
    """Accuracy of a file on its runtime, every image padded (or cropped) to its input.

    Attributes:
        metric: ``ap`` of boxes or ``top1``; None where it was not measured.
        value: In [0, 1].
        low: Lower bound of its 95 % interval over the choice of images.
        high: Upper bound.
        images: On how many.
        notes: What a reader has to know, in sentences.
        not_measured: Why there is none.
    """

    metric: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    images: int | None = None
    notes: tuple[str, ...] = ()
    not_measured: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> FileAccuracy:
        """Make it of what the process that measures sent."""
        return replace(cls(**values), notes=tuple(values["notes"]))


def judge(
    request: Mapping[str, Any],
    runtimes: Mapping[str, Runtime],
    models: Mapping[str, Callable[[], DeployedModel | None]],
    sizes: Mapping[str, ImageSize],
    batch: int,
    watch: Callable[[range, str], Iterator[int]],
) -> dict[str, FileAccuracy]:
    """Evaluate candidates one after the other.

    Args:
        request: What :meth:`Judged.save` returned.
        runtimes: The candidates that were timed, by name.
        models: What the output of each means.
        sizes: Of the input of each in pixels.
        batch: Images at once.
        watch: Shows how far it is.
    """
    data = pickle.loads(Path(request["data"]).read_bytes())
    found = {}
    for name in request["names"]:
        if name in runtimes:
            try:
                found[name] = _of_one(runtimes[name], models[name](), data, sizes[name], batch, watch)
            except YoloPruneError as error:
                found[name] = FileAccuracy(not_measured=str(error).removesuffix("."))
    return found


def _of_one(
    runtime: Runtime,
    model: DeployedModel | None,
    data: BoxData | ClassificationData,
    imgsz: ImageSize,
    batch: int,
    watch: Callable[[range, str], Iterator[int]],
) -> FileAccuracy:
    from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy
    from yolo_prune.accuracy.deployed import check_installed, file_accuracy

    if model is None:
        raise CheckpointError("the file does not say its task, classes and image size")
    check_installed(model.task)
    result = file_accuracy(runtime, model, data, imgsz=imgsz, batch=batch, watch=watch)
    bounds = None if result.sample is None else interval_of(resampled_accuracy(result.sample))
    low, high = (bounds.low, bounds.high) if bounds else (None, None)
    return FileAccuracy(result.metric, result.value, low, high, result.images, result.notes)
