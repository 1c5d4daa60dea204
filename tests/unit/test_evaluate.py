"""Ground truth from labels, and every way in which COCO input can be wrong."""

from pathlib import Path

import pytest
from PIL import Image

from yolo_prune.accuracy.coco import coco_ap
from yolo_prune.accuracy.labels import coco_from_yolo, image_size, read_yolo_labels
from yolo_prune.errors import DataError

BOX = [10.0, 10.0, 20.0, 20.0]


def truth(**changes):
    base = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "cyst"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": BOX}],
    }
    return {**base, **changes}


def annotation(**changes):
    return {"id": 1, "image_id": 1, "category_id": 7, "bbox": BOX, **changes}


def detection(**changes):
    return {"image_id": 1, "category_id": 7, "bbox": BOX, "score": 0.5, **changes}


def test_a_perfect_detection_scores_one_and_absent_sizes_are_none():
    result = coco_ap(truth(), [detection()])
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((1, 1, 1), abs=1e-12)
    assert result.ap_small == pytest.approx(1, abs=1e-12)
    assert (result.ap_medium, result.ap_large) == (None, None)
    assert list(result.per_class) == ["cell"], "a class without boxes has no AP"
    assert (result.images, result.boxes) == (2, 1)
    assert result.evaluator.startswith("pycocotools ")


def test_no_detections_score_zero():
    result = coco_ap(truth(), [])
    assert (result.ap, result.ap_small, result.ap_large) == (0.0, 0.0, None)


def test_nothing_is_printed(capsys):
    coco_ap(truth(), [detection()])
    assert capsys.readouterr() == ("", "")


def test_classes_that_share_a_name_keep_their_own_ap():
    categories = [{"id": 7, "name": "cell"}, {"id": 9, "name": "cell"}]
    boxes = [annotation(), annotation(id=2, category_id=9)]
    result = coco_ap(truth(categories=categories, annotations=boxes), [detection()])
    assert result.per_class == pytest.approx({"cell (id 7)": 1, "cell (id 9)": 0}, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "found", "message"),
    [
        ({"images": [{"id": 1}, {"id": 1}]}, [], "the COCO ground truth has image id 1 more than once."),
        (
            {"annotations": [annotation(), annotation()]},
            [],
            "the COCO ground truth has annotation id 1 more than once.",
        ),
        (
            {"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]},
            [],
            "the COCO ground truth has category id 7 more than once.",
        ),
        (
            {"annotations": [annotation(image_id=3)]},
            [],
            "annotation 1 refers to image_id 3, which the ground truth does not list.",
        ),
        (
            {"annotations": [annotation(category_id=3)]},
            [],
            "annotation 1 refers to category_id 3, which the ground truth does not list.",
        ),
        (
            {"annotations": [annotation(bbox=[1, 2, 3])]},
            [],
            "annotation 1 has bbox [1, 2, 3]; four finite numbers (x, y, width, height) are needed.",
        ),
        ({"annotations": []}, [], "no ground-truth boxes in 2 images: AP is not defined."),
        (
            {"annotations": [annotation(iscrowd=1)]},
            [],
            "no ground-truth boxes in 2 images: AP is not defined.",
        ),
        (
            {},
            [detection(image_id=3)],
            "detection 0 refers to image_id 3, which the ground truth does not list.",
        ),
        (
            {},
            [detection(), detection(category_id=1)],
            "detection 1 refers to category_id 1, which the ground truth does not list.",
        ),
        ({}, [detection(score=float("nan"))], "detection 0 has score nan; a finite number is needed."),
        (
            {},
            [detection(bbox=[0, 0, float("inf"), 1])],
            "detection 0 has bbox [0, 0, inf, 1]; four finite numbers (x, y, width, height) are needed.",
        ),
    ],
)
def test_bad_coco_input_is_named(changes, found, message):
    with pytest.raises(DataError) as error:
        coco_ap(truth(**changes), found)
    assert str(error.value) == message


def test_missing_parts_of_the_ground_truth_are_named():
    with pytest.raises(DataError, match=r"^the COCO ground truth has no 'images' and no 'categories'\.$"):
        coco_ap({"annotations": []}, [])


def write_image(path: Path, size=(100, 50), orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    exif = image.getexif()
    if orientation:
        exif[274] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("suffix", "orientation", "size"),
    [
        (".jpg", None, (100, 50)),
        (".jpg", 3, (100, 50)),
        (".jpg", 6, (50, 100)),
        (".jpg", 8, (50, 100)),
        (".png", 5, (50, 100)),
    ],
)
def test_sizes_are_those_of_the_upright_image(tmp_path, suffix, orientation, size):
    assert image_size(write_image(tmp_path / f"a{suffix}", orientation=orientation)) == size


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"^cannot read the image .*a\.jpg: "):
        image_size(tmp_path / "a.jpg")


def test_rows_become_boxes_in_pixels(tmp_path):
    images = [write_image(tmp_path / "images" / name) for name in ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")]
    labels = [tmp_path / f"{name}.txt" for name in "abcd"]
    labels[0].write_text("1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.1 0.2\n1 0.5 0.5 0.2 0.4\n", encoding="utf-8")
    labels[1].write_text("\ufeff0 0.1 0.2 0.5 0.2 0.3 0.8\n", encoding="utf-8")
    labels[2].write_text("", encoding="utf-8")
    result = coco_from_yolo(images, labels, {0: "ant", 1: "bee"})
    assert [each["file_name"] for each in result["images"]] == ["a.jpg", "sub/b.jpg", "c.jpg", "d.jpg"]
    assert result["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    boxes = [
        (each["image_id"], each["category_id"], pytest.approx(each["bbox"])) for each in result["annotations"]
    ]
    assert boxes == [(1, 2, [40, 15, 20, 20]), (1, 1, [5, 5, 10, 10]), (2, 1, [10, 10, 40, 30])]
    assert [each["area"] for each in result["annotations"]] == pytest.approx([400, 100, 1200])


def test_keypoints_after_the_box_are_ignored(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4 0.1 0.9 2\n", encoding="utf-8")
    assert read_yolo_labels(tmp_path / "a.txt", 1, keypoint_columns=3) == [(0, 0.5, 0.5, 0.2, 0.4)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.2", "expected 5 columns, or a class and at least 3 points, got 4 columns"),
        ("0 0.5 0.5 0.2 0.2 0.9", "expected 5 columns, or a class and at least 3 points, got 6 columns"),
        ("0 0.5 0.5 0.2 x", "could not convert string to float: 'x'"),
        ("2 0.5 0.5 0.2 0.2", "class 2 is not one of 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 is not one of 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 is not one of 0 to 1"),
        ("inf 0.5 0.5 0.2 0.2", "class inf is not one of 0 to 1"),
        ("0 320 0.5 0.2 0.2", "coordinate 320 is outside the image: coordinates go from 0 to 1"),
        ("0 nan 0.5 0.2 0.2", "coordinate nan is outside the image: coordinates go from 0 to 1"),
        ("0 0.5 0.5 -0.005 0.2", "width -0.005 and height 0.2 must not be negative"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.1", "boxes and polygons are mixed in one file"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(tmp_path, row, message):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n\n{row}\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_yolo_labels(path, 2)
    assert str(error.value) == f"{path}, line 3: {message}."


def test_an_image_listed_twice_is_an_error(tmp_path):
    image = write_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"^the image .*a\.jpg is listed 2 times\.$"):
        coco_from_yolo([image, image], [tmp_path / "a.txt"] * 2, {0: "ant"})
