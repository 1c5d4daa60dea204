"""Draw the images on which the final model differs most from its parent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.bootstrap import SURE
from yolo_prune.accuracy.looks import Differing, Look, Thing, differing_images
from yolo_prune.errors import DataError, one_line
from yolo_prune.progress import LOGGER
from yolo_prune.report.examples import Example, Examples, clear_examples, write_examples
from yolo_prune.report.pictures import as_jpeg, draw
from yolo_prune.runs.job import PruneJob
from yolo_prune.runs.measure.speed import Evaluated
from yolo_prune.runtimes.images import read_image

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = 6
LARGEST = 300_000 * 3 // 4
"""Bytes of all pictures: 300 kB where they are embedded as text."""
_QUALITIES = (82, 65, 50)
_BY_F1 = (
    f"Chosen by how far F1 of the two models differs on an image (detections of a score of {SURE:g} or more, right at "
    "an overlap of 0.5 as the evaluator matched them). Yellow: what is there. Turquoise: found where the box of an "
    "object of that class is; red: found elsewhere."
)
_Panels = tuple[str, tuple[str, ...], "list[Image]"]
"""Name of the image, what is said of each column, and the pictures."""
_BY_CLASS = "Chosen among the images whose best class is right for one of the two models alone."


def save_examples(job: PruneJob, parent: Evaluated, final: Evaluated) -> None:
    """Write pictures of at most ``IMAGES`` images into the run folder, or why there are none."""
    try:
        examples, pictures = _drawn(job, parent, final)
    except (DataError, OSError) as error:
        LOGGER.warning("no images are shown in the report: %s", error)
        examples, pictures = Examples(left_out=f"No images are shown: {one_line(error)}."), {}
    try:
        write_examples(job.space.root, examples, pictures)
    except OSError as error:  # the report says everything else without them
        LOGGER.warning("the images of the report cannot be written: %s", error)
        clear_examples(job.space.root)


def _drawn(job: PruneJob, parent: Evaluated, final: Evaluated) -> tuple[Examples, dict[str, bytes]]:
    before, after = parent.result.sample, final.result.sample
    if before is None or after is None:
        return Examples(left_out="No images are shown: this evaluation says nothing of single images."), {}
    chosen = differing_images(before, after, IMAGES)
    if not chosen:
        return Examples(left_out="No images are shown: on every one both models are equally right."), {}
    places = [each.index for each in chosen]
    looks = [job.task.look(model.module, model.imgsz, places) for model in (parent, final)]
    classes = job.task.metric == "top1"
    columns = ("truth", parent.name, final.name)
    make = _of_class if classes else _of_objects
    drawn = [make(*each) for each in zip(chosen, *looks, strict=True)]
    for quality in _QUALITIES:
        pictures = [[as_jpeg(picture, quality) for picture in panels] for _, _, panels in drawn]
        if sum(len(data) for panels in pictures for data in panels) <= LARGEST:
            break
    images, files, size = [], dict[str, bytes](), 0
    for number, ((name, notes, _), panels) in enumerate(zip(drawn, pictures, strict=True), start=1):
        size += sum(map(len, panels))
        if size > LARGEST:
            break
        names = tuple(f"{number}_{column}.jpg" for column, _ in zip(columns, panels, strict=False))
        files.update(zip(names, panels, strict=True))
        images.append(Example(name, notes, names))
    return Examples(columns, _BY_CLASS if classes else _BY_F1, tuple(images)), files


def _of_objects(one: Differing, before: Look, after: Look) -> _Panels:
    pixels = _pixels(before.file)
    panels = [draw(pixels, before.truth), *(draw(pixels, look.found, look.truth) for look in (before, after))]
    count = len(before.truth)
    notes = (f"{count} object{'' if count == 1 else 's'}", f"F1 {one.before:.2f}", f"F1 {one.after:.2f}")
    return before.file.name, notes, panels


def _of_class(one: Differing, before: Look, after: Look) -> _Panels:
    found = (before.truth[0], before.found[0], after.found[0])
    name = f"{before.file.parent.name}/{before.file.name}"  # of its class's folder
    return name, tuple(map(_said, found)), [draw(_pixels(before.file), ())]


def _said(thing: Thing) -> str:
    return thing.label if thing.score is None else f"{thing.label} {thing.score:.2f}"


def _pixels(file: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(read_image(file, 3)[..., ::-1])
