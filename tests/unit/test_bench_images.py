"""What runs around the network: letterbox, scaling, suppression."""

import numpy as np
import pytest

from yolo_prune.bench.images import (
    MAX_DETECTIONS,
    detect,
    draw_image,
    letterbox,
    load_images,
    suppress,
    to_input,
)
from yolo_prune.errors import DataError


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (64, 64), (37, 501)])
def test_the_letterbox_keeps_the_aspect_ratio_and_centres_the_image(height, width):
    square = letterbox(np.full((height, width, 3), 255, np.uint8), 64)
    assert square.shape == (64, 64, 3)
    rows, columns = np.nonzero((square == 255).all(axis=2))
    scale = 64 / max(height, width)
    assert rows.max() - rows.min() + 1 == round(height * scale)
    assert columns.max() - columns.min() + 1 == round(width * scale)
    assert abs(rows.min() - (63 - rows.max())) <= 1
    assert set(np.unique(square)) <= {114, 255}


def test_the_input_is_rgb_in_zero_to_one():
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 255  # red, in BGR order
    batch = to_input([image, image], 32)
    assert batch.shape == (2, 3, 32, 32)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch[:, 0].min() == 1.0
    assert batch[:, 1:].max() == 0.0


def test_drawn_images_are_the_same_every_time_and_differ_from_each_other():
    assert (draw_image(0) == draw_image(0)).all()
    assert (draw_image(0) != draw_image(1)).any()
    assert [image.shape for image in load_images(None)] == [(480, 640, 3)] * 4


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the image '.*none\.jpg'"):
        load_images([tmp_path / "none.jpg"])
    with pytest.raises(DataError, match="no images to measure with"):
        load_images([])


def test_suppression_drops_the_overlapping_box_of_the_same_class_only():
    boxes = np.array(
        [
            [0, 0, 10, 10, 0.9, 0],
            [0, 0, 10, 11, 0.8, 0],
            [0, 0, 10, 11, 0.7, 1],
            [20, 20, 30, 30, 0.6, 0],
        ],
        np.float32,
    )
    assert suppress(boxes)[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert suppress(boxes[:0]).shape == (0, 6)


def test_at_most_300_boxes_are_kept():
    corner = np.arange(400, dtype=np.float32)[:, None] * 20
    boxes = np.concatenate([corner, corner, corner + 10, corner + 10, 0 * corner + 0.5, 0 * corner], axis=1)
    assert len(suppress(boxes)) == MAX_DETECTIONS


@pytest.mark.parametrize(
    ("shape", "classes", "boxes"),
    [
        ((1, 7, 84), 3, 1),
        ((1, 7, 84), None, 1),
        ((1, 7, 7), 3, 1),
        ((1, 39, 84), 3, 1),
        ((1, 300, 7), 3, 1),
        ((1, 300, 6), 3, 1),
    ],
    ids=[
        "anchors",
        "anchors of unknown classes",
        "as many anchors as channels",
        "anchors with mask coefficients",
        "queries",
        "end to end",
    ],
)
def test_the_layout_of_the_output_is_read_from_its_shape(shape, classes, boxes):
    output = np.zeros(shape, np.float32)
    row = [50, 50, 20, 20, 0.9, 0][: min(shape[1:])]
    if shape[1] <= shape[2]:
        output[0, : len(row), 5] = row
    else:
        output[0, 5, : len(row)] = row
    (found,) = detect(output, classes)
    assert found.shape == (boxes, 6)
    assert found[0, 4] == pytest.approx(0.9)


def test_a_classifier_gives_its_best_five():
    (found,) = detect(np.arange(10, dtype=np.float32)[None] / 10)
    assert found[:, 1].tolist() == [9, 8, 7, 6, 5]


def test_an_output_too_small_for_its_classes_is_refused():
    with pytest.raises(DataError, match=r"the output \(1, 7, 84\) is too small for 80 classes"):
        detect(np.zeros((1, 7, 84), np.float32), 80)
