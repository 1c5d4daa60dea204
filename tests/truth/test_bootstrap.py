"""Intervals by the bootstrap: the accuracy of a resample is pycocotools', and 95 % means about 95 %."""

import copy

import numpy as np
import pytest

from yolo_prune.accuracy.bootstrap import ImageHits, draw_images, interval_of, resampled_accuracy
from yolo_prune.accuracy.coco import coco_ap, coco_ap_by_image

CLASSES = 3


def scene(images, seed, quality=0.7, crowds=True):
    """Boxes with one detection each or none, worse ones in harder images, false alarms, crowd regions; no tied scores."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)],
    }
    found = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image})
        hardness = rng.random()
        for _ in range(rng.integers(0, 5)):
            category, corner = int(rng.integers(1, CLASSES + 1)), rng.random(2) * 400
            entry = {"image_id": image, "category_id": category, "bbox": [*corner, 60.0, 60.0]}
            crowd = int(crowds and rng.random() < 0.1)
            truth["annotations"].append({**entry, "iscrowd": crowd})
            if rng.random() < quality:
                moved = [*(corner + rng.normal(0, 1 + 6 * hardness, 2)), 60.0, 60.0]
                found.append({**entry, "bbox": moved, "score": float(rng.beta(4, 2))})
        for _ in range(rng.integers(0, 3)):
            bbox = [*(rng.random(2) * 400), 60.0, 60.0]
            category = int(rng.integers(1, CLASSES + 1))
            score = float(rng.beta(2, 4))
            found.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})
    return truth, found


def copies(truth, found, weights):
    """The data set in which every image stands as often as its weight says, under ids of its own."""
    made, detections = {"images": [], "annotations": [], "categories": truth["categories"]}, []
    for each, weight in zip(truth["images"], weights, strict=True):
        for copy_number in range(weight):
            number = each["id"] + 100_000 * copy_number
            made["images"].append({"id": number})
            for source, target in ((truth["annotations"], made["annotations"]), (found, detections)):
                target += [
                    {**entry, "image_id": number} for entry in source if entry["image_id"] == each["id"]
                ]
    return made, detections


@pytest.mark.parametrize("seed", range(3))
def test_with_every_weight_one_it_is_the_ap_of_pycocotools(seed):
    truth, found = scene(60, seed)
    result, sample = coco_ap_by_image(truth, found)
    assert result == coco_ap(truth, found)
    assert sample.images == 60
    ones = np.ones((1, 60), dtype=np.int64)
    assert sample.accuracy(ones) == pytest.approx([result.ap], abs=1e-12)
    assert 0.1 < result.ap < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_counts_an_image_as_often_as_copies_of_it_do(seed):
    truth, found = scene(25, seed)
    _, sample = coco_ap_by_image(truth, found)
    draws = draw_images(25, resamples=4, seed=seed)
    expected = [coco_ap(*copies(truth, found, draw)).ap for draw in draws]
    assert sample.accuracy(draws) == pytest.approx(expected, abs=1e-12)
    assert np.ptp(expected) > 1e-3, "the control: the draws differ"


def test_a_class_that_no_drawn_image_has_is_left_out_of_the_mean():
    truth, found = scene(12, 0, crowds=False)
    _, sample = coco_ap_by_image(truth, found)
    only = np.zeros((2, 12), dtype=np.int64)
    only[0, 4] = 3
    chosen = copies(truth, found, only[0])
    assert 0 < len({each["category_id"] for each in chosen[0]["annotations"]}) < CLASSES
    first, nothing = sample.accuracy(only)
    assert first == pytest.approx(coco_ap(*chosen).ap, abs=1e-12)
    assert np.isnan(nothing)


def test_no_detections_are_an_ap_of_zero_in_every_resample():
    truth, _ = scene(10, 0)
    _, sample = coco_ap_by_image(truth, [])
    assert np.array_equal(resampled_accuracy(sample, 20), np.zeros(20))
    assert interval_of(resampled_accuracy(sample, 20)) is not None


def test_draws_are_the_same_for_the_same_seed_and_take_as_many_images_as_there_are():
    draws = draw_images(50, 30, seed=1)
    assert np.array_equal(draws, draw_images(50, 30, seed=1))
    assert not np.array_equal(draws, draw_images(50, 30, seed=2))
    assert set(draws.sum(axis=1)) == {50}


def test_a_share_of_right_images_has_the_interval_of_a_binomial():
    right = np.arange(400) < 300
    interval = interval_of(resampled_accuracy(ImageHits(right), 4000))
    error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (interval.low, interval.high) == pytest.approx((0.75 - error, 0.75 + error), abs=0.004)


def test_the_difference_of_two_models_on_the_same_images_is_known_better_than_either():
    truth, found = scene(80, 0)
    worse = [
        {**copy.deepcopy(each), "score": each["score"] * (0.5 if i % 9 == 0 else 1)}
        for i, each in enumerate(found)
    ]
    first, second = (resampled_accuracy(coco_ap_by_image(truth, each)[1]) for each in (found, worse))
    paired, alone = interval_of(first - second), interval_of(first)
    shuffled = interval_of(first - np.random.default_rng(0).permutation(second))
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low), "the control: unpaired draws"


def test_nothing_to_resample_has_no_interval():
    assert interval_of(np.array([np.nan, np.nan])) is None
