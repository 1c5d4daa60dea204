"""pycocotools as its manual says, and what it matched: the reference of everything that scores by COCO's rules."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def evaluation(truth, detections, kind="bbox", sigmas=None):
    """A ``COCOeval`` after ``evaluate`` and ``accumulate``; the data stays as it is."""
    key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    filled = [{"iscrowd": 0, **each} for each in truth["annotations"]]
    for number, each in enumerate(filled, 1):
        each.setdefault("area", each["bbox"][2] * each["bbox"][3])
        each["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**truth, "annotations": filled}
        coco.createIndex()
        keys = ("image_id", "category_id", key, "score")
        found = coco.loadRes([{name: each[name] for name in keys} for each in detections])
        made = COCOeval(coco, found, kind)
        if sigmas is not None:
            made.params.kpt_oks_sigmas = np.array(sigmas)
        made.evaluate()
        made.accumulate()
    return made


def numbers_of(made):
    """AP, AP50, AP75, AP by size and by class, from its precision."""
    precision = made.eval["precision"][..., -1]
    means = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    means += [precision[..., index] for index in range(1, precision.shape[-1])]
    means += [precision[:, :, index, 0] for index in range(precision.shape[2])]
    return [float(np.mean(each[each > -1])) if (each > -1).any() else None for each in means]


def matches_of(made):
    """For every class, best score first: index of the image, right, ignored; and objects to find in every image."""
    images, sizes = len(made.params.imgIds), len(made.params.areaRng)
    for category in range(len(made.params.catIds)):
        start = category * sizes * images
        every = list(enumerate(made.evalImgs[start : start + images]))
        entries = [(index, each) for index, each in every if each]
        objects = np.zeros(images, dtype=int)
        for index, each in entries:
            objects[index] = np.count_nonzero(each["gtIgnore"] == 0)
        if not entries:
            yield np.zeros(0), np.zeros((10, 0)), np.zeros((10, 0)), objects
            continue
        order = np.argsort(-np.concatenate([each["dtScores"] for _, each in entries]), kind="mergesort")
        place = np.concatenate([np.full(len(each["dtIds"]), index) for index, each in entries])
        right = np.concatenate([each["dtMatches"] > 0 for _, each in entries], axis=1)
        ignored = np.concatenate([each["dtIgnore"] > 0 for _, each in entries], axis=1)
        yield place[order], right[:, order], ignored[:, order], objects


def assert_the_same(result, sample, made):
    """Every number of ours is the reference's to the bit, and so is every match that intervals are drawn from."""
    expected = numbers_of(made)
    sizes = [result.ap_small] if len(made.params.areaRng) == 4 else []
    classes = [result.per_class.get(str(number)) for number in made.params.catIds]
    ours = [result.ap, result.ap50, result.ap75, *sizes, result.ap_medium, result.ap_large, *classes]
    assert ours == expected
    theirs = list(matches_of(made))
    assert len(sample.classes) == len(theirs)
    for one, (image, right, ignored, objects) in zip(sample.classes, theirs, strict=True):
        assert one.objects.tolist() == objects.tolist()
        assert one.image.tolist() == image.tolist()
        assert np.array_equal(one.right, right)
        assert np.array_equal(one.ignored, ignored)
