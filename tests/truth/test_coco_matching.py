"""What is matched is what pycocotools matches, image by image and to the bit: ties, crowds, sizes and empty sides too."""

import importlib.util
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pycoco import assert_the_same, evaluation, matches_of

from yolo_prune.accuracy.coco import coco_ap_by_image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_evaluation.py"


def scene(seed: int):
    """Images with few and with many boxes and detections, on a coarse grid, so that overlaps and scores tie."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for image in range(12):
        boxes = rng.integers(0, 12, (int(rng.integers(0, 9)), 4)) * 8 + [0, 0, 8, 8]
        for box in boxes.tolist():
            entry = {
                "image_id": image,
                "category_id": int(rng.integers(2)),
                "bbox": box,
                "area": box[2] * box[3],
            }
            truth.append({**entry, "id": len(truth) + 1, "iscrowd": int(rng.random() < 0.2)})
        for _ in range(int(rng.integers(0, 130))):
            box = (
                boxes[rng.integers(len(boxes))]
                if len(boxes) and rng.random() < 0.6
                else rng.integers(1, 99, 4)
            )
            moved = (box + rng.integers(0, 2, 4) * 4).tolist()
            score = round(float(rng.random()), 1)
            detections.append(
                {"image_id": image, "category_id": int(rng.integers(2)), "bbox": moved, "score": score}
            )
    images = [{"id": image} for image in range(12)]
    categories = [{"id": number, "name": str(number)} for number in (0, 1, 2)]
    return {"images": images, "categories": categories, "annotations": truth}, detections


@pytest.mark.parametrize("seed", range(6))
def test_every_match_is_the_one_that_pycocotools_makes(seed):
    truth, detections = scene(seed)
    theirs = evaluation(truth, detections)
    assert_the_same(*coco_ap_by_image(truth, detections), theirs)
    right = np.concatenate([each.any(axis=0) for _, each, _, _ in matches_of(theirs)])
    assert 0.05 < right.mean() < 0.95, "the control: some are matched and some are not"
    assert any(each.any() for _, _, each, _ in matches_of(theirs)), "the control: some are ignored"


def test_of_one_image_and_class_the_best_hundred_count():
    """The hundred and first detection is the only right one; the control has one wrong detection less."""
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "1"}], "annotations": [box]}
    wrong = [{**box, "bbox": [50, 50, 10, 10], "score": 0.9} for _ in range(100)]
    found = [*wrong, {**box, "score": 0.5}]
    assert coco_ap_by_image(truth, found)[0].ap == 0.0
    assert coco_ap_by_image(truth, found[1:])[0].ap == pytest.approx(0.01, abs=1e-9)
    assert_the_same(*coco_ap_by_image(truth, found), evaluation(truth, found))


def test_ids_may_be_of_any_kind_and_in_any_order():
    truth, detections = scene(3)
    other = {number: f"image {(number * 5) % 12:02}" for number in range(12)}
    renamed = [{**each, "image_id": other[each["image_id"]]} for each in truth["annotations"]]
    images = [{"id": other[each["id"]]} for each in truth["images"]]
    found = [{**each, "image_id": other[each["image_id"]]} for each in detections]
    result, sample = coco_ap_by_image({**truth, "images": images, "annotations": renamed}, found)
    theirs = evaluation({**truth, "images": images, "annotations": renamed}, found)
    assert_the_same(result, sample, theirs)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_evaluation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_of_many_classes_the_numbers_are_those_of_pycocotools_to_the_bit(script):
    truth, detections = script.drawn(40, 20)
    result, sample = coco_ap_by_image(truth, detections)
    assert_the_same(result, sample, evaluation(truth, detections))
    assert 0.05 < result.ap < 0.95, "the control: there is something to tell apart"
    moved = [{**each, "bbox": [each["bbox"][0] + 1, *each["bbox"][1:]]} for each in detections]
    assert coco_ap_by_image(truth, moved)[0].ap != result.ap, "the control: a pixel is seen"


@pytest.mark.slow  # minutes, all of them in pycocotools
def test_of_5000_images_and_80_classes_the_numbers_are_those_of_pycocotools_to_the_bit(script):
    truth, detections = script.drawn(5000, 80)
    result, sample = coco_ap_by_image(truth, detections)
    assert_the_same(result, sample, evaluation(truth, detections))


def test_images_that_hold_nothing_take_no_memory(script):
    """pycocotools has an entry for every image, class and size; here an image is a number and a count for each class."""
    truth, detections = script.drawn(2, 20, found=20)

    def peak(score, empty):
        more = [{"id": 10_000 + number} for number in range(empty)]
        tracemalloc.start()
        try:
            score({**truth, "images": [*truth["images"], *more]}, detections)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    coco_ap_by_image(truth, detections)  # what is imported is not counted
    assert peak(coco_ap_by_image, 400) - peak(coco_ap_by_image, 0) < 400 * 800
    assert peak(evaluation, 60) - peak(evaluation, 0) > 60 * 4000, "the control"
