"""COCO AP is that of pycocotools: worked out by hand, and bit for bit on real annotations."""

import contextlib
import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from yolo_prune.accuracy.bootstrap import draw_images
from yolo_prune.accuracy.coco import coco_ap, coco_ap_by_image

IMAGES = [{"id": 1}, {"id": 2}]
CATEGORIES = [{"id": 1, "name": "cell"}]


def box(number, image, bbox, **more):
    return {"id": number, "image_id": image, "category_id": 1, "bbox": bbox, **more}


def found(image, bbox, score):
    return {"image_id": image, "category_id": 1, "bbox": bbox, "score": score}


def test_ap_worked_out_by_hand():
    """Three boxes, three detections: right, wrong, and right up to IoU 0.72; the third box is missed.

    Up to IoU 0.70 (5 of 10 thresholds) precision after each is 1, 1/2, 2/3, at recall 1/3, 1/3, 2/3.
    Made monotone it is 1 at the 34 recall points 0.00 to 0.33 and 2/3 at the 33 points 0.34 to 0.66, then 0:
    (34 + 22) / 101. Above, only the first detection is right: 34/101.
    """
    boxes = [box(n, image, [0, y, 100, 100]) for n, image, y in ((1, 1, 0), (2, 1, 200), (3, 2, 0))]
    truth = {"images": IMAGES, "categories": CATEGORIES, "annotations": boxes}
    detections = [
        found(1, [0, 0, 100, 100], 0.9),
        found(2, [500, 500, 100, 100], 0.8),
        found(1, [0, 200, 72, 100], 0.7),
    ]
    result = coco_ap(truth, detections)
    assert result.ap50 == pytest.approx(56 / 101, abs=1e-12)
    assert result.ap75 == pytest.approx(34 / 101, abs=1e-12)
    assert result.ap == pytest.approx((5 * 56 + 5 * 34) / 1010, abs=1e-12)
    assert result.ap_large == pytest.approx(result.ap, abs=1e-12)
    assert (result.ap_small, result.ap_medium) == (None, None)


def test_detections_in_a_crowd_do_not_count_as_wrong():
    """A detection inside a crowd region is ignored; the control forgets the crowd and must score lower."""
    boxes = [box(1, 1, [0, 0, 50, 50]), box(2, 1, [100, 100, 300, 300], iscrowd=1)]
    truth = {"images": IMAGES, "categories": CATEGORIES, "annotations": boxes}
    detections = [found(1, [120, 120, 40, 40], 0.9), found(1, [0, 0, 50, 50], 0.8)]
    assert coco_ap(truth, detections).ap == pytest.approx(1, abs=1e-12)
    forgotten = copy.deepcopy(truth)
    forgotten["annotations"][1]["iscrowd"] = 0
    assert coco_ap(forgotten, detections).ap < 0.6


def test_annotation_ids_may_start_at_zero():
    """pycocotools itself takes a match with annotation 0 for none; the control shows it."""
    truth = {"images": IMAGES, "categories": CATEGORIES, "annotations": [box(0, 1, [0, 0, 50, 50])]}
    detections = [found(1, [0, 0, 50, 50], 0.8)]
    raw = copy.deepcopy(truth)
    raw["annotations"][0].update(area=2500, iscrowd=0)
    assert reference(raw, detections)[0] == 0.0
    assert coco_ap(truth, detections).ap == pytest.approx(1, abs=1e-12)


def reference(truth, detections):
    """The twelve numbers of pycocotools, used as its manual says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def noisy_detections(truth, seed):
    """Boxes of the ground truth, moved, missed or of another class, with false alarms and tied scores."""
    rng = np.random.default_rng(seed)
    categories = [each["id"] for each in truth["categories"]]
    detections = []
    for each in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = each["bbox"]
            shift = rng.normal(0, 0.08, 4) * [w, h, w, h]
            category = each["category_id"] if rng.random() < 0.85 else int(rng.choice(categories))
            bbox = (np.array([x, y, max(w, 1), max(h, 1)]) + shift).tolist()
            score = round(float(rng.random()), 2)
            entry = {"image_id": each["image_id"], "category_id": category, "bbox": bbox, "score": score}
            detections.append(entry)
    for image in truth["images"]:
        for _ in range(3):
            bbox = (rng.random(4) * 200 + 1).tolist()
            entry = {"image_id": image["id"], "category_id": int(rng.choice(categories)), "bbox": bbox}
            detections.append({**entry, "score": float(rng.random()) * 0.5})
    return detections


@pytest.mark.shared
@pytest.mark.parametrize("name", ["coco_mini", "bccd"])
def test_the_numbers_are_those_of_pycocotools_to_the_bit(shared, name):
    path = shared / "data" / name / "annotations" / "instances_val.json"
    truth = json.loads(path.read_text(encoding="utf-8"))
    detections = noisy_detections(truth, seed=0)
    result = coco_ap(truth, detections)
    ours = [result.ap, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ap_large]
    assert ours == reference(truth, detections)[:6].tolist()
    assert 0.1 < result.ap < 0.9
    assert np.mean(list(result.per_class.values())) == pytest.approx(result.ap, abs=1e-12)
    assert result.boxes == sum(1 for each in truth["annotations"] if not each.get("iscrowd"))


@pytest.mark.shared
def test_without_sizes_everything_else_stays_to_the_bit(shared):
    path = shared / "data" / "coco_mini" / "annotations" / "instances_val.json"
    truth = json.loads(path.read_text(encoding="utf-8"))
    detections = noisy_detections(truth, seed=0)
    whole, matches = coco_ap_by_image(truth, detections)
    quick, fewer = coco_ap_by_image(truth, detections, by_size=False)
    sizes = dict.fromkeys(("ap_small", "ap_medium", "ap_large"))
    assert None not in (whole.ap_small, whole.ap_medium, whole.ap_large)
    assert quick == replace(whole, **sizes)
    weights = draw_images(matches.images, resamples=5)
    assert fewer.accuracy(weights).tolist() == matches.accuracy(weights).tolist()


@pytest.mark.shared
def test_ignoring_the_crowd_boxes_of_coco_mini_changes_its_ap(shared):
    """The control of the test above: the data must be able to tell."""
    path = shared / "data" / "coco_mini" / "annotations" / "instances_val.json"
    truth = json.loads(path.read_text(encoding="utf-8"))
    detections = noisy_detections(truth, seed=0)
    forgotten = copy.deepcopy(truth)
    for each in forgotten["annotations"]:
        each["iscrowd"] = 0
    assert any(each.get("iscrowd") for each in truth["annotations"])
    assert coco_ap(forgotten, detections).ap != coco_ap(truth, detections).ap
