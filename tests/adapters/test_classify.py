"""A classifier is measured as its host measures it: the same images, the same crop, the same top-1."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms
from ultralytics.nn.tasks import ClassificationModel

from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics import verify
from yolo_prune.adapters.ultralytics.classify import (
    class_calibration_batches,
    evaluate_classifier,
    quick_top1,
    resolve_classes,
)
from yolo_prune.adapters.ultralytics.tasks import open_task
from yolo_prune.errors import CheckpointError, DataError
from yolo_prune.runtimes.images import centre_crop, to_input

NAMES = ("a", "bb", "ccc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six noisy images a class and split, each class of another colour and shape."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for index, name in enumerate(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = random.integers(0, 120, (40 + 9 * index, 70 - 5 * number, 3), dtype=np.uint8)
                pixels[..., index] += 100
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def build(classes: int = 3) -> ClassificationModel:
    torch.manual_seed(3)
    module = ClassificationModel("yolov8n-cls.yaml", nc=classes, verbose=False).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data.normal_(0, 2)  # so that images of one class are not all told alike
    module.names = dict(enumerate(NAMES[:classes]))
    return module


def test_top1_is_that_of_the_hosts_own_validation(folder, tmp_path):
    module = build()
    file = save_detector(tmp_path / "m.pt", module, task="classify", train_args={"imgsz": 64}, meta={})
    host = YOLO(file).val(data=str(folder), imgsz=64, device="cpu", workers=0, plots=False, verbose=False)
    result = evaluate_classifier(load_detector(file).module, folder, imgsz=64)
    assert (result.top1, result.top5, result.images) == (host.top1, host.top5, 18)
    assert 0 < result.top1 < 1, "the control: a constant answer would agree anyway"


def test_per_class_accuracy_averages_to_top1(folder):
    result = evaluate_classifier(build(), folder, imgsz=64)
    assert list(result.per_class) == list(NAMES)
    assert np.mean(list(result.per_class.values())) == pytest.approx(result.top1)


def test_the_quick_score_on_all_images_is_top1(folder):
    module, data = build().train(), resolve_classes(folder)
    score = quick_top1(data, module.names, imgsz=64, max_images=100, batch=5, device="cpu")
    assert score(module) == pytest.approx(evaluate_classifier(module, folder, imgsz=64).top1)
    assert module.training


def test_classes_are_matched_by_name_where_the_host_does(folder):
    module = build()
    module.names = {0: "ccc", 1: "a", 2: "bb"}
    score = quick_top1(
        resolve_classes(folder), module.names, imgsz=64, max_images=100, batch=18, device="cpu"
    )
    assert score(module) == pytest.approx(evaluate_classifier(module, folder, imgsz=64).top1)


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (64, 64), (33, 500), (480, 640), (65, 64)])
@pytest.mark.parametrize("imgsz", [64, 33])
def test_the_benchmark_crops_pixel_for_pixel_like_the_host(shape, imgsz):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    host = classify_transforms(size=imgsz)(Image.fromarray(pixels[..., ::-1].copy()))
    ours = to_input([pixels], imgsz, centre_crop)[0]
    assert np.abs(ours - host.numpy()).max() < 1e-6


def test_calibration_images_are_what_validation_sees(folder):
    data = resolve_classes(folder, "val")
    (batch,) = class_calibration_batches(data, 64, images=100, batch=18)
    prepare = classify_transforms(size=64)
    files = resolve_classes(folder, "train").image_files
    expected = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    assert torch.equal(batch, expected)
    (few,) = class_calibration_batches(data, 64, images=4, seed=1)
    assert len(few) == 4
    assert torch.equal(few, class_calibration_batches(data, 64, images=4, seed=1)[0])


def test_an_unreadable_training_image_is_left_out(folder, caplog):
    (folder / "train" / "a" / "0.png").write_bytes(b"no image")
    (batch,) = class_calibration_batches(resolve_classes(folder), 64, images=100, batch=100)
    assert len(batch) == 17
    assert f"1 of the 18 images of '{folder}/train' are left out, as by the host:" in caplog.text
    assert class_calibration_batches(
        resolve_classes(folder),
        64,
        images=1,
        files=[folder / "train" / "a" / "0.png", folder / "train/a/1.png"],
    )[0].shape == (1, 3, 64, 64)


def test_validation_is_on_the_test_split_where_there_is_no_other(folder):
    (folder / "val").rename(folder / "test")
    assert resolve_classes(folder, "val").root.name == "test"
    assert evaluate_classifier(build(), folder, imgsz=64).images == 18


def test_images_that_the_host_leaves_out_are_left_out_of_both(folder, caplog, monkeypatch):
    Image.new("RGB", (8, 8)).save(folder / "val" / "a" / "3.png")  # under the host's 10 pixels
    assert evaluate_classifier(build(), folder, imgsz=64).images == 17
    assert f"{folder}/val/a/3.png: 8 x 8 pixels are too few" in caplog.text
    monkeypatch.setattr(verify, "image_problem", lambda _: "")
    Image.new("RGB", (8, 9)).save(folder / "val" / "a" / "3.png")
    with pytest.raises(DataError, match=r"^the host left out 1 of the 18 images in .*val: they are corrupt"):
        evaluate_classifier(build(), folder, imgsz=64)


def test_another_number_of_classes_or_another_task_is_refused(folder):
    with pytest.raises(DataError, match=r"^the model has 2 classes and .* has 3\.$"):
        evaluate_classifier(build(2), folder, imgsz=64)
    detector = load_detector("yolov8n.yaml")
    with pytest.raises(DataError, match=r"^a 'detect' model is not a classifier\.$"):
        evaluate_classifier(detector.module, folder, imgsz=64)


def test_the_task_of_a_classifier(folder, tmp_path):
    file = save_detector(tmp_path / "m.pt", build(), task="classify", train_args={"imgsz": 64}, meta={})
    task = open_task(load_detector(file), folder, split="val", batch=4, device="cpu", workers=0)
    assert task.class_sizes() == dict.fromkeys(NAMES, 6)
    assert [path.parent.name for path in task.image_files(3)] == list(NAMES)
    assert task.scorer(64)(load_detector(file).module) == pytest.approx(task.evaluate(build(), 64).top1)


def test_a_checkpoint_that_the_host_trained_loads_with_its_transforms(folder, tmp_path):
    """The host stores torchvision's preprocessing beside the weights."""
    module = build()
    module.transforms = classify_transforms(64)
    file = save_detector(tmp_path / "m.pt", module, task="classify", train_args={"imgsz": 64}, meta={})
    stored = load_detector(file).module.transforms
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    assert torch.equal(stored(image), module.transforms(image))


def test_other_parts_of_torchvision_are_refused(tmp_path):
    from torchvision.transforms import RandomErasing

    module = build()
    module.transforms = RandomErasing()
    with pytest.raises(CheckpointError, match=r"holds 'torchvision\.transforms\.transforms\.RandomErasing'"):
        save_detector(tmp_path / "m.pt", module, task="classify", train_args={}, meta={})


def test_an_untrained_architecture_has_the_hosts_size():
    assert load_detector("yolov8n-cls.yaml").imgsz == 224
    assert load_detector("yolov8n.yaml").imgsz == 640


@pytest.mark.shared
def test_a_random_classifier_is_at_chance_on_real_folders(shared, tmp_path, caplog):
    import shutil

    caplog.set_level(logging.ERROR)
    data = Path(shutil.copytree(shared / "data" / "cifar10_mini", tmp_path / "cifar"))
    torch.manual_seed(0)
    module = ClassificationModel("yolov8n-cls.yaml", nc=10, verbose=False)
    result = evaluate_classifier(module, data, imgsz=32, batch=64)
    assert result.images == 1000
    assert result.top1 < 0.25 < result.top5 < 0.75
