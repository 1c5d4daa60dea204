"""Detection data without a host: a YOLO data yaml, or COCO annotations beside folders of images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from yolo_prune.accuracy.annotations import KINDS, annotation_files, read_annotations
from yolo_prune.accuracy.labels import coco_from_yolo, image_size
from yolo_prune.errors import DataError
from yolo_prune.runtimes.images import IMAGE_ENDINGS

_SIDES, _OTHER = re.compile("left|right"), {"left": "right", "right": "left"}
_ALIASES = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


@dataclass(frozen=True)
class BoxData:
    """One split of a detection data set.

    Attributes:
        file: The data yaml, or the annotations.
        split: Name of the split: ``train``, ``val`` or ``test``.
        image_files: The images.
        image_ids: The id of each in ``ground_truth``.
        names: Class index -> class name.
        category_ids: Class index -> its category in ``ground_truth``.
        ground_truth: COCO dictionary with exactly these images.
        source: Where the boxes come from, in words for the report.
        mirrored: Which key point each one becomes in a mirror; empty where there are none, or nobody says so.
    """

    file: Path
    split: str
    image_files: tuple[Path, ...] = field(repr=False)
    image_ids: tuple[int, ...] = field(repr=False)
    names: dict[int, str]
    category_ids: dict[int, int] = field(repr=False)
    ground_truth: dict[str, Any] = field(repr=False)
    source: str
    mirrored: tuple[int, ...] = field(default=(), repr=False)

    @cached_property
    def objects(self) -> list[list[dict[str, Any]]]:
        """For every image the annotations of its objects; no crowds."""
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in self.image_ids}
        for each in self.ground_truth["annotations"]:
            if not each.get("iscrowd") and min(each["bbox"][2:]) > 0:
                found[each["image_id"]].append(each)
        return [found[number] for number in self.image_ids]

    @cached_property
    def targets(self) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """For every image boxes (n, 4) as x1, y1, x2, y2 in its pixels, and the class index of each; no crowds."""
        index = {category: number for number, category in self.category_ids.items()}
        found = []
        for each in self.objects:
            boxes = np.array([one["bbox"] for one in each], dtype=np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            found.append((boxes, np.array([index[one["category_id"]] for one in each], dtype=np.int64)))
        return found

    def part(self, count: int) -> BoxData:
        """Return at most ``count`` images, spread evenly over the list.

        Raises:
            DataError: They hold no box.
        """
        if count >= len(self.image_files):
            return self
        found = self.chosen(np.linspace(0, len(self.image_files) - 1, count).round().astype(int).tolist())
        if not found.ground_truth["annotations"]:
            raise DataError(f"the {count} images chosen from {self.file} hold no boxes: take more images.")
        return found

    def chosen(self, places: Sequence[int]) -> BoxData:
        """Return the images at some places of ``image_files``."""
        ids = tuple(self.image_ids[at] for at in places)
        files = tuple(self.image_files[at] for at in places)
        return replace(
            self, image_files=files, image_ids=ids, ground_truth=_only(self.ground_truth, set(ids))
        )


def read_boxes(data: str | Path, split: str = "val", task: str = "detect") -> BoxData:
    """Find the images and boxes of one split, with the shapes that stand beside the boxes.

    Args:
        data: A YOLO data yaml (with COCO annotations beside the labels those count, where they cover the same images),
            or a folder with ``annotations/instances_SPLIT*.json`` and ``images/SPLIT*`` or ``SPLIT*``, or one of those
            files: the other splits are found beside it.
        split: ``train``, ``val`` or ``test``.
        task: ``segment`` wants masks and ``pose`` key points; objects that have none stay.

    Raises:
        DataError: The data, the split, its images or all boxes are missing, or something of it cannot be read.
    """
    path = Path(data)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_yolo(path, split, task)
    if path.is_dir() or path.suffix.lower() == ".json":
        return _from_coco(path, split, task)
    raise DataError(
        f"the data '{data}' is no YOLO data yaml, no COCO json and no folder with one: give data=data.yaml or "
        "data=annotations/instances_val.json."
    )


def read_yolo_yaml(file: Path) -> dict[str, Any]:
    """Read a YOLO data yaml: ``path`` absolute, ``names`` by index.

    Raises:
        DataError: It is missing, no YAML, or says neither names nor images.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or "it is not valid YAML"
        raise DataError(f"the data yaml {file} cannot be read: {why}.") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"the data yaml {file} has no 'names' of classes.")
    names = content["names"]
    listed = names.items() if isinstance(names, dict) else enumerate(names)
    named = {int(index): str(name) for index, name in listed}
    if sorted(named) != list(range(len(named))) or not named:
        raise DataError(f"'names' in {file} must number the classes from 0 to {len(named) - 1}.")
    here = file.resolve().parent
    given = Path(str(content.get("path") or "."))
    roots = (here / given, Path.cwd() / given, here)
    root = next((each for each in roots if each.is_dir()), here)
    return {**content, "names": dict(sorted(named.items())), "path": str(root.resolve())}


def _from_yolo(file: Path, split: str, task: str) -> BoxData:
    content = read_yolo_yaml(file)
    key = next((name for name in _ALIASES.get(split, (split,)) if content.get(name)), None)
    if key is None:
        raise DataError(f"{file} has no '{split}'.")
    images = _listed_images(content, key, file)
    names = content["names"]
    points, numbers = content.get("kpt_shape") or (0, 0)
    truth = coco_from_yolo(
        images,
        [_label_file(image) for image in images],
        names,
        keypoint_columns=int(points) * int(numbers),
        keypoint_size=int(numbers) if task == "pose" else 0,
    )
    if not truth["annotations"]:
        raise DataError(
            f"no labels for the {len(images)} images of '{split}' in {file}: expected for example "
            f"{_label_file(images[0])}."
        )
    ids = tuple(entry["id"] for entry in truth["images"])
    categories, source = {index: index + 1 for index in names}, "YOLO labels"
    for candidate in annotation_files(content, key, images[0], task):
        matched = read_annotations(candidate, images, truth, names, task)
        if matched is not None:
            truth, by_path, categories = matched
            ids, source = tuple(by_path[os.fspath(image)] for image in images), f"COCO JSON {candidate}"
            break
    mirrored = tuple(int(index) for index in content.get("flip_idx") or ())
    return BoxData(file, split, tuple(images), ids, names, categories, truth, source, mirrored)


def _listed_images(content: Mapping[str, Any], key: str, file: Path) -> list[Path]:
    """Return the images of a split: of folders, of lists in text files, or named themselves."""
    given = content[key] if isinstance(content[key], list) else [content[key]]
    root, found = Path(content["path"]), list[Path]()
    for each in given:
        place = root / str(each)
        if place.is_dir():
            found += [path for path in place.rglob("*.*") if path.suffix.lower() in IMAGE_ENDINGS]
        elif place.is_file() and place.suffix == ".txt":
            lines = place.read_text(encoding="utf-8").split("\n")
            found += [place.parent / line.strip() for line in lines if line.strip()]
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{file}: the path of '{key}' does not exist: {place}.")
    if not found:
        raise DataError(f"{file}: no images of '{key}' in {', '.join(map(str, given))}.")
    return sorted(found)


def _label_file(image: Path) -> Path:
    """Return where the labels of an image are: under ``labels`` in the place of the last ``images``."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _from_coco(data: Path, split: str, task: str) -> BoxData:
    file = _annotation_file(data, split, task)
    try:
        truth = json.loads(file.read_text(encoding="utf-8"))
        entries = sorted(truth["images"], key=lambda entry: str(entry["file_name"]))
        categories = sorted(truth["categories"], key=lambda entry: int(entry["id"]))
        annotations = list(truth["annotations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no COCO ground truth: {type(error).__name__} {error}.") from error
    if not entries or not annotations:
        raise DataError(f"{file} lists {len(entries)} images and {len(annotations)} boxes: both are needed.")
    folder = _image_folder(file, split, str(entries[0]["file_name"]))
    files = tuple(folder / str(entry["file_name"]) for entry in entries)
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(files)} images of {file} are missing, such as {missing[0]}."
        )
    for path, entry in zip(files, entries, strict=True):
        entry["width"], entry["height"] = image_size(path)
    return BoxData(
        file=file,
        split=split,
        image_files=files,
        image_ids=tuple(entry["id"] for entry in entries),
        names={index: str(entry["name"]) for index, entry in enumerate(categories)},
        category_ids={index: int(entry["id"]) for index, entry in enumerate(categories)},
        ground_truth={"images": entries, "annotations": annotations, "categories": categories},
        source=f"COCO JSON {file}",
        mirrored=_mirrored(categories),
    )


def _mirrored(categories: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return which key point each becomes in a mirror, by their names: left and right change places."""
    names = next((list(each["keypoints"]) for each in categories if each.get("keypoints")), [])
    swapped = [_SIDES.sub(lambda found: _OTHER[found.group()], name) for name in names]
    return tuple(names.index(name) for name in swapped) if set(swapped) <= set(names) else ()


def _annotation_file(data: Path, split: str, task: str) -> Path:
    """Return the COCO file of a split in a folder, or beside a file of another split."""
    if data.is_file() and _is_of(data, split):
        return data
    folders = [data / "annotations", data] if data.is_dir() else [data.parent]
    for folder in folders:
        found = sorted(path for path in folder.glob("*.json") if _is_of(path, split))
        for kind in (*KINDS.get(task, KINDS["detect"]), ""):
            if named := [path for path in found if path.stem.startswith(kind)]:
                return named[0]
    raise DataError(
        f"no COCO annotations of '{split}' in {' or '.join(map(str, folders))}: expected instances_{split}.json."
    )


def _is_of(file: Path, split: str) -> bool:
    return _split_in(file).startswith(_ALIASES.get(split, (split,)))


def _split_in(file: Path) -> str:
    """Return what the name of a COCO file says of its split."""
    return file.stem.removeprefix("instances_").removeprefix("person_keypoints_")


def _image_folder(file: Path, split: str, name: str) -> Path:
    """Return the folder that the images of a COCO file are named from."""
    home = file.parent.parent if file.parent.name == "annotations" else file.parent
    tries = [folder / sub for folder in (home, home / "images") for sub in (".", split, f"{split}2017")]
    stem = _split_in(file)
    tries += [home / stem, home / "images" / stem, file.parent]
    for folder in tries:
        if (folder / name).is_file():
            return folder.resolve()
    raise DataError(
        f"the images of {file} are not beside it: expected for example {home / 'images' / split / name}."
    )


def _only(truth: Mapping[str, Any], ids: set[int]) -> dict[str, Any]:
    return {
        "images": [each for each in truth["images"] if each["id"] in ids],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in ids],
        "categories": truth["categories"],
    }
