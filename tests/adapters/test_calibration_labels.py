"""Labels of calibration images lie where the objects do in the batches, whichever host loads them."""

import numpy as np
import pytest
import torch
from PIL import Image

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.accuracy.classes import read_class_folders
from yolo_prune.adapters.torchvision.classify import ClassTask
from yolo_prune.adapters.torchvision.tasks import BoxTask
from yolo_prune.adapters.ultralytics import tasks
from yolo_prune.adapters.ultralytics.classify import resolve_classes
from yolo_prune.adapters.ultralytics.data import resolve_data
from yolo_prune.adapters.ultralytics.verify import draw_files

SIDE = 64


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Dark images of all shapes with one bright rectangle each, which is red in the second class."""
    root, rng = tmp_path_factory.mktemp("boxes"), np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(6):
            height, width = rng.integers(40, 120, 2)
            top, left = int(0.2 * height), int(rng.uniform(0, 0.5) * width)
            bottom, right, kind = int(0.7 * height), left + int(0.4 * width), number % 2
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[top:bottom, left:right] = (255, 0, 0) if kind else (255, 255, 255)
            centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            row = [kind, *centre, (right - left) / width, (bottom - top) / height]
            for folder in ("images", "labels"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            (root / "labels" / split / f"{number}.txt").write_text(" ".join(map(str, row)))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [white, red]\n")
    return root / "data.yaml"


def of_ultralytics(file):
    data = resolve_data(file)
    return tasks.BoxTask(data, data.names, 4, "cpu", 0)


def of_torchvision(file, stretched=False):
    return BoxTask(read_boxes(str(file), "val"), str(file), (1, 2), (), stretched, 4, "cpu")


def check_boxes(task, imgsz, images=5, seed=3):
    batches = torch.cat(task.calibration_batches(imgsz, images, seed))
    labels = task.calibration_labels(imgsz, images, seed)
    assert len(labels) == len(batches) == images
    for image, label in zip(batches, labels, strict=True):
        (kind,), ((left, top, right, bottom),) = label.classes, label.boxes
        tall, wide = image.shape[1:]
        inside = image[:, round(top * tall) : round(bottom * tall), round(left * wide) : round(right * wide)]
        assert inside[0].mean() > 0.9
        assert (inside[2].mean() > 0.9) == (kind == 0), "blue in white, not in red"
        elsewhere = (image[0] > 0.6).sum() - (inside[0] > 0.6).sum()
        assert elsewhere < 0.15 * inside[0].numel(), "all else is black, padding is grey"
    assert len({int(label.classes[0]) for label in labels}) == 2


@pytest.mark.parametrize("imgsz", [SIDE, (32, 96)])
@pytest.mark.parametrize("open_task", [of_ultralytics, of_torchvision])
def test_boxes_lie_where_the_batches_have_them(boxes, open_task, imgsz):
    check_boxes(open_task(boxes), imgsz)


def test_boxes_of_stretched_images_are_stretched(boxes):
    check_boxes(of_torchvision(boxes, stretched=True), (32, 96))


def test_an_image_in_the_place_of_a_broken_one_brings_its_own_label(boxes, tmp_path):
    task = of_ultralytics(boxes)
    files = sorted((boxes.parent / "images" / "train").iterdir())
    broken = draw_files(files, 3, 1)[0]
    held = broken.read_bytes()
    task.check_training_images()  # what is found now is remembered: the file breaks afterwards
    try:
        broken.write_bytes(held[: len(held) // 3])
        check_boxes(task, SIDE, images=3, seed=1)
    finally:
        broken.write_bytes(held)


@pytest.mark.parametrize("host", ["ultralytics", "torchvision"])
def test_each_image_of_a_classifier_has_the_class_of_its_folder(tmp_path, host):
    for split in ("train", "val"):
        for name, colour in (("dark", 30), ("light", 220)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (40, 50), (colour,) * 3).save(tmp_path / split / name / f"{number}.png")
    if host == "ultralytics":
        task = tasks.ClassTask(resolve_classes(tmp_path), {0: "dark", 1: "light"}, 4, "cpu", 0)
    else:
        task = ClassTask(read_class_folders(tmp_path, "val"), 4, "cpu", "here")
    batches = torch.cat(task.calibration_batches(32, 7, 2))
    labels = task.calibration_labels(32, 7, 2)
    assert [int(label.classes[0]) for label in labels] == (batches.mean((1, 2, 3)) > 0.5).int().tolist()
    assert len({int(label.classes[0]) for label in labels}) == 2
    assert all(label.boxes is None for label in labels)
