"""The quick evaluation is pycocotools' own, image by image and to the bit: ties, crowds, sizes and empty sides too."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.accuracy.matching import quick_evaluation


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
    images, categories = [{"id": image} for image in range(12)], [{"id": 0}, {"id": 1}]
    return {"images": images, "categories": categories, "annotations": truth}, detections


def evaluated(kind, truth, detections, **parameters):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = kind(coco, coco.loadRes([dict(each) for each in detections]), "bbox")
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def assert_same(ours, theirs):
    assert np.array_equal(ours.eval["precision"], theirs.eval["precision"])
    assert np.array_equal(ours.eval["recall"], theirs.eval["recall"])
    assert np.array_equal(ours.eval["scores"], theirs.eval["scores"])
    assert len(ours.evalImgs) == len(theirs.evalImgs)
    for one, other in zip(ours.evalImgs, theirs.evalImgs, strict=True):
        assert (one is None) == (other is None)
        for key in other or ():
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
            assert np.asarray(one[key]).dtype == np.asarray(other[key]).dtype


@pytest.mark.parametrize("seed", range(4))
def test_every_match_is_the_one_that_pycocotools_makes(seed):
    truth, detections = scene(seed)
    ours, theirs = (evaluated(kind, truth, detections) for kind in (quick_evaluation(), COCOeval))
    assert_same(ours, theirs)
    matched = [each["dtMatches"].any(axis=0) for each in theirs.evalImgs if each]
    shares = np.concatenate(matched)
    assert 0.05 < shares.mean() < 0.95, "the control: some are matched and some are not"
    assert any(each["dtIgnore"].any() for each in theirs.evalImgs if each)


@pytest.mark.parametrize(
    "parameters", [{"useCats": 0}, {"maxDets": [1, 5, 10]}, {"iouThrs": np.array([0.3, 1.0])}]
)
def test_other_parameters_are_followed_too(parameters):
    truth, detections = scene(7)
    kinds = (quick_evaluation(), COCOeval)
    assert_same(*(evaluated(kind, truth, detections, **parameters) for kind in kinds))


def test_it_is_shown_fewer_detections(monkeypatch):
    truth, detections = scene(1)
    shown = []
    match = COCOeval.evaluateImg

    def watched(self, image, category, sizes, limit):
        shown.append(len(self._dts[image, category]))
        return match(self, image, category, sizes, limit)

    monkeypatch.setattr(COCOeval, "evaluateImg", watched)
    evaluated(COCOeval, truth, detections)
    before, shown[:] = sum(shown), []
    evaluated(quick_evaluation(), truth, detections)
    assert 0 < sum(shown) < before
