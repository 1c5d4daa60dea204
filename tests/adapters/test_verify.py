"""Broken files of a data set: found before a run begins by the host's own rules, listed once, and nothing is written."""

import shutil

import pytest
import torch
from inrun_host import HOST, run
from PIL import Image
from tiny_host import draw
from ultralytics.data.dataset import YOLODataset
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_prune.adapters.ultralytics import verify
from yolo_prune.adapters.ultralytics.data import images_in_use, label_rules, read_data_yaml

ROW = "0 0.5 0.5 0.2 0.2\n"
LABELS = {
    "good": ROW,
    "polygon": "0 0.1 0.1 0.3 0.1 0.3 0.3\n",
    "empty": "",
    "twice": ROW + ROW,
    "a little outside": "0 1.005 0.5 0.2 0.2\n",
    "outside": "0 1.5 0.5 0.2 0.2\n",
    "negative": "0 0.5 -0.2 0.2 0.2\n",
    "columns": "0 0.5 0.5 0.2\n",
    "six columns": "0 0.5 0.5 0.2 0.2 0.1\n",
    "class": "2 0.5 0.5 0.2 0.2\n",
    "half a class": "0.5 0.5 0.5 0.2 0.2\n",
    "words": "cat 0.5 0.5 0.2 0.2\n",
    "mixed": ROW + "0 0.1 0.1 0.3 0.1 0.3 0.3\n",
}


@pytest.fixture
def images(tmp_path):
    """Images that are broken in every way that we know, by what is wrong with them."""
    yaml = draw(tmp_path)
    folder = tmp_path / "images" / "train"
    shutil.rmtree(folder)
    folder.mkdir()
    Image.effect_noise((64, 64), 60).convert("RGB").save(folder / "good.jpg")
    whole = (folder / "good.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "head.jpg").write_bytes(whole[:100])
    (folder / "longer.jpg").write_bytes(whole + b"more")
    (folder / "nothing.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    Image.new("RGB", (64, 9)).save(folder / "small.png")
    Image.effect_noise((64, 64), 60).save(folder / "good.png")
    png = bytearray((folder / "good.png").read_bytes())
    (folder / "half.png").write_bytes(png[: len(png) // 2])
    png[len(png) // 2] ^= 255
    (folder / "bits.png").write_bytes(png)
    Image.effect_noise((64, 64), 60).save(folder / "renamed.bmp", "PNG")
    return yaml


def kept_by_host(yaml, folder, task="detect"):
    dataset = YOLODataset(img_path=str(folder), imgsz=64, augment=False, data=yaml, task=task)
    return sorted(path.rpartition("/")[2] for path in dataset.im_files)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the host leaves broken files open
def test_the_same_images_are_left_out_as_by_the_host_and_nothing_is_written(images, caplog):
    yaml = read_data_yaml(images)
    before = {path: path.read_bytes() for path in images.parent.rglob("*") if path.is_file()}
    kept = [path.name for path in images_in_use(yaml, "train")]
    assert {path: path.read_bytes() for path in images.parent.rglob("*") if path.is_file()} == before
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "yolo_prune"]
    assert (
        warning.splitlines()[0] == f"7 of the 11 images of 'train' in {images} are left out, as by the host:"
    )
    assert kept == kept_by_host(yaml, images.parent / "images" / "train")
    assert kept == ["good.jpg", "good.png", "longer.jpg", "renamed.bmp"]
    assert images_in_use(yaml, "train")
    assert len([record for record in caplog.records if record.name == "yolo_prune"]) == 1, "one list, once"


def test_the_same_labels_are_refused_as_by_the_host(tmp_path, caplog):
    yaml = read_data_yaml(draw(tmp_path))
    folder = tmp_path / "images" / "train"
    shutil.rmtree(folder)
    folder.mkdir()
    for name, text in LABELS.items():
        Image.new("RGB", (32, 32)).save(folder / f"{name}.png")
        (tmp_path / "labels" / "train" / f"{name}.txt").write_text(text)
    Image.new("RGB", (32, 32)).save(folder / "background.png")
    kept = [path.stem for path in images_in_use(yaml, "train")]
    assert [f"{name}.png" for name in kept] == kept_by_host(yaml, folder)
    assert {"a little outside", "background", "empty", "good", "polygon", "twice"} <= set(kept)
    assert not {"outside", "negative", "columns", "six columns", "class", "words"} & set(kept)
    for sentence in (
        "outside.txt, line 1: coordinate 1.5 is outside the image: coordinates go from 0 to 1\n",
        "columns.txt, line 1: expected 5 columns, or a class and at least 3 points, got 4 columns\n",
        "class.txt, line 1: class 2 is not one of 0 to 1\n",
    ):
        assert sentence in caplog.text


def test_points_count_where_they_are_learnt(tmp_path):
    yaml = read_data_yaml(draw(tmp_path, "pose"))
    (tmp_path / "labels" / "train" / "3.txt").write_text("0 0.5 0.5 0.2 0.2 1.5 0.5 2\n")
    assert len(images_in_use(yaml, "train", "pose")) == 7
    assert kept_by_host(yaml, tmp_path / "images" / "train", "pose") == [
        path.name for path in images_in_use(yaml, "train", "pose")
    ]
    assert label_rules(yaml, "pose") == verify.LabelRules(2, (1, 3), pose=True)


def test_a_long_list_is_cut_and_says_how_long_it_is():
    text = verify.left_out([f"{index}.jpg: broken" for index in range(25)], 100, "'train' in x.yaml")
    lines = text.splitlines()
    assert lines[0] == "25 of the 100 images of 'train' in x.yaml are left out, as by the host:"
    assert (len(lines), lines[-1]) == (22, "  and 5 more.")


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_a_training_with_broken_files_is_cut_and_names_them_before_its_first_epoch(task, tmp_path, caplog):
    data = draw(tmp_path / "data", task)
    names = ("0/2", "1/3", "1/5") if task == "classify" else ("2", "3", "5")
    folder = data / "train" if task == "classify" else data.parent / "images" / "train"
    for name in names[:2]:
        file = folder / f"{name}.jpg"
        file.write_bytes(file.read_bytes()[:200])
    if task == "detect":
        (data.parent / "labels" / "train" / "5.txt").write_text("0 1.5 0.5 0.2 0.2\n")
    seen = []
    base = ClassificationTrainer if task == "classify" else DetectionTrainer
    trainer = run(
        data,
        tmp_path,
        base,
        task=task,
        pruning={"calibration_images": 8, "sparsify": "off", "prune_at": 1, "distill": False},
        callbacks={"on_train_epoch_start": lambda _: seen.append(caplog.text)},
        **{**HOST, "epochs": 2},
    )
    assert len(trainer.state.cuts) == 1
    bad = 3 if task == "detect" else 2
    assert f"{bad} of the 8 images of '" in seen[0]
    assert all(f"{folder}/{name}.jpg: " in seen[0] for name in names[:2])
    images = torch.cat([*map(torch.as_tensor, trainer_images(trainer))])
    assert len(images) == 8 - bad


def trainer_images(trainer):
    from yolo_prune.adapters.ultralytics.training import midrun

    return midrun.calibration_images(trainer, 8, 0)
