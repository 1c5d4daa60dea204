"""Detection data without a host: YOLO labels, COCO annotations, and what is said of data that is not there."""

import json

import cv2
import numpy as np
import pytest

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.errors import DataError

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def yolo(tmp_path):
    """Two images of 40 x 20 pixels a split: a box of each class in the first, none in the second."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for name in "ab":
            cv2.imwrite(str(tmp_path / "images" / split / f"{name}.png"), np.zeros((20, 40, 3), np.uint8))
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.1 0.2\n")
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


@pytest.fixture
def coco(yolo, tmp_path_factory):
    """The same as COCO annotations, with categories 3 and 7, a crowd, and no labels."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "images").mkdir(exist_ok=True)
        (yolo / "images" / split).rename(folder / "images" / split)
        boxes = [([10, 5, 20, 10], 3, 0), ([8, 8, 4, 4], 7, 0), ([0, 0, 40, 20], 3, 1)]
        content = {
            "images": [{"id": 5, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
            "annotations": [
                {"id": at, "image_id": 5, "bbox": box, "category_id": category, "iscrowd": crowd}
                for at, (box, category, crowd) in enumerate(boxes)
            ],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def test_yolo_labels_become_boxes_in_pixels(yolo):
    data = read_boxes(yolo / "data.yaml", "val")
    assert [file.name for file in data.image_files] == ["a.png", "b.png"]
    (boxes, labels), (none, _) = data.targets
    assert boxes == pytest.approx(np.array([[10, 5, 30, 15], [8, 8, 12, 12]]))
    assert labels.tolist() == [0, 1]
    assert none.shape == (0, 4)
    assert (data.names, data.source) == ({0: "cat", 1: "dog"}, "YOLO labels")


@pytest.mark.parametrize("given", [".", "annotations/instances_val.json", "annotations/instances_train.json"])
def test_coco_annotations_give_the_same_boxes_without_crowds(coco, given):
    data = read_boxes(coco / given, "val")
    boxes, labels = data.targets[0]
    assert boxes.tolist() == [[10, 5, 30, 15], [8, 8, 12, 12]]
    assert labels.tolist() == [0, 1]
    assert (data.names, data.category_ids) == ({0: "cat", 1: "dog"}, {0: 3, 1: 7})
    assert "val" in data.source
    assert data.image_ids == (5, 9)


def test_annotations_beside_the_labels_count(yolo):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 2, "bbox": [1, 1, 5, 5], "category_id": 2}],
    }
    (yolo / "annotations").mkdir()
    (yolo / "annotations" / "instances_val.json").write_text(json.dumps(content))
    data = read_boxes(yolo / "data.yaml", "val")
    assert data.source.startswith("COCO JSON")
    assert [len(boxes) for boxes, _ in data.targets] == [0, 1]
    assert read_boxes(yolo / "data.yaml", "train").source == "YOLO labels"


def test_a_part_keeps_the_boxes_of_its_images(yolo):
    part = read_boxes(yolo / "data.yaml", "val").part(1)
    assert (len(part.image_files), len(part.targets), len(part.ground_truth["images"])) == (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "data", "text"),
    [
        (lambda f: None, "none.yaml", r"none.yaml cannot be read: No such file"),
        (lambda f: None, "data.txt", r"is no YOLO data yaml, no COCO json and no folder with one"),
        (lambda f: (f / "data.yaml").write_text("train: a\n"), "data.yaml", r"has no 'names' of classes"),
        (lambda f: (f / "data.yaml").write_text("names: [a]\ntrain: a\n"), "data.yaml", r"has no 'val'"),
        (lambda f: (f / "data.yaml").write_text("names: {1: a}\nval: a\n"), "data.yaml", r"from 0 to 0"),
        (
            lambda f: (f / "images/val").rename(f / "elsewhere"),
            "data.yaml",
            r"the path of 'val' does not exist",
        ),
        (lambda f: (f / "labels/val/a.txt").unlink(), "data.yaml", r"no labels for the 2 images of 'val'"),
        (lambda f: [p.unlink() for p in (f / "images/val").iterdir()], "data.yaml", r"no images of 'val'"),
        (lambda f: (f / "images/val/a.png").write_bytes(b"\x89PNG"), "data.yaml", r"cannot read the image"),
        (lambda f: None, ".", r"no COCO annotations of 'val' .*: expected instances_val.json"),
    ],
)
def test_data_that_is_broken_is_refused_in_a_sentence(yolo, change, data, text):
    change(yolo)
    with pytest.raises(DataError, match=text):
        read_boxes(yolo / data, "val")


def test_coco_annotations_without_their_images_are_refused(coco):
    (coco / "images" / "val" / "b.png").unlink()
    with pytest.raises(
        DataError, match=r"1 of the 2 images of .*instances_val.json are missing, such as .*b.png"
    ):
        read_boxes(coco, "val")
    (coco / "images" / "val").rename(coco / "gone")
    with pytest.raises(DataError, match=r"are not beside it: expected for example .*images/val/a.png"):
        read_boxes(coco, "val")
    (coco / "annotations" / "instances_train.json").write_text("{}")
    with pytest.raises(DataError, match=r"is no COCO ground truth: KeyError 'images'"):
        read_boxes(coco, "train")
