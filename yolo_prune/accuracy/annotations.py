"""COCO annotation files that lie beside a YOLO data set: find them, and use them only where they fit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_prune.errors import one_line
from yolo_prune.progress import LOGGER

_NEEDED = {"segment": ("segmentation", "mask"), "pose": ("keypoints", "key points")}
KINDS = {"detect": ("instances",), "pose": ("person_keypoints", "instances")}
"""How COCO names its files by what they are about; of other tasks as of detection."""


def annotation_files(yaml: Mapping[str, Any], split: str, image: Path, task: str = "detect") -> list[Path]:
    """Return the COCO files that may belong to a split: named after it or after its images' folder."""
    folders = [Path(yaml["path"]), *image.parents]
    if "images" in image.parts:  # ROOT/images/SPLIT/x.jpg -> ROOT
        root = image
        while root.name != "images":
            root = root.parent
        folders = [Path(yaml["path"]), root.parent]
    sources = yaml[split] if isinstance(yaml[split], list) else [yaml[split]]
    names = [split, *(Path(source).stem for source in sources)]
    kinds = KINDS.get(task, KINDS["detect"])
    files = [
        folder / "annotations" / f"{k}_{name}.json" for k in kinds for folder in folders for name in names
    ]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def read_annotations(
    file: Path,
    image_files: Sequence[Path],
    labels: Mapping[str, Any],
    names: Mapping[int, str],
    task: str = "detect",
) -> tuple[dict[str, Any], dict[str, int], dict[int, int]] | None:
    """Read COCO ground truth if it covers these images, classes and shapes; else say why not and return None."""
    try:
        truth = json.loads(file.read_text(encoding="utf-8"))
        by_name = {entry["file_name"]: entry for entry in truth["images"]}
        entries = [_entry(path, by_name) for path in image_files]
        categories = {entry["name"]: entry["id"] for entry in truth["categories"]}
        annotated = {entry["category_id"] for entry in truth["annotations"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOGGER.warning("%s is not COCO ground truth (%s); the labels are used.", file, one_line(error))
        return None
    reason = _mismatch(entries, labels["images"], categories, annotated, names)
    reason = reason or without_shape(truth["annotations"], task)
    if reason:
        LOGGER.warning("%s is not used: %s. The labels are used.", file, reason)
        return None
    kept = [
        {**entry, "width": image["width"], "height": image["height"]}
        for entry, image in zip(entries, labels["images"], strict=True)
        if entry is not None
    ]
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


def without_shape(annotations: Sequence[Mapping[str, Any]], task: str) -> str:
    """Say in words how many annotations lack the mask or the key points that a task needs; empty when none does."""
    key, name = _NEEDED.get(task, ("bbox", "box"))
    missing = sum(1 for each in annotations if not each.get(key))
    return f"{missing} of the {len(annotations)} objects have no {name}" if missing else ""


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
