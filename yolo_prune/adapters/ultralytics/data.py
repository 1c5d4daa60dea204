"""A data yaml -> images, labels and COCO ground truth, with paths resolved as Ultralytics resolves them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape, glob
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.accuracy.annotations import annotation_files, read_annotations, without_shape
from yolo_prune.accuracy.box_data import BoxData
from yolo_prune.accuracy.labels import coco_from_yolo
from yolo_prune.adapters.ultralytics.anatomy import input_channels
from yolo_prune.adapters.ultralytics.verify import LabelRules, label_files_of, load_drawn, usable_images
from yolo_prune.errors import DataError, one_line
from yolo_prune.imgsz import ImageSize
from yolo_prune.progress import LOGGER

YOLO_LABELS = "YOLO labels"
_HOST_ERRORS = (OSError, SyntaxError, TypeError, ValueError, KeyError, AttributeError, AssertionError)


@dataclass(frozen=True)
class DetectionData:
    """One split of a detection data set.

    Attributes:
        file: The data yaml.
        split: Name of the split: ``train``, ``val`` or ``test``.
        yaml: The yaml as the host reads it: absolute paths, ``nc`` and ``names`` filled in.
        image_files: The images, sorted as the host sorts them.
        label_files: The label file of each image; it may not exist (background).
        names: Class index -> class name.
        ground_truth: COCO dictionary with exactly these images.
        source: Where the ground truth comes from, in words for the report.
        image_ids: Image path -> its id in ``ground_truth``.
        category_ids: Class index -> its category id in ``ground_truth``.
        task: The host's name for what models do with it.
    """

    file: Path
    split: str
    yaml: dict[str, Any] = field(repr=False)
    image_files: tuple[Path, ...] = field(repr=False)
    label_files: tuple[Path, ...] = field(repr=False)
    names: dict[int, str]
    ground_truth: dict[str, Any] = field(repr=False)
    source: str
    image_ids: dict[str, int] = field(repr=False)
    category_ids: dict[int, int] = field(repr=False)
    task: str = "detect"

    def part(self, count: int) -> BoxData:
        """Return at most so many images, as they are known without the host.

        Raises:
            DataError: They hold no box.
        """
        ids = tuple(self.image_ids[os.fspath(path)] for path in self.image_files)
        found = (self.names, self.category_ids, self.ground_truth, self.source)
        return BoxData(self.file, self.split, self.image_files, ids, *found).part(count)


def resolve_data(
    data: str | Path | DetectionData, split: str = "val", *, task: str = "detect"
) -> DetectionData:
    """Find the images and the ground truth of one split; what the host would leave out is left out with a warning.

    Boxes, and masks or key points where the task is about them, come from ``annotations/instances_SPLIT.json`` (of
    poses from ``person_keypoints_SPLIT.json`` first) near the images when that file covers these images, classes and
    shapes, else from the YOLO labels; ``source`` says which. Nothing is downloaded unless the yaml has a ``download``
    key (or ``data`` is a URL), and then the host does it as in its own ``val``.

    Args:
        data: A data yaml, the name of one that Ultralytics ships, a folder with one, or a resolved split.
        split: ``train``, ``val`` or ``test``.
        task: The host's name for what the model does; ``pose`` needs points in every label, ``segment`` masks.

    Returns:
        The split, with lengths in pixels in its ground truth.

    Raises:
        DataError: The yaml, the split, the images or all labels are missing, every image or its labels are broken, or
            labels lack what the task is about.
    """
    if isinstance(data, DetectionData):
        if data.split == split:
            return data
        task, data = data.task, data.file
    yaml = read_data_yaml(data)
    image_files = images_in_use(yaml, split, task)
    label_files = label_files_of(image_files)
    names = {int(index): str(name) for index, name in yaml["names"].items()}
    truth = _labelled(yaml, split, task, image_files, label_files)
    image_ids = {
        os.fspath(path): entry["id"] for path, entry in zip(image_files, truth["images"], strict=True)
    }
    category_ids = {index: index + 1 for index in names}
    source = YOLO_LABELS
    for candidate in annotation_files(yaml, split, image_files[0], task):
        matched = read_annotations(candidate, image_files, truth, names, task)
        if matched is not None:
            truth, image_ids, category_ids = matched
            source = f"COCO JSON {candidate}"
            break
    return DetectionData(
        file=Path(yaml["yaml_file"]),
        split=split,
        yaml=yaml,
        image_files=tuple(image_files),
        label_files=tuple(label_files),
        names=names,
        ground_truth=truth,
        source=source,
        image_ids=image_ids,
        category_ids=category_ids,
        task=task,
    )


def _labelled(
    yaml: Mapping[str, Any], split: str, task: str, image_files: Sequence[Path], label_files: Sequence[Path]
) -> dict[str, Any]:
    """Return the ground truth in the labels, with what a task is about."""
    points, numbers = yaml.get("kpt_shape") or (0, 0)
    truth = coco_from_yolo(
        image_files,
        label_files,
        {int(index): str(name) for index, name in yaml["names"].items()},
        keypoint_columns=int(points) * int(numbers),
        keypoint_size=int(numbers) if task == "pose" else 0,
        size_of=host_image_size,
    )
    if not truth["annotations"]:
        raise DataError(
            f"no labels for the {len(image_files)} images of '{split}' in {yaml['yaml_file']}: "
            f"expected for example {label_files[0]}."
        )
    lacking = without_shape(truth["annotations"], task)
    if lacking:
        raise DataError(
            f"{lacking} in the labels of '{split}' in {yaml['yaml_file']}. "
            "A segmenter's label rows are polygons: class x1 y1 x2 y2 x3 y3 ..."
        )
    return truth


def check_classes(names: Mapping[int, str], data: DetectionData) -> None:
    """Check that a model can be evaluated on this data.

    Args:
        names: Class index -> name, of the model.
        data: The data it shall be evaluated on.

    Raises:
        DataError: The model and the data have different numbers of classes.
    """
    if len(names) != len(data.names):
        raise DataError(
            f"the model has {len(names)} classes and {data.file} has {len(data.names)}. "
            "Evaluate it on data with the classes it was trained for."
        )
    if list(names.values()) != list(data.names.values()):
        LOGGER.warning(
            "the class names of the model and of %s differ; classes are matched by index.", data.file
        )


def images_in_use(yaml: Mapping[str, Any], split: str, task: str = "detect") -> list[Path]:
    """Return the images of a split that the host would train or evaluate on; one warning lists the others.

    Args:
        yaml: What ``read_data_yaml`` returned.
        split: Name of the split.
        task: The host's name for what the model does.

    Raises:
        DataError: There are no images, or none that can be used.
    """
    what = f"'{split}' in {yaml['yaml_file']}"
    return list(usable_images(list_images(yaml, split), label_rules(yaml, task), what).images)


def label_rules(yaml: Mapping[str, Any], task: str) -> LabelRules:
    """Return what the label files of a data set must look like for a task of the host."""
    points, numbers = yaml.get("kpt_shape") or (0, 0)
    return LabelRules(len(yaml["names"]), (int(points), int(numbers)), pose=task == "pose")


def check_channels(module: nn.Module, yaml: Mapping[str, Any]) -> None:
    """Check that the host loads images of this data with as many channels as a model takes.

    Args:
        module: A model of the host.
        yaml: What :func:`read_data_yaml` returned; its ``channels`` are 3 unless it says otherwise.

    Raises:
        DataError: They differ.
    """
    wanted, stated = input_channels(module), int(yaml.get("channels", 3))
    if wanted != stated:
        raise DataError(
            f"the model takes images of {wanted} channel{'s' * (wanted != 1)} and {yaml['yaml_file']} says {stated}. "
            f"Write 'channels: {wanted}' into it if its images have so many."
        )


def calibration_batches(
    data: str | Path | DetectionData,
    imgsz: ImageSize,
    images: int = 96,
    batch: int = 16,
    seed: int = 0,
    split: str = "train",
    *,
    files: Sequence[Path] | None = None,
) -> list[torch.Tensor]:
    """Load images for recovery: letterboxed as for validation, never augmented. Labels are not needed.

    Args:
        data: A data yaml, or a resolved split (its file is used).
        imgsz: Size of the input, in pixels.
        images: How many images, drawn at random without repetition; all of them where there are fewer.
        batch: Images per tensor; the last may hold fewer.
        seed: Seed of the draw. The same seed and files give the same tensors.
        split: Which images to draw from.
        files: The images to draw from, where the host has chosen them already; None: those of the split that it would.

    Returns:
        float32 tensors (batch, channels, height, width) in [0, 1], RGB where there are three, on the CPU.

    Raises:
        DataError: The yaml, the split or the images are missing, or no image can be read.
    """
    from yolo_prune.adapters.ultralytics.images import load_framed

    yaml = data.yaml if isinstance(data, DetectionData) else read_data_yaml(data)
    task = data.task if isinstance(data, DetectionData) else "detect"
    given = images_in_use(yaml, split, task) if files is None else files
    loaded = load_drawn(given, images, seed, lambda file: load_framed(file, imgsz, yaml))
    return [torch.stack(loaded[at : at + batch]).float() / 255 for at in range(0, len(loaded), batch)]


def read_data_yaml(data: str | Path) -> dict[str, Any]:
    """Read a data yaml through the host, so that ``path`` and ``datasets_dir`` mean what they mean there.

    Args:
        data: A data yaml, the name of one that Ultralytics ships, or a folder or archive that holds one.

    Returns:
        The yaml's keys with absolute paths; ``names`` as a dictionary, ``yaml_file`` and ``path`` filled in.

    Raises:
        DataError: The file is missing or not a data yaml, or the images it points to are missing.
    """
    from ultralytics.data.utils import check_det_dataset
    from yaml import YAMLError

    where = os.fspath(data)
    try:
        yaml: dict[str, Any] = check_det_dataset(where)
    except YAMLError as error:
        raise DataError(f"{where} is not a valid yaml file: {one_line(error)}.") from error
    except _HOST_ERRORS as error:
        raise DataError(f"cannot use the data {where}: {one_line(error)}.") from error
    return yaml


def list_images(yaml: Mapping[str, Any], split: str) -> list[Path]:
    """List the images of a split: of folders (searched recursively) and of text files with one path a line.

    Args:
        yaml: What ``read_data_yaml`` returned.
        split: Name of the split.

    Returns:
        Sorted paths, in the host's order.

    Raises:
        DataError: The yaml has no such split, its path does not exist, or there is no image.
    """
    from ultralytics.data.utils import IMG_FORMATS

    if not yaml.get(split):
        known = ", ".join(key for key in ("train", "val", "test") if yaml.get(key))
        raise DataError(f"{yaml['yaml_file']} has no '{split}' split; it has {known}.")
    sources = yaml[split] if isinstance(yaml[split], list) else [yaml[split]]
    found: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += glob(os.path.join(escape(os.fspath(source)), "**", "*.*"), recursive=True)
        elif source.is_file():
            lines = source.read_text(encoding="utf-8-sig").split("\n")
            paths = (line.strip() for line in lines)
            found += [
                line.replace("./", f"{source.parent}{os.sep}", 1) if line.startswith("./") else line
                for line in paths
            ]
        else:
            raise DataError(f"{yaml['yaml_file']}: the path of '{split}' does not exist: {source}.")
    images = sorted(path for path in found if path.rpartition(".")[-1].lower() in IMG_FORMATS)
    if not images:
        raise DataError(f"{yaml['yaml_file']}: no images of '{split}' in {', '.join(map(str, sources))}.")
    return [Path(path) for path in images]


def host_image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as the host sees them, EXIF orientation applied."""
    from PIL import Image
    from ultralytics.data.utils import exif_size

    try:
        with Image.open(path) as image:
            width, height = exif_size(image)
    except (OSError, ImportError) as error:  # ImportError: the host wants a plug-in for an unknown format
        raise DataError(f"cannot read the image {path}: {error}.") from error
    return int(width), int(height)
