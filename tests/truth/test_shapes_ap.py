"""AP of masks and of key points: worked out by hand, and pycocotools' own to the bit, resample by resample."""

import numpy as np
import pytest
from pycoco import assert_the_same, evaluation
from pycocotools import mask as coco_mask

from yolo_prune.accuracy.bootstrap import draw_images
from yolo_prune.accuracy.coco import coco_ap_by_image
from yolo_prune.accuracy.masks import run_lengths
from yolo_prune.accuracy.shapes import MASKS, Keypoints
from yolo_prune.errors import DataError

HEIGHT, WIDTH, POINTS = 80, 120, 17
COCO_SIGMAS = (
    0.26,
    0.25,
    0.25,
    0.35,
    0.35,
    0.79,
    0.79,
    0.72,
    0.72,
    0.62,
    0.62,
    1.07,
    1.07,
    0.87,
    0.87,
    0.89,
    0.89,
)
PEOPLE = Keypoints(tuple(np.array(COCO_SIGMAS) / 10.0))
COMPARED = {"segm": MASKS, "keypoints": PEOPLE}


def filled(left: int, top: int, right: int, bottom: int) -> dict:
    return run_lengths(np.ones((bottom - top, right - left), dtype=bool), left, top, (HEIGHT, WIDTH))


def one(key: str, annotated, found) -> tuple[dict, list[dict]]:
    box = {"image_id": 1, "category_id": 1, "bbox": [10.0, 10.0, 50.0, 40.0]}
    truth = {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**box, "id": 1, key: annotated}],
    }
    return truth, [{**box, "score": 0.9, key: found}]


def test_a_mask_is_right_up_to_its_share_of_common_pixels():
    truth, found = one("segmentation", filled(10, 10, 31, 20), filled(10, 10, 26, 20))
    result, _ = coco_ap_by_image(truth, found, compared=MASKS)
    assert 0.75 < 16 / 21 < 0.8
    assert result.ap == pytest.approx(0.6), "right at 0.50, 0.55, ... 0.75"
    truth, found = one("segmentation", filled(10, 10, 31, 20), filled(40, 10, 61, 20))
    assert coco_ap_by_image(truth, found, compared=MASKS)[0].ap == 0.0, "the control: the box alone is right"
    assert coco_ap_by_image(truth, found)[0].ap == pytest.approx(1.0)


@pytest.mark.parametrize(("share", "right"), [(1.0, 5), (0.25, 0)])
def test_key_points_are_right_up_to_their_similarity(share, right):
    """Two labelled points, one of them found; what the third is found at does not count."""
    sigmas, area = (0.1, 0.1, 0.1), 50.0 * 40.0
    away = np.sqrt(-np.log(0.44) * 2 * area * 0.2**2)  # the similarity there is 0.44
    truth, found = one("keypoints", [20, 20, 2, 30, 30, 1, 0, 0, 0], [20, 20, 1, 30 + away, 30, 1, 99, 79, 1])
    result, _ = coco_ap_by_image(truth, found, compared=Keypoints(sigmas, share))
    similarity = (1 + 0.44 ** (1 / share)) / 2
    thresholds = [threshold for threshold in np.linspace(0.5, 0.95, 10) if similarity >= threshold]
    assert len(thresholds) == (right or 1)
    assert result.ap == pytest.approx(len(thresholds) / 10)
    assert (result.ap_small, result.boxes) == (None, 1)


def test_run_lengths_are_those_of_the_whole_mask():
    rng = np.random.default_rng(0)
    windows = [
        (0, 0, 120, 80),
        (0, 0, 3, 4),
        (117, 76, 120, 80),
        (5, 0, 9, 80),
        (5, 7, 5, 7),
        (40, 20, 70, 60),
    ]
    for left, top, right, bottom in windows:
        part = rng.random((bottom - top, right - left)) < 0.6
        whole = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
        whole[top:bottom, left:right] = part
        assert run_lengths(part, left, top, (HEIGHT, WIDTH)) == coco_mask.encode(whole)
    assert coco_mask.area(filled(0, 0, 120, 80)) == 9600, "full: it begins with a run of no empty pixels"


def scene(seed: int, images: int = 12) -> tuple[dict, list[dict]]:
    """Objects of two of three classes with polygons and points, found in part, and false alarms."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": number, "height": HEIGHT, "width": WIDTH} for number in range(1, images + 1)],
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
        "annotations": [],
    }
    found = []
    for number in range(1, images + 1):
        for _ in range(int(rng.integers(0, 6))):
            corner, side = rng.uniform(0, 40, 2), rng.uniform(15, 40, 2)
            polygon = corner + np.array([(0, 0.2), (0.7, 0), (1, 0.9), (0.3, 1)]) * side
            points = np.concatenate(
                [corner + rng.random((POINTS, 2)) * side, rng.integers(0, 3, (POINTS, 1))], 1
            )
            points[:, 2] *= rng.random() < 0.8  # else none is labelled: such an object is ignored
            entry = {"image_id": number, "category_id": int(rng.integers(1, 3)), "bbox": [*corner, *side]}
            made = {"segmentation": [polygon.ravel().tolist()], "keypoints": points.ravel().tolist()}
            extra = {"area": float(side.prod() * 0.5), "iscrowd": int(rng.random() < 0.1)}
            made["num_keypoints"] = int((points[:, 2] > 0).sum())
            truth["annotations"].append({**entry, **made, **extra, "id": len(truth["annotations"]) + 1})
            if rng.random() < 0.8:
                step = rng.normal(0, 2, 2)
                moved = coco_mask.frPyObjects([(polygon + step).ravel().tolist()], HEIGHT, WIDTH)[0]
                shifted = (
                    np.concatenate([points[:, :2] + step, np.ones((POINTS, 1))], axis=1).ravel().tolist()
                )
                found.append(
                    {**entry, "segmentation": moved, "keypoints": shifted, "score": float(rng.random())}
                )
        if rng.random() < 0.5:
            entry = {
                "image_id": number,
                "category_id": int(rng.integers(1, 4)),
                "bbox": [5.0, 5.0, 30.0, 30.0],
            }
            anywhere = rng.uniform(0, 80, 3 * POINTS).tolist()
            alarm = {
                "segmentation": filled(5, 5, 35, 35),
                "keypoints": anywhere,
                "score": float(rng.random()),
            }
            found.append({**entry, **alarm})
    return truth, found


@pytest.mark.parametrize("kind", COMPARED)
@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_pycocotools_to_the_bit(kind, seed):
    truth, found = scene(seed)
    ours, sample = coco_ap_by_image(truth, found, compared=COMPARED[kind])
    assert_the_same(ours, sample, evaluation(truth, found, kind))
    assert ours.boxes < sum(not each["iscrowd"] for each in truth["annotations"]) or kind == "segm"
    assert 0.05 < ours.ap < 0.9, "the control: there is something to tell apart"
    every = np.ones((1, sample.images), dtype=int)
    assert sample.accuracy(every) == pytest.approx(ours.ap, abs=1e-12)


@pytest.mark.parametrize("kind", COMPARED)
def test_a_class_found_more_often_than_8_bits_count_is_evaluated(kind):
    truth, found = scene(3, images=260)
    assert min(sum(each["category_id"] == number for each in found) for number in (1, 2)) > 255
    ours, sample = coco_ap_by_image(truth, found, compared=COMPARED[kind])
    assert_the_same(ours, sample, evaluation(truth, found, kind))


@pytest.mark.parametrize("kind", COMPARED)
def test_a_weight_counts_an_image_as_often_as_copies_of_it_do(kind):
    truth, found = scene(5)
    _, sample = coco_ap_by_image(truth, found, compared=COMPARED[kind])
    draws = draw_images(sample.images, 4, seed=1)
    expected = []
    for draw in draws:
        made, seen = {**truth, "images": [], "annotations": []}, []
        for image, weight in zip(truth["images"], draw, strict=True):
            for copy in range(weight):
                number = image["id"] + 1000 * copy
                made["images"].append({**image, "id": number})
                for source, target in ((truth["annotations"], made["annotations"]), (found, seen)):
                    mine = [each for each in source if each["image_id"] == image["id"]]
                    target += [
                        {key: value for key, value in {**each, "image_id": number}.items() if key != "id"}
                        for each in mine
                    ]
        expected.append(coco_ap_by_image(made, seen, compared=COMPARED[kind])[0].ap)
    assert sample.accuracy(draws) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("compared", "annotated", "found", "message"),
    [
        (
            MASKS,
            None,
            filled(0, 0, 2, 2),
            "annotation 1 has no mask: 'segmentation' must be polygons of at least 3 points, or run lengths.",
        ),
        (
            MASKS,
            {"size": [80, 80], "counts": b""},
            filled(0, 0, 2, 2),
            "annotation 1 has a mask of size [80, 80] in an image of [80, 120].",
        ),
        (
            MASKS,
            [[0, 0, 1, 0, 1, 1]],
            None,
            "detection 0 has no mask: 'segmentation' must be compressed run lengths.",
        ),
        (
            Keypoints((0.1, 0.1)),
            [1, 1, 2],
            [1, 1, 1],
            "annotation 1 has 3 numbers in 'keypoints'; 6 finite ones (x, y, visibility of 2 points) are needed.",
        ),
        (
            Keypoints((0.1,)),
            [1, 1, 2],
            [float("nan"), 1, 1],
            "detection 0 has 3 numbers in 'keypoints'; 3 finite ones (x, y, visibility of 1 points) are needed.",
        ),
        (
            Keypoints((0.1,)),
            [0, 0, 0],
            [1, 1, 1],
            "no ground-truth key points in 1 images: AP is not defined.",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(compared, annotated, found, message):
    truth, detections = one(compared.key, annotated, found)
    with pytest.raises(DataError) as error:
        coco_ap_by_image(truth, detections, compared=compared)
    assert str(error.value) == message


def test_masks_need_the_size_of_the_image():
    truth, detections = one("segmentation", [[0, 0, 1, 0, 1, 1]], filled(0, 0, 2, 2))
    truth["images"] = [{"id": 1}]
    with pytest.raises(DataError, match=r"^image 1 has no 'height' and 'width', which masks need\.$"):
        coco_ap_by_image(truth, detections, compared=MASKS)
