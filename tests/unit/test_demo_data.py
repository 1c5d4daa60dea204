"""The drawn data: same seed, same bytes; labels and COCO JSON say the same; every box holds its part."""

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolo_prune.errors import DataError
from yolo_prune.runs.demo_data import CLASS_NAMES, make_demo_detection
from yolo_prune.runs.demo_data.parts import CLUTTER, PARTS, Light, draw_part
from yolo_prune.runs.demo_data.scene import VISIBLE, _Canvas, draw_scene
from yolo_prune.runs.demo_data.write import MARKER

LIGHT = Light((0.4, 0.3, 0.86), (1.0, 1.0, 1.0))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_detection(tmp_path_factory.mktemp("demo") / "set", train=6, val=4, imgsz=256).parent


def test_the_same_seed_gives_the_same_bytes(detection: Path, tmp_path: Path):
    again = make_demo_detection(tmp_path / "again", train=6, val=4, imgsz=256).parent
    other = make_demo_detection(tmp_path / "other", train=6, val=4, imgsz=256, seed=1).parent
    assert digest(detection) == digest(again)
    assert not set(digest(detection).values()) & {
        value for name, value in digest(other).items() if name.endswith(".jpg")
    }


def test_a_smaller_set_is_the_beginning_of_a_larger_one(detection: Path, tmp_path: Path):
    small = make_demo_detection(tmp_path / "small", train=2, val=1, imgsz=256).parent
    larger = digest(detection)
    assert all(larger[name] == value for name, value in digest(small).items() if name.endswith(".jpg"))


def test_the_layout_is_what_a_host_expects(detection: Path):
    data = yaml.safe_load((detection / "data.yaml").read_text())
    assert data == {"train": "images/train", "val": "images/val", "names": dict(enumerate(CLASS_NAMES))}
    for split, count in (("train", 6), ("val", 4)):
        images = sorted((detection / "images" / split).glob("*.jpg"))
        assert len(images) == count
        assert cv2.imread(str(images[0])).shape == (256, 256, 3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_and_coco_json_hold_the_same_boxes(detection: Path, split: str):
    coco = json.loads((detection / "annotations" / f"instances_{split}.json").read_text())
    assert [one["name"] for one in coco["categories"]] == list(CLASS_NAMES)
    assert all(
        one["iscrowd"] == 0 and one["area"] == one["bbox"][2] * one["bbox"][3] for one in coco["annotations"]
    )
    for image in coco["images"]:
        label = detection / "labels" / split / f"{Path(image['file_name']).stem}.txt"
        lines = np.array([line.split() for line in label.read_text().splitlines()], float).reshape(-1, 5)
        mine = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
        assert (lines[:, 0] + 1).tolist() == [one["category_id"] for one in mine]
        x, y, width, height = (lines[:, 1:] * 256).T
        corners = np.stack([x - width / 2, y - height / 2, width, height], 1)
        np.testing.assert_allclose(corners, np.array([one["bbox"] for one in mine]).reshape(-1, 4), atol=1e-4)


def test_boxes_lie_inside_the_picture_and_every_class_appears():
    boxes = [box for i in range(30) for box in draw_scene(np.random.default_rng(i), 128).boxes]
    assert {box.category for box in boxes} == set(range(len(CLASS_NAMES)))
    assert all(box.x >= 0 and box.y >= 0 and box.width > 2 and box.height > 2 for box in boxes)
    assert all(box.x + box.width <= 128 and box.y + box.height <= 128 for box in boxes)


def test_a_part_may_not_hide_more_of_another_than_allowed():
    canvas = _Canvas(np.zeros((100, 100, 3), np.float32))
    coin = draw_part(np.random.default_rng(0), "coin", 20, LIGHT)
    assert canvas.place(coin, (50, 50), LIGHT, 1.0) == 1
    assert canvas.place(coin, (52, 50), LIGHT, 1.0) is None
    assert canvas.place(coin, (80, 50), LIGHT, 1.0) == 2
    assert (canvas.owner == 1).sum() >= VISIBLE * canvas.areas[1]


def test_a_part_may_not_leave_the_picture():
    canvas = _Canvas(np.zeros((100, 100, 3), np.float32))
    assert canvas.place(draw_part(np.random.default_rng(0), "coin", 20, LIGHT), (2, 50), LIGHT, 1.0) is None


@pytest.mark.parametrize("kind", [*PARTS, *CLUTTER])
def test_every_shape_fills_its_radius_and_no_more(kind: str):
    patch = draw_part(np.random.default_rng(3), kind, 30, LIGHT)
    rows, columns = np.nonzero(patch.alpha > 0.5)
    reach = np.hypot(rows - patch.alpha.shape[0] // 2, columns - patch.alpha.shape[0] // 2).max()
    assert 20 < reach < 33
    assert patch.colour.shape == (*patch.alpha.shape, 3)
    assert 0 <= patch.colour.min() <= patch.colour.max() <= 1


def test_rings_have_a_hole_and_coins_have_none():
    holes = {
        kind: draw_part(np.random.default_rng(3), kind, 30, LIGHT).alpha[32, 32]
        for kind in ("washer", "nut", "coin")
    }
    assert holes == {"washer": 0, "nut": 0, "coin": 1}


def test_a_complete_set_is_left_alone_and_an_interrupted_one_is_drawn_again(tmp_path: Path):
    data = make_demo_detection(tmp_path / "d", train=1, val=1, imgsz=64)
    picture = data.parent / "images" / "train" / "train_0000.jpg"
    drawn = picture.read_bytes()
    picture.write_bytes(b"touched")
    make_demo_detection(tmp_path / "d", train=1, val=1, imgsz=64)
    assert picture.read_bytes() == b"touched"
    marker = data.parent / MARKER
    marker.write_text(marker.read_text().replace("true", "false"))
    make_demo_detection(tmp_path / "d", train=1, val=1, imgsz=64)
    assert picture.read_bytes() == drawn


def test_a_folder_of_someone_else_is_not_touched(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"exists and is not a demo set: give an empty or a new folder\.$"):
        make_demo_detection(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train must be at least 1 image, got 0."),
        ({"imgsz": 32}, "imgsz must be at least 64 pixels, got 32."),
        ({"objects": (3, 2)}, "objects must be a range of at least one, got (3, 2)."),
    ],
)
def test_impossible_requests_are_named(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make_demo_detection(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()
