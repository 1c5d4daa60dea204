"""Data yamls are resolved as the host resolves them, and every broken one is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from yolo_prune.adapters.ultralytics.class_folders import find_class_folders
from yolo_prune.adapters.ultralytics.data import (
    calibration_batches,
    check_classes,
    resolve_data,
)
from yolo_prune.adapters.ultralytics.verify import draw_files
from yolo_prune.errors import DataError

YAML = "train: images/train\nval: images/val\nnames: [ant, bee]\n"
LABEL = "1 0.5 0.5 0.5 0.5\n"


def make(root: Path, yaml: str = YAML, count: int = 4, label: str = LABEL, split: str = "val") -> Path:
    """Write a data set of random images, all with the same label file, and return its yaml."""
    rng = np.random.default_rng(0)
    for index in range(count):
        for kind, name in (("images", f"{index}.png"), ("labels", f"{index}.txt")):
            path = root / kind / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                Image.fromarray(rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)).save(path)
            else:
                path.write_text(label, encoding="utf-8")
    if split == "train":
        yaml = yaml.replace("images/val", "images/train")
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return root / "data.yaml"


def annotate(file: Path, root: Path, **changes) -> Path:
    """Write COCO annotations for the data set of ``make``, with ids of their own."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 64, "height": 32} for i in range(4)]
    boxes = [{"id": i, "image_id": 10 + i, "category_id": 5, "bbox": [1, 2, 30, 20]} for i in range(4)]
    categories = [{"id": 5, "name": "bee"}]
    content = {"images": images, "annotations": boxes, "categories": categories, **changes}
    path = root / "annotations" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_labels_make_the_ground_truth(tmp_path):
    data = resolve_data(make(tmp_path))
    assert data.source == "YOLO labels"
    assert data.image_files == tuple(tmp_path / "images" / "val" / f"{i}.png" for i in range(4))
    assert data.label_files[0] == tmp_path / "labels" / "val" / "0.txt"
    assert data.names == {0: "ant", 1: "bee"}
    assert data.ground_truth["annotations"][0]["bbox"] == [16, 8, 32, 16]
    assert [data.image_ids[str(path)] for path in data.image_files] == [1, 2, 3, 4]
    assert data.category_ids == {0: 1, 1: 2}
    assert resolve_data(data) is data


@pytest.mark.parametrize("yaml", ["path: set\n", "path: {root}/set\n", ""])
def test_path_is_relative_to_the_datasets_folder_or_absolute_or_the_yamls_own(tmp_path, monkeypatch, yaml):
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", tmp_path)
    file = make(tmp_path / "set", yaml.format(root=tmp_path) + YAML)
    if yaml:
        file = file.rename(tmp_path / "elsewhere.yaml")
    assert resolve_data(file).image_files[0] == tmp_path / "set" / "images" / "val" / "0.png"


def test_a_list_of_images_may_be_a_text_file(tmp_path):
    file = make(tmp_path, YAML.replace("val: images/val", "val: val.txt"))
    (tmp_path / "val.txt").write_text(
        f"\ufeff./images/val/1.png\n{tmp_path}/images/val/0.png\n", encoding="utf-8"
    )
    assert [path.name for path in resolve_data(file).image_files] == ["0.png", "1.png"]


def test_hidden_files_are_not_images_because_the_host_does_not_see_them(tmp_path):
    file = make(tmp_path)
    (tmp_path / "images" / "val" / "._0.png").write_bytes(b"resource fork")
    assert len(resolve_data(file).image_files) == 4


def test_coco_annotations_are_used_where_they_cover_the_images(tmp_path):
    file = make(tmp_path)
    path = annotate("instances_val.json", tmp_path)
    data = resolve_data(file)
    assert data.source == f"COCO JSON {path}"
    assert data.ground_truth["annotations"][0]["bbox"] == [1, 2, 30, 20]
    assert data.image_ids[str(tmp_path / "images" / "val" / "3.png")] == 13
    assert data.category_ids[1] == 5
    assert data.category_ids[0] not in {5}
    assert {each["id"] for each in data.ground_truth["categories"]} == set(data.category_ids.values())


def test_images_of_the_annotations_that_are_not_here_are_left_out(tmp_path):
    file = make(tmp_path, count=3)
    annotate("instances_val.json", tmp_path)
    data = resolve_data(file)
    assert len(data.ground_truth["images"]) == len(data.ground_truth["annotations"]) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": []}, "it does not list 4 of the 4 images"),
        ({"categories": [{"id": 5, "name": "wasp"}]}, "its categories are not the classes of the data yaml"),
        (
            {"images": [{"id": i, "file_name": f"{i}.png", "width": 32, "height": 64} for i in range(4)]},
            "it gives another size for 0.png",
        ),
        (
            {"images": [{"id": 1, "file_name": f"{i}.png"} for i in range(4)]},
            "several images share one entry",
        ),
        ({"images": [{"id": 1}]}, "is not COCO ground truth (file_name)"),
    ],
)
def test_annotations_that_do_not_fit_are_named_and_the_labels_used(tmp_path, caplog, changes, reason):
    file = make(tmp_path)
    annotate("instances_val.json", tmp_path, **changes)
    assert resolve_data(file).source == "YOLO labels"
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/val\nnames: [a, b]\n", "'val:' key missing"),
        ("train: images/val\nval: images/nowhere\nnames: [a, b]\n", "images not found, missing path '{root}"),
        ("train: images/val\nval: images/val\n", "either 'names' or 'nc' are required"),
        (
            "train: images/val\nval: images/val\nnc: 3\nnames: [a, b]\n",
            "'names' length 2 and 'nc: 3' must match",
        ),
        ("train: images/val\nval: empty\nnames: [a, b]\n", "no images of 'val' in {root}/empty."),
        ("train: [unclosed\n", "',' or ']'"),
        ("- a\n- b\n", "cannot use the data"),
    ],
)
def test_a_broken_yaml_is_named_with_what_is_wrong(tmp_path, yaml, message):
    (tmp_path / "empty").mkdir()
    file = make(tmp_path, yaml)
    with pytest.raises(DataError) as error:
        resolve_data(file)
    text = str(error.value)
    assert message.format(root=tmp_path) in text
    assert str(file) in text
    assert "\n" not in text


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(DataError) as error:
        resolve_data(tmp_path / "data.yaml")
    assert (
        str(error.value)
        == f"cannot use the data {tmp_path}/data.yaml: '{tmp_path}/data.yaml' does not exist."
    )


def test_a_missing_split_is_named_with_those_there_are(tmp_path):
    file = make(tmp_path)
    with pytest.raises(DataError) as error:
        resolve_data(file, "test")
    assert str(error.value) == f"{file} has no 'test' split; it has train, val."


@pytest.mark.parametrize("label", [None, "", "\n"])
def test_no_labels_at_all_is_an_error(tmp_path, label):
    file = make(tmp_path, label=label or "")
    if label is None:
        for path in (tmp_path / "labels" / "val").iterdir():
            path.unlink()
    with pytest.raises(DataError) as error:
        resolve_data(file)
    expected = (
        f"no labels for the 4 images of 'val' in {file}: expected for example {tmp_path}/labels/val/0.txt."
    )
    assert str(error.value) == expected


def test_a_split_without_one_good_image_is_an_error_that_lists_what_is_wrong(tmp_path):
    file = make(tmp_path, label="2 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError) as error:
        resolve_data(file)
    first, *lines = str(error.value).splitlines()
    assert first == f"none of the 4 images of 'val' in {file} can be used:"
    assert lines == [
        f"  {tmp_path}/labels/val/{index}.txt, line 1: class 2 is not one of 0 to 1" for index in range(4)
    ]


def test_nothing_is_downloaded_when_the_yaml_does_not_ask_for_it(tmp_path, monkeypatch):
    def download(*_args, **_kwargs):
        raise ZeroDivisionError("downloaded")

    monkeypatch.setattr("ultralytics.data.utils.safe_download", download)
    file = make(tmp_path, YAML.replace("images/val", "images/nowhere"))
    with pytest.raises(DataError, match="images not found"):
        resolve_data(file)
    file.write_text(
        file.read_text(encoding="utf-8") + "download: https://localhost/set.zip\n", encoding="utf-8"
    )
    with pytest.raises(ZeroDivisionError, match="downloaded"):
        resolve_data(file)


def test_another_number_of_classes_is_an_error_with_both_numbers(tmp_path):
    data = resolve_data(make(tmp_path))
    with pytest.raises(DataError) as error:
        check_classes({0: "a", 1: "b", 2: "c"}, data)
    assert str(error.value) == (
        f"the model has 3 classes and {data.file} has 2. "
        "Evaluate it on data with the classes it was trained for."
    )


def test_other_class_names_are_a_warning(tmp_path, caplog):
    check_classes({0: "x", 1: "y"}, resolve_data(make(tmp_path)))
    assert "the class names of the model and of" in caplog.text


def test_calibration_batches_are_letterboxed_and_the_same_for_the_same_seed(tmp_path):
    file = make(tmp_path, count=6, split="train")
    batches = calibration_batches(file, 64, images=5, batch=2, seed=3)
    assert [tuple(each.shape) for each in batches] == [(2, 3, 64, 64), (2, 3, 64, 64), (1, 3, 64, 64)]
    assert all(each.dtype == torch.float32 and each.min() >= 0 and each.max() <= 1 for each in batches)
    assert torch.all(batches[0][:, :, :16] == 114 / 255), "a 64 x 32 image is padded above and below"
    again = calibration_batches(file, 64, images=5, batch=2, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
    other = calibration_batches(file, 64, images=5, batch=2, seed=4)
    assert not all(torch.equal(one, two) for one, two in zip(batches, other, strict=True))
    assert sum(len(each) for each in calibration_batches(file, 64, images=99)) == 6


def test_calibration_images_are_rgb(tmp_path):
    file = make(tmp_path, count=1, split="train")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "images" / "train" / "0.png")
    (batch,) = calibration_batches(file, 64)
    assert batch.mean(dim=(0, 2, 3)).tolist() == [1, 0, 0]


def test_calibration_needs_no_labels_and_writes_nothing(tmp_path):
    file = make(tmp_path, count=2, label="", split="train")
    before = sorted(tmp_path.rglob("*"))
    assert len(calibration_batches(file, 64)) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_calibration_leaves_out_what_the_host_leaves_out(tmp_path, caplog):
    file = make(tmp_path, count=3, split="train")
    (tmp_path / "images" / "train" / "1.png").write_bytes(b"text")
    assert sum(len(each) for each in calibration_batches(file, 64)) == 2
    assert f"1 of the 3 images of 'train' in {file} are left out, as by the host:" in caplog.text


def test_an_image_that_only_decoding_finds_broken_is_replaced_by_another(tmp_path, caplog):
    file = make(tmp_path, count=6, split="train")
    images = sorted((tmp_path / "images" / "train").iterdir())
    good = calibration_batches(file, 64, images=3, seed=1, files=images)[0]
    chosen = draw_files(images, 3, 1)
    chosen[1].write_bytes(b"text")
    found = calibration_batches(file, 64, images=3, seed=1, files=images)[0]
    assert len(found) == 3
    assert torch.equal(found[:2], good[[0, 2]])
    assert f"{chosen[1]}: it cannot be decoded" in caplog.text
    for image in images:
        image.write_bytes(b"text")
    with pytest.raises(DataError, match=r"^none of the 6 images of the training data can be used:\n"):
        calibration_batches(file, 64, images=3, files=images)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "the folder {root}/set does not exist; a classifier's data is a folder of folders of images."),
        (["val/a"], "{root}/set needs the folders 'train' and 'val', with one folder of images per class."),
        (["train/a"], "{root}/set needs the folders 'train' and 'val', with one folder of images per class."),
        (["train/a", "val/a"], "no images in {root}/set/val."),
    ],
)
def test_a_broken_classification_set_is_named(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / "set" / folder).mkdir(parents=True)
    with pytest.raises(DataError) as error:
        find_class_folders(tmp_path / "set", "val")
    assert str(error.value) == message.format(root=tmp_path)
