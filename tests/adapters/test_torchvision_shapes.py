"""Masks and key points: they follow their images in training, and what is found comes back onto the image exactly."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.accuracy.masks import filled, run_lengths
from yolo_prune.accuracy.shapes import MASKS, Keypoints
from yolo_prune.adapters.torchvision.framing import load_framed
from yolo_prune.adapters.torchvision.tasks import BoxTask
from yolo_prune.adapters.torchvision.training.recipe import make_recipe
from yolo_prune.adapters.torchvision.training.samples import BoxSamples

SIZES = [(60, 100), (100, 60), (81, 80)]


def triangle(index):
    """Return the corners of one white triangle, x and y in pixels: left, top, right."""
    height, width = SIZES[index]
    corners = [
        (width / 4, height * 0.7),
        (width / 2 + 3 * index, height / 5),
        (width * 0.8, height * 0.6),
    ]
    return np.array(corners)


@pytest.fixture(scope="module", params=["segment", "pose"])
def data(request, tmp_path_factory):
    """Images with one white triangle of two shapes, labelled by its outline or by its three corners."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True)
    for index, (height, width) in enumerate(SIZES):
        image, corners = np.zeros((height, width, 3), np.uint8), triangle(index)
        cv2.fillPoly(image, [(corners - 0.5).round().astype(np.int32)], (255, 255, 255))
        cv2.imwrite(str(folder / "images" / "train" / f"{index}.png"), image)
        relative = corners / (width, height)
        low, high = relative.min(0), relative.max(0)
        row = [*relative.ravel()]
        if request.param == "pose":
            row = [*(low + high) / 2, *(high - low), *np.c_[relative, [2, 2, 2]].ravel()]
        text = " ".join(f"{value:.6f}" for value in (0, *row))
        (folder / "labels" / "train" / f"{index}.txt").write_text(text.replace("0.000000", "0", 1))
    points = "kpt_shape: [3, 3]\nflip_idx: [2, 1, 0]\n"
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames: [white]\n{points}")
    return request.param, read_boxes(folder / "data.yaml", "train", request.param)


def overlap(one, other):
    return (one & other).sum() / max((one | other).sum(), 1)


@pytest.mark.parametrize("options", [{}, {"fliplr": 1}, {"scale": 0.5}, {"fliplr": 1, "scale": 0.5}])
@pytest.mark.parametrize("stretched", [False, True])
def test_shapes_follow_every_augmentation(data, options, stretched):
    shape, split = data
    given = {"epochs": 1, "imgsz": 96, "scale": 0, "fliplr": 0, "device": "cpu", **options}
    samples = BoxSamples(split, (1,), make_recipe("detect", given), stretched, shape)
    for seed in range(4):
        for index in range(samples.count):
            canvas, target = samples.read(index, np.random.default_rng(seed))
            white = canvas.mean(2) > 200
            if shape == "segment":
                assert target["masks"].shape == (1, 96, 96)
                assert overlap(white, target["masks"][0].astype(bool)) > 0.85
                continue
            rows, columns = np.nonzero(white)
            left, top, right = target["keypoints"][0]
            assert left[2] == 2
            assert left[0] == pytest.approx(columns.min(), abs=3.5)
            assert right[0] == pytest.approx(columns.max() + 1, abs=3.5)
            assert top[1] == pytest.approx(rows.min(), abs=3.5)
    batch = samples.collate([target, target])
    assert all(isinstance(value, torch.Tensor) for value in batch[0].values())


def test_points_that_leave_the_canvas_are_seen_no_more_and_unnamed_ones_are_not_mirrored(data):
    shape, split = data
    if shape == "segment":
        assert split.mirrored == (2, 1, 0)
        return
    recipe = make_recipe("detect", {"epochs": 1, "imgsz": 64, "fliplr": 1, "scale": 0, "device": "cpu"})
    vars(split)["mirrored"] = ()
    try:
        _, target = BoxSamples(split, (1,), recipe, False, shape).read(0, np.random.default_rng(0))
    finally:
        vars(split)["mirrored"] = (2, 1, 0)
    left, _, right = target["keypoints"][0]
    assert left[0] < right[0], "not mirrored"
    samples = BoxSamples(split, (1,), recipe, False, shape)
    moved = samples._points(split.objects[0], (1.0, 1.0), (-30.0, 0.0), False)
    assert moved[0, :, 2].tolist() == [0, 2, 2]


class Oracle(nn.Module):
    """Finds in each canvas what is white there, moved by some pixels: everything that a detector returns."""

    def __init__(self, split, shift=0.0):
        super().__init__()
        self.split, self.shift = split, shift

    def forward(self, images):
        found = []
        for image in images:
            white = image.mean(0) > 0.8  # the canvas around the image is grey
            rows, columns = torch.nonzero(white, as_tuple=True)
            left, right = columns.argmin(), columns.argmax()
            top = rows.argmin()
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            corners = [(columns[at] + 0.5, rows[at] + 0.5, 1.0) for at in (left, top, right)]
            points = torch.tensor(corners)[None] + torch.tensor([self.shift, 0, 0])
            likely = torch.roll(white, int(self.shift), 1)[None, None].float()
            one = {"boxes": torch.tensor([box]).float(), "masks": likely, "keypoints": points}
            found.append({**one, "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)})
        return found


def ap_of(data, shift, imgsz, stretched=False):
    shape, split = data
    compared = MASKS if shape == "segment" else Keypoints((0.1,) * 3, 0.53)
    metric = "mask_ap" if shape == "segment" else "keypoint_ap"
    task = BoxTask(
        *(split, str(split.file), (1,), (), stretched, 2, "cpu", shape, compared, "as said"), metric=metric
    )
    result = task.evaluate(Oracle(split, shift), imgsz)
    quick = task.scorer_on(split, imgsz)(Oracle(split, shift))
    assert quick == result.scores[metric]
    assert result.scores["ap"] is not None
    assert "as said" in result.evaluator
    boxes, every = result.of_files, np.ones((1, result.images), dtype=int)
    assert boxes.sample.accuracy(every) == pytest.approx(boxes.value, abs=1e-9), (
        "what its interval is made of"
    )
    assert "as said" not in boxes.source
    return result.scores[metric]


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("imgsz", [160, (96, 192)])
def test_what_is_right_on_the_canvas_is_right_on_the_image(data, imgsz, stretched):
    assert ap_of(data, 0.0, imgsz, stretched) > 0.8
    assert ap_of(data, 24.0, imgsz, stretched) < 0.6, "the control: elsewhere it is wrong"


def test_a_mask_on_the_canvas_comes_back_within_a_pixel(data):
    shape, split = data
    if shape == "pose":
        return
    from yolo_prune.adapters.torchvision.found import as_coco

    images, frames = load_framed(split.image_files, 256, False)
    for index, (found, frame) in enumerate(zip(Oracle(split)(images), frames, strict=True)):
        (one,) = as_coco(found, frame, 1, {1: 1}, MASKS)
        mask = filled(one["segmentation"], SIZES[index])
        truth = filled(split.objects[index][0]["segmentation"], SIZES[index])
        assert overlap(mask, truth) > 0.85
        assert (as_coco(found, frame, 1, {2: 1}, MASKS)) == [], "a label that no class has"


def test_masks_of_polygons_and_of_run_lengths_are_the_same():
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]
    pixels = np.zeros((8, 9), dtype=bool)
    pixels[1:4, 2:6] = True
    assert (filled(square, (8, 9)) == pixels).all()
    assert (filled(run_lengths(pixels[1:4, 2:6], 2, 1, (8, 9)), (8, 9)) == pixels).all()
    counts = np.diff(np.flatnonzero(np.diff(np.r_[0, pixels.T.ravel(), 0, 1])), prepend=-1).tolist()
    counts[0] = int(np.flatnonzero(pixels.T.ravel())[0])
    loose = {"size": [8, 9], "counts": [*counts[:-1], 72 - sum(counts[:-1])]}
    assert (filled(loose, (8, 9)) == pixels).all()
