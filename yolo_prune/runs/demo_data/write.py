"""Write the drawn pictures as data sets: YOLO labels with COCO JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from yolo_prune.errors import DataError
from yolo_prune.files import replacing, write_text
from yolo_prune.imgsz import size_text
from yolo_prune.progress import track
from yolo_prune.runs.demo_data.parts import CLASS_NAMES
from yolo_prune.runs.demo_data.scene import Scene, draw_scene

MARKER = "yolo_prune_demo.json"
"""Written first and completed last: tells a finished set from an interrupted one and from a user's folder."""
SPLITS = ("train", "val")
_FOLDERS = ("images", "labels", "annotations")
_SMALLEST = 64  # pixels


def make_demo_detection(
    folder: Path | str,
    *,
    train: int = 160,
    val: int = 60,
    imgsz: int = 320,
    seed: int = 0,
    objects: tuple[int, int] = (3, 8),
) -> Path:
    """Draw a detection set: screws, nuts, washers and gears among clutter, no crowds, no downloads.

    The same arguments give the same bytes. A folder that already holds exactly this set is left as it is.

    Args:
        folder: Where to put images/, labels/, annotations/ and data.yaml.
        train: Number of training images.
        val: Number of validation images; they share no random state with the training images.
        imgsz: Side of the square images, in pixels.
        seed: Another seed draws another set.
        objects: Fewest and most parts in an image.

    Returns:
        The path of data.yaml, whose folders are relative to it.

    Raises:
        DataError: A count or size is out of range, or the folder holds something else.

    Example:
        >>> data = make_demo_detection("parts", train=160, val=60)  # doctest: +SKIP
    """
    counts = {"train": train, "val": val}
    _check(counts, imgsz)
    if not 1 <= objects[0] <= objects[1]:
        raise DataError(f"objects must be a range of at least one, got {objects}.")
    folder = Path(folder)
    wanted = {"task": "detect", **counts, "imgsz": imgsz, "seed": seed, "objects": list(objects)}
    data = folder / "data.yaml"
    if _is_complete(folder, wanted):
        return data
    _start(folder, wanted)
    for number, split in enumerate(SPLITS):
        _write_split(folder, split, [(seed, number, index) for index in range(counts[split])], imgsz, objects)
    lines = {"train": "images/train", "val": "images/val", "names": dict(enumerate(CLASS_NAMES))}
    write_text(data, yaml.safe_dump(lines, sort_keys=False))
    _finish(folder, wanted)
    return data


def _write_split(
    folder: Path, split: str, seeds: list[tuple[int, int, int]], imgsz: int, objects: tuple[int, int]
) -> None:
    scenes: dict[str, Scene] = {}
    for index, seed in enumerate(track(seeds, f"drawing {split} images")):
        name = f"{split}_{index:04d}"
        scenes[name] = draw_scene(np.random.default_rng(seed), imgsz, objects)
        _write_jpeg(folder / "images" / split / f"{name}.jpg", scenes[name].image, 70 + (7 * index) % 26)
        write_text(folder / "labels" / split / f"{name}.txt", _yolo_labels(scenes[name]))
    write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(_coco(scenes, imgsz)))


def _check(counts: Mapping[str, int], imgsz: int) -> None:
    for split, count in counts.items():
        if count < 1:
            raise DataError(f"{split} must be at least 1 image, got {count}.")
    if imgsz < _SMALLEST:
        raise DataError(f"imgsz must be at least {_SMALLEST} pixels, got {size_text(imgsz)}.")


def _is_complete(folder: Path, wanted: Mapping[str, Any]) -> bool:
    marker = folder / MARKER
    if marker.is_file():
        return bool(json.loads(marker.read_text(encoding="utf-8")) == {**wanted, "complete": True})
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not a demo set: give an empty or a new folder.")
    return False


def _start(folder: Path, wanted: Mapping[str, Any]) -> None:
    write_text(folder / MARKER, json.dumps({**wanted, "complete": False}))
    for part in _FOLDERS:
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)


def _finish(folder: Path, wanted: Mapping[str, Any]) -> None:
    write_text(folder / MARKER, json.dumps({**wanted, "complete": True}))


def _write_jpeg(path: Path, image: npt.NDArray[np.uint8], quality: int) -> None:
    good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise DataError(f"OpenCV could not encode {path.name} as JPEG.")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _yolo_labels(scene: Scene) -> str:
    height, width = scene.image.shape[:2]
    lines = [
        f"{box.category} {(box.x + box.width / 2) / width:.8f} {(box.y + box.height / 2) / height:.8f} "
        f"{box.width / width:.8f} {box.height / height:.8f}\n"
        for box in scene.boxes
    ]
    return "".join(lines)


def _coco(scenes: Mapping[str, Scene], imgsz: int) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": f"{name}.jpg", "width": imgsz, "height": imgsz}
        for number, name in enumerate(scenes, start=1)
    ]
    boxes = [(number, box) for number, scene in enumerate(scenes.values(), start=1) for box in scene.boxes]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": box.category + 1,
            "bbox": [box.x, box.y, box.width, box.height],
            "area": box.width * box.height,
            "iscrowd": 0,
        }
        for number, (image, box) in enumerate(boxes, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
