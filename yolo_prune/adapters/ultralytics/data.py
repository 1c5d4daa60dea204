"""A data yaml -> images, labels and COCO ground truth, with paths resolved as Ultralytics resolves them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_prune.errors import DataError
from yolo_prune.evaluate import coco_from_yolo
from yolo_prune.progress import LOGGER, track

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


def resolve_data(data: str | Path | DetectionData, split: str = "val") -> DetectionData:
    """Find the images and the ground truth of one split.

    Boxes come from ``annotations/instances_SPLIT.json`` near the images when that file covers these images
    and classes, else from the YOLO labels; ``source`` says which. Nothing is downloaded unless the yaml has
    a ``download`` key (or ``data`` is a URL), and then the host does it as in its own ``val``.

    Args:
        data: A data yaml, the name of one that Ultralytics ships, a folder with one, or a resolved split.
        split: ``train``, ``val`` or ``test``.

    Returns:
        The split, with lengths in pixels in its ground truth.

    Raises:
        DataError: The yaml, the split, the images or all labels are missing, or a label is malformed.
    """
    if isinstance(data, DetectionData):
        if data.split == split:
            return data
        data = data.file
    yaml = read_data_yaml(data)
    image_files = list_images(yaml, split)
    label_files = _label_files(image_files)
    names = {int(index): str(name) for index, name in yaml["names"].items()}
    truth = coco_from_yolo(
        image_files, label_files, names, keypoint_columns=_keypoint_columns(yaml), size_of=_host_image_size
    )
    if not truth["annotations"]:
        raise DataError(
            f"no labels for the {len(image_files)} images of '{split}' in {yaml['yaml_file']}: "
            f"expected for example {label_files[0]}."
        )
    image_ids = {
        os.fspath(path): entry["id"] for path, entry in zip(image_files, truth["images"], strict=True)
    }
    category_ids = {index: index + 1 for index in names}
    source = "YOLO labels"
    for candidate in _annotation_files(yaml, split, image_files[0]):
        matched = _from_json(candidate, image_files, truth, names)
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
    )


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


def calibration_batches(
    data: str | Path | DetectionData,
    imgsz: int,
    images: int = 96,
    batch: int = 16,
    seed: int = 0,
    split: str = "train",
) -> list[torch.Tensor]:
    """Load images for recovery: letterboxed as for validation, never augmented. Labels are not needed.

    Args:
        data: A data yaml, or a resolved split (its file is used).
        imgsz: Side of the square input, in pixels.
        images: How many images, drawn at random without repetition; all of them where there are fewer.
        batch: Images per tensor; the last may hold fewer.
        seed: Seed of the draw. The same seed and files give the same tensors.
        split: Which images to draw from.

    Returns:
        float32 tensors (batch, channels, imgsz, imgsz) in [0, 1], RGB, on the CPU.

    Raises:
        DataError: The yaml, the split or the images are missing, or an image cannot be read.
    """
    from yolo_prune.adapters.ultralytics.images import letterboxed

    yaml = read_data_yaml(data.file if isinstance(data, DetectionData) else data)
    files = list_images(yaml, split)
    if len(files) > images:
        chosen = np.random.default_rng(seed).choice(len(files), size=images, replace=False)
        files = [files[index] for index in sorted(chosen)]
    samples = letterboxed(files, imgsz, yaml)
    loaded = [samples[index]["img"] for index in track(range(len(files)), "Loading calibration images")]
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
        raise DataError(f"{where} is not a valid yaml file: {_one_line(error)}.") from error
    except _HOST_ERRORS as error:
        raise DataError(f"cannot use the data {where}: {_one_line(error)}.") from error
    return yaml


def _one_line(error: BaseException) -> str:
    """Put the host's message on one line of plain text, without its pictures and its final full stop."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.encode("ascii", "ignore").decode().split()).rstrip(". ") or type(error).__name__


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
            found += [os.fspath(path) for path in source.rglob("*.*") if path.is_file()]
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


def _label_files(image_files: Sequence[Path]) -> list[Path]:
    """Return the label file of each image, where the host looks for it."""
    from ultralytics.data.utils import img2label_paths

    return [Path(path) for path in img2label_paths([os.fspath(path) for path in image_files])]


def _keypoint_columns(yaml: Mapping[str, Any]) -> int:
    """Return how many numbers follow the box in a label row of a pose data set; 0 in others."""
    points, dimensions = yaml.get("kpt_shape") or (0, 0)
    return int(points) * int(dimensions)


def _host_image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as the host sees them, EXIF orientation applied."""
    from PIL import Image
    from ultralytics.data.utils import exif_size

    try:
        with Image.open(path) as image:
            width, height = exif_size(image)
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error}.") from error
    return int(width), int(height)


def _annotation_files(yaml: Mapping[str, Any], split: str, image: Path) -> list[Path]:
    """Return the COCO files that may belong to a split: named after it or after its images' folder."""
    folders = [Path(yaml["path"]), *image.parents]
    if "images" in image.parts:  # ROOT/images/SPLIT/x.jpg -> ROOT
        root = image
        while root.name != "images":
            root = root.parent
        folders = [Path(yaml["path"]), root.parent]
    sources = yaml[split] if isinstance(yaml[split], list) else [yaml[split]]
    names = [split, *(Path(source).stem for source in sources)]
    files = [folder / "annotations" / f"instances_{name}.json" for folder in folders for name in names]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def _from_json(
    file: Path, image_files: Sequence[Path], labels: Mapping[str, Any], names: Mapping[int, str]
) -> tuple[dict[str, Any], dict[str, int], dict[int, int]] | None:
    """Read COCO ground truth if it covers these images and classes; else say why not and return None."""
    try:
        truth = json.loads(file.read_text(encoding="utf-8"))
        by_name = {entry["file_name"]: entry for entry in truth["images"]}
        entries = [_entry(path, by_name) for path in image_files]
        categories = {entry["name"]: entry["id"] for entry in truth["categories"]}
        annotated = {entry["category_id"] for entry in truth["annotations"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOGGER.warning("%s is not COCO ground truth (%s); the labels are used.", file, _one_line(error))
        return None
    reason = _mismatch(entries, labels["images"], categories, annotated, names)
    if reason:
        LOGGER.warning("%s is not used: %s. The labels are used.", file, reason)
        return None
    kept = [entry for entry in entries if entry is not None]
    ids = {entry["id"] for entry in kept}
    unused = max([0, *categories.values()]) + 1  # classes the JSON does not know have no boxes in it
    category_ids = {index: categories.get(name, unused + index) for index, name in names.items()}
    ground_truth = {
        "images": kept,
        "annotations": [each for each in truth["annotations"] if each["image_id"] in ids],
        "categories": [{"id": category_ids[index], "name": name} for index, name in names.items()],
    }
    image_ids = {os.fspath(path): entry["id"] for path, entry in zip(image_files, kept, strict=True)}
    return ground_truth, image_ids, category_ids


def _entry(path: Path, by_name: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Find the COCO image entry of a file: the longest end of its path that is listed."""
    ends = ["/".join(path.parts[-length:]) for length in range(min(4, len(path.parts)), 0, -1)]
    return next((by_name[end] for end in ends if end in by_name), None)


def _mismatch(
    entries: Sequence[dict[str, Any] | None],
    images: Sequence[dict[str, Any]],
    categories: Mapping[str, int],
    annotated: set[int],
    names: Mapping[int, str],
) -> str:
    """Say in words why a COCO file does not describe these images and classes; empty when it does."""
    missing = sum(1 for entry in entries if entry is None)
    if missing:
        return f"it does not list {missing} of the {len(entries)} images"
    known = [entry for entry in entries if entry is not None]
    if len({entry["id"] for entry in known}) < len(known):
        return "several images share one entry"
    for entry, image in zip(known, images, strict=True):
        if (entry.get("width", image["width"]), entry.get("height", image["height"])) != (
            image["width"],
            image["height"],
        ):
            return f"it gives another size for {image['file_name']}"
    foreign = annotated - {categories[name] for name in names.values() if name in categories}
    if foreign or len(set(names.values())) < len(names):
        return "its categories are not the classes of the data yaml"
    return ""
